"""`python -m chaos.drill NAME [--seed N] [--scale X] [--judge FOLDER]`: one promise, measured.

Exit code 0 when the checker found nothing and every figure is as promised, 1 when not, 2 for arguments that make no
sense.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from chaos.drills import DRILLS
from chaos.goals import Goal
from chaos.leases import read_leases
from chaos.report import Report, text
from chaos.run import PLAN, judge, live, read_evidence, read_faults, read_planned

BUILD: Final = Path("build/drills")


class Result(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    seed: int
    scale: float
    load: float
    """Of the machine when the run was judged, mean of 5 minutes."""
    goals: tuple[Goal, ...]
    report: Report

    @property
    def reached(self) -> bool:
        return not self.report.violations and all(goal.reached is not False for goal in self.goals)


async def run_drill(name: str, folder: Path, *, seed: int = 1, scale: float = 1) -> Result:
    """`folder` is made by this run and holds nothing else."""
    await live(folder, DRILLS[name].plan(seed, scale))
    return judge_drill(name, folder, scale=scale)


def judge_drill(name: str, folder: Path, *, scale: float = 1) -> Result:
    """From the folder of a run alone."""
    planned, evidence, made = read_planned(folder), read_evidence(folder), read_faults(folder)
    result = Result(
        name=name,
        seed=planned.seed,
        scale=scale,
        load=round(os.getloadavg()[1], 2),
        goals=tuple(DRILLS[name].goals(planned, evidence, made.injected, read_leases(folder))),
        report=judge(folder),
    )
    (folder / "drill.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    (folder / "drill.txt").write_text(drill_text(result))
    return result


def drill_text(result: Result) -> str:
    """For people."""
    again = f"make drill NAME={result.name} SEED={result.seed}" + (
        "" if result.scale == 1 else f" ARGS='--scale {result.scale:g}'"
    )
    lines = [f"drill {result.name}: {DRILLS[result.name].what}" + _scaled(result.scale), f"load {result.load:g}", ""]
    lines += _table(result.goals)
    return "\n".join([*lines, "", text(result.report, again)])


def _scaled(scale: float) -> str:
    return "" if scale == 1 else f" (scale {scale:g}: the figures are not those that are promised)"


def _table(goals: Sequence[Goal]) -> list[str]:
    wide = max(len(goal.what) for goal in goals)
    words = {True: "ok", False: "MISSED", None: ""}
    return [f"  {goal.what:<{wide}}  {goal.want:>14}  {goal.got:>16}  {words[goal.reached]}".rstrip() for goal in goals]


def main() -> int:
    drills = "\n".join(f"  {name:<12}{drill.what}" for name, drill in DRILLS.items())
    parser = argparse.ArgumentParser(
        prog="make drill", epilog=f"drills:\n{drills}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=DRILLS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1, help="part of the full size, for trying things out")
    parser.add_argument("--folder", type=Path, help=f"default {BUILD}/<name>-<seed>")
    parser.add_argument("--judge", action="store_true", help="only judge again what lies in the folder")
    options = parser.parse_args()
    folder: Path = (options.folder or BUILD / f"{options.name}-{options.seed}").resolve()
    if options.judge:
        result = judge_drill(options.name, folder, scale=options.scale)
    else:
        if folder.exists():
            if not (folder / PLAN).exists():
                parser.error(f"{folder} is there and is not an earlier run")
            shutil.rmtree(folder)
        result = uvloop.run(run_drill(options.name, folder, seed=options.seed, scale=options.scale))
    sys.stdout.write(f"{drill_text(result)}\nfolder      {folder}\n")
    return 0 if result.reached else 1


if __name__ == "__main__":
    sys.exit(main())
