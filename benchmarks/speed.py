"""Time leaveout against other libraries, and itself at growing numbers of samples.

Usage: python benchmarks/speed.py --peers-python PATH [--only retraining|attribution|scaling]
       [--quick] [--limit SECONDS] [--folder results]

`speed_retraining.py` and `speed_attribution.py` say what is timed, and how.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import speed_attribution
import speed_retraining


def main() -> None:
    """Read the command line, time and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers-python", required=True, help="Python of the other libraries")
    parser.add_argument("--only", choices=("retraining", "attribution", "scaling"))
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--limit", type=float, default=120, help="seconds another library may take")
    parser.add_argument("--folder", type=Path, default=Path("results"), help="of the tables")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{speed_retraining.machine()}, load {load:.2f} (others' work makes ratios less certain)")
    if args.only in (None, "attribution"):
        out = args.folder / "speed_table.csv"
        speed_attribution.compare(args.peers_python, args.quick, args.limit, out)
    if args.only in (None, "scaling"):
        speed_attribution.grow(args.quick, args.folder / "scaling_table.csv")
    if args.only in (None, "retraining"):
        out = args.folder / "retraining_speed_table.csv"
        speed_retraining.main(args.peers_python, args.quick, out)


if __name__ == "__main__":
    main()
