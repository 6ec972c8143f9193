"""Write the contract files, or with --check say how they differ from the code and exit 1."""

import argparse
import sys
from pathlib import Path

from llorch_shared.contracts import files


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m llorch_shared.contracts", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff when files differ")
    parser.add_argument("--out", type=Path, default=Path("contracts"), help="folder of the contract files")
    arguments = parser.parse_args()
    if not arguments.check:
        files.write(arguments.out)
        return 0
    difference = files.difference(arguments.out)
    sys.stdout.write(difference)
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
