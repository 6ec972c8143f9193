"""The command line of the simulator: arguments, files, progress on standard error, and Ctrl-C.

The result is JSON on standard output, or in the file that `--json` names. Exit code 0 when all tasks ended, 1 when a
file cannot be written, 2 for wrong arguments or a trace that cannot be read, 130 with the partial result after Ctrl-C
or SIGTERM. This is the only part of the simulator that touches files, signals and the real clock.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from llorch_scheduler.simulator.page import page
from llorch_scheduler.simulator.result import encode
from llorch_scheduler.simulator.scenario import Scenario, ScenarioError, replayed
from llorch_scheduler.simulator.scenarios import SCENARIOS, scenario
from llorch_scheduler.simulator.simulation import Simulation
from llorch_scheduler.simulator.summary import summarise
from llorch_scheduler.simulator.traces import TraceError, read_trace

PROGRESS_EVERY_S: Final = 0.2
OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
STDOUT: Final = Path("-")


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One line on standard error with `--progress json`."""

    tasks: int
    ended: int
    simulated_s: float
    wall_s: float
    tasks_per_s: float


class _Watch:
    """Looks at a running simulation: tells how far it is, and ends it after a signal."""

    def __init__(self, *, told: bool) -> None:
        self._told: Final = told
        self._began: Final = time.monotonic()
        self._next = self._began
        self._stop = False

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop = True

    def going(self, simulation: Simulation) -> bool:
        if self._told and time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_EVERY_S
            self.tell(simulation)
        return not self._stop

    def tell(self, simulation: Simulation) -> None:
        wall_s = time.monotonic() - self._began
        line = Progress(
            tasks=simulation.scenario.tasks,
            ended=simulation.ended_count,
            simulated_s=round(simulation.clock.now_ms / 1000, 1),
            wall_s=round(wall_s, 2),
            tasks_per_s=round(simulation.ended_count / wall_s, 1) if wall_s > 0 else 0.0,
        )
        sys.stderr.write(msgspec.json.encode(line).decode() + "\n")
        sys.stderr.flush()


def parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:<11} {make(1.0).about}" for name, make in SCENARIOS.items())
    made = argparse.ArgumentParser(
        prog="python -m llorch_scheduler.simulator",
        description="Run the scheduler's core against a simulated cluster.",
        epilog=f"scenarios:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("scenario", metavar="SCENARIO")
    made.add_argument("--seed", type=int, default=1, metavar="N", help="equal seeds give equal bytes (default 1)")
    made.add_argument("--tasks", type=int, metavar="N", help="how many tasks arrive (default: the scenario's)")
    made.add_argument("--scale", type=float, default=1.0, metavar="F", help="times the load; the fleet grows with it")
    made.add_argument("--trace", type=Path, metavar="FILE", help="replay a CSV trace (Azure LLM inference, BurstGPT)")
    made.add_argument("--json", type=Path, metavar="FILE", help="where the result goes (default: -, standard output)")
    made.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    made.add_argument("--progress", choices=("json", "none"), default="none", help="lines on standard error")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    given = parser().parse_args(arguments)
    try:
        wanted = _scenario(given)
        simulation = Simulation(wanted, given.seed)
    except (ScenarioError, TraceError) as error:
        return _say(str(error), USAGE)
    except (OSError, UnicodeDecodeError) as error:
        return _say(f"the trace cannot be read: {error}", USAGE)
    watch = _Watch(told=given.progress == "json")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, watch.stop)
    simulation.run(watch.going)
    if given.progress == "json":
        watch.tell(simulation)
    result = summarise(simulation, scale=given.scale)
    try:
        if given.html is not None:
            given.html.write_text(page(result), encoding="utf-8")
        if given.json not in (None, STDOUT):
            given.json.write_bytes(encode(result))
        else:
            sys.stdout.buffer.write(encode(result))
            sys.stdout.flush()
    except OSError as error:
        return _say(f"the result cannot be written: {error}", FAILED)
    return INTERRUPTED if result.partial else OK


def _scenario(given: argparse.Namespace) -> Scenario:
    """Raises ScenarioError, TraceError, OSError, UnicodeDecodeError."""
    wanted = scenario(given.scenario, scale=given.scale, tasks=given.tasks)
    if given.trace is None:
        return wanted
    with given.trace.open(encoding="utf-8", newline="") as lines:
        trace = read_trace(lines, given.trace.name)
    recorded = replayed(wanted, trace)
    if given.tasks is None:
        return recorded
    return msgspec.structs.replace(recorded, tasks=min(given.tasks, recorded.tasks))


def _say(problem: str, code: int) -> int:
    sys.stderr.write(f"simulator: {problem}\n")
    return code
