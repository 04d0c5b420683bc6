#!/usr/bin/env bash
# The Debian packages with which tests/cluster makes several hosts out of one; run it as root.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends \
    iproute2 openssh-client openssh-server procps rsync util-linux curl >/dev/null
