"""The command; see the package."""

import argparse
import sys
from collections.abc import Sequence

from . import KINDS, MODES, __doc__, torture


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="of the one run")
    parser.add_argument("--seeds", type=int, help="run this many instead, from 0 on")
    parser.add_argument("--mode", choices=MODES, default="driver", help="what is killed")
    parser.add_argument("--asha", choices=KINDS, default="promotion", help="the kind of ASHA")
    options = parser.parse_args(args)
    seeds = [options.seed] if options.seeds is None else range(options.seeds)
    num_violations = sum(len(torture(seed, options.mode, options.asha)) for seed in seeds)
    return int(num_violations > 0)


if __name__ == "__main__":
    sys.exit(main())
