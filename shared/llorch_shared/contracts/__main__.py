"""Write the contract files, or with --check say how they differ from the code and exit 1.

A change that would break a client of the same major version is refused either way."""

import argparse
import sys
from pathlib import Path

from llorch_shared.contracts import files


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m llorch_shared.contracts", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff when files differ")
    parser.add_argument("--out", type=Path, default=Path("contracts"), help="folder of the contract files")
    arguments = parser.parse_args()
    difference = files.difference(arguments.out)
    problems = files.taken_away(arguments.out) if difference else []
    for problem in problems:
        sys.stderr.write(f"breaks clients of this major version: {problem}\n")
    if problems:
        sys.stderr.write("keep it, or raise the major version (http_api/operation.py: API_VERSION)\n")
        return 1
    if arguments.check:
        sys.stdout.write(difference)
        return 1 if difference else 0
    files.write(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
