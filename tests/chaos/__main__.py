"""`python -m chaos [--seed N] [--seconds N] [--faults all|kill,cut,…] [--judge FOLDER]`

Exit code 0 without violations, 1 with, 2 for arguments that make no sense.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Final

import uvloop

from chaos.plan import FaultKind, parse_kinds
from chaos.report import text
from chaos.run import PLAN, judge, run

BUILD: Final = Path("build/chaos")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--faults", default="all", help=f"all, or some of {','.join(FaultKind)}")
    parser.add_argument("--folder", type=Path, help=f"default {BUILD}/<seed>-<seconds>-<faults>")
    parser.add_argument("--judge", action="store_true", help="only judge again what lies in the folder")
    options = parser.parse_args()
    try:
        kinds = parse_kinds(options.faults)
    except ValueError as error:
        parser.error(str(error))
    name = f"{options.seed}-{options.seconds:g}-{options.faults.replace(',', '+')}"
    folder: Path = (options.folder or BUILD / name).resolve()
    if not options.judge:
        if folder.exists():
            if not (folder / PLAN).exists():
                parser.error(f"{folder} is there and is not an earlier run")
            shutil.rmtree(folder)
        uvloop.run(run(folder, seed=options.seed, seconds=options.seconds, kinds=kinds))
    told = judge(folder)
    sys.stdout.write(f"{text(told)}\nfolder      {folder}\n")
    return 1 if told.violations else 0


if __name__ == "__main__":
    sys.exit(main())
