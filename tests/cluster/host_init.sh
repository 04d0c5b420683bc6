#!/usr/bin/env bash
# The first process of a host of the lab: makes its own root file system, then becomes its sshd.
#   host_init.sh NAME DISK SHARE KEYS PREFIX HIDDEN...
# DISK: a tmpfs that holds what the host writes; it outlives a power cut
# SHARE: a folder that all hosts see at /mnt/shared, as if by NFS
# KEYS: holds id.pub, which may log in, and the host's own key
# PREFIX: the Python environment, which is there as if the cluster file had installed it
# HIDDEN: folders that are empty on this host
set -euo pipefail
name=$1 disk=$2 share=$3 keys=$4 prefix=$5
shift 5
hostname "$name"
root=$disk/root
mkdir -p "$disk/upper" "$disk/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=2g tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
mount --bind "$root/dev/pts/ptmx" "$root/dev/ptmx"
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/run/sshd" "$root/mnt/shared"
mount --bind "$share" "$root/mnt/shared"
for folder in "$@"; do mount -t tmpfs -o ro tmpfs "$root$folder"; done
home=$root$HOME
if [ ! -e "$disk/installed" ]; then
    rm -rf "$home/.ssh" "$home/.ray" "$root/tmp/ray" "$home/tune-jobs-env"
    mkdir -p -m 700 "$home/.ssh"
    mkdir -p "$home/tune-jobs-uv"
    ln -sfn "$prefix" "$home/tune-jobs-env"
    ln -sf /bin/true "$home/tune-jobs-uv/uv"
    cp "$keys/id.pub" "$home/.ssh/authorized_keys"
    install -m 600 "$keys/$name" "$root/etc/ssh/lab_host_key"
    cp "$keys/hosts" "$root/etc/hosts"
    touch "$disk/installed"
fi
cd "$root"
exec unshare --root="$root" --wd="$HOME" env -i HOME="$HOME" USER=root SHELL=/bin/bash \
    LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /usr/sbin/sshd -D -e -f /dev/null -h /etc/ssh/lab_host_key -o UsePAM=no \
    -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no \
    -o PermitRootLogin=prohibit-password -o AuthorizedKeysFile=.ssh/authorized_keys
