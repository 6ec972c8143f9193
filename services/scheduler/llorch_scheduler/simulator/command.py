"""The command line of the simulator: arguments, files, progress on standard error, and Ctrl-C.

The result is JSON on standard output, or in the file that `--json` names: a `Result`, or a `Comparison` for a recorded
load or a second policy. Exit code 0 when all tasks ended, 1 when a
file cannot be written, 2 for wrong arguments or files that cannot be read, 130 with the partial result after Ctrl-C
or SIGTERM. This is the only part of the simulator that touches files, signals and the real clock.
"""

import argparse
import gc
import signal
import sys
import time
import tomllib
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec

from llorch_scheduler.build import core_is_compiled
from llorch_scheduler.simulator import comparison
from llorch_scheduler.simulator.comparison import Replaying, compared
from llorch_scheduler.simulator.page import comparison_page, page
from llorch_scheduler.simulator.recording import Recording, RecordingError, read_recording
from llorch_scheduler.simulator.replay import recorded_scenario, with_policy
from llorch_scheduler.simulator.scenario import Scenario, ScenarioError, replayed
from llorch_scheduler.simulator.scenarios import SCENARIOS, scenario
from llorch_scheduler.simulator.simulation import Simulation
from llorch_scheduler.simulator.summary import summarise
from llorch_scheduler.simulator.traces import TraceError, read_trace
from llorch_shared.wire.simulated import Comparison, Result, SimulatorProgress, encode

GC_EVERY: Final = 200_000
"""New objects between two looks for garbage: a simulation holds a million and makes no circles of them."""
PROGRESS_EVERY_S: Final = 0.2
OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
STDOUT: Final = Path("-")


class _Watch:
    """Looks at a running simulation: tells how far it is, and ends it after a signal."""

    def __init__(self, *, told: bool, runs: int) -> None:
        self._runs: Final = runs
        self._ended_before = 0
        self._told: Final = told
        self._began: Final = time.monotonic()
        self._next = self._began
        self._stop = False

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop = True

    def run(self, scenario: Scenario, seed: int) -> Replaying:
        """One simulation, to its end or to the signal. Raises ScenarioError."""
        simulation = Replaying(scenario, seed)
        simulation.run(self.going)
        if self._told:
            self.tell(simulation)
        self._ended_before += simulation.ended_count
        return simulation

    def going(self, simulation: Simulation) -> bool:
        if self._told and time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_EVERY_S
            self.tell(simulation)
        return not self._stop

    def tell(self, simulation: Simulation) -> None:
        wall_s = time.monotonic() - self._began
        ended = self._ended_before + simulation.ended_count
        line = SimulatorProgress(
            tasks=self._runs * simulation.scenario.tasks,
            ended=ended,
            simulated_s=round(simulation.clock.now_ms / 1000, 1),
            wall_s=round(wall_s, 2),
            tasks_per_s=round(ended / wall_s, 1) if wall_s > 0 else 0.0,
            compiled=core_is_compiled(),
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
    made.add_argument("scenario", metavar="SCENARIO", nargs="?")
    made.add_argument("--seed", type=int, default=1, metavar="N", help="equal seeds give equal bytes (default 1)")
    made.add_argument("--tasks", type=int, metavar="N", help="how many tasks arrive (default: the scenario's)")
    made.add_argument("--scale", type=float, default=1.0, metavar="F", help="times the load; the fleet grows with it")
    made.add_argument("--trace", type=Path, metavar="FILE", help="replay a CSV trace (Azure LLM inference, BurstGPT)")
    made.add_argument("--audit", type=Path, metavar="FILE", help="instead of a scenario: a recorded audit stream")
    made.add_argument("--policy", type=Path, metavar="FILE", help="TOML with [[pools]]: compare with this policy")
    made.add_argument("--json", type=Path, metavar="FILE", help="where the result goes (default: -, standard output)")
    made.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    made.add_argument("--progress", choices=("json", "none"), default="none", help="lines on standard error")
    return made


class _Work(msgspec.Struct, frozen=True):
    present: Scenario
    other: Scenario | None
    recording: Recording | None


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    given = parser().parse_args(arguments)
    try:
        work = _work(given)
    except (ScenarioError, TraceError, RecordingError) as error:
        return _say(str(error), USAGE)
    except tomllib.TOMLDecodeError as error:
        return _say(f"{given.policy}: {error}", USAGE)
    except (OSError, UnicodeDecodeError) as error:
        return _say(f"the file cannot be read: {error}", USAGE)
    gc.set_threshold(GC_EVERY)
    watch = _Watch(told=given.progress == "json", runs=2 if work.other else 1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, watch.stop)
    try:
        made = _made(work, watch, given)
    except ScenarioError as error:
        return _say(str(error), USAGE)
    document = comparison.encode(made) if isinstance(made, Comparison) else encode(made)
    try:
        if given.html is not None:
            shown = comparison_page(made) if isinstance(made, Comparison) else page(made)
            given.html.write_text(shown, encoding="utf-8")
        if given.json not in (None, STDOUT):
            given.json.write_bytes(document)
        else:
            sys.stdout.buffer.write(document)
            sys.stdout.flush()
    except OSError as error:
        return _say(f"the result cannot be written: {error}", FAILED)
    return INTERRUPTED if made.partial else OK


def _made(work: _Work, watch: _Watch, given: argparse.Namespace) -> Result | Comparison:
    """Raises ScenarioError. After a signal the second policy is not begun."""
    first = watch.run(work.present, given.seed)
    present = summarise(first, scale=given.scale)
    if work.other is None and work.recording is None:
        return present
    other = None
    if work.other is not None and not first.partial:
        other = summarise(watch.run(work.other, given.seed), scale=given.scale)
    return compared(present, other, recording=work.recording, waits=first.waits)


def _work(given: argparse.Namespace) -> _Work:
    """Raises ScenarioError, TraceError, RecordingError, TOMLDecodeError, OSError, UnicodeDecodeError."""
    recording = None
    if given.audit is not None:
        if given.scenario is not None or given.trace is not None:
            raise ScenarioError("a recorded load is replayed instead of a scenario or a trace, not with one")
        with given.audit.open("rb") as lines:
            recording = read_recording(lines, given.audit.name)
        present = recorded_scenario(recording, given.audit.name)
    elif given.scenario is None:
        raise ScenarioError(f"what is to be simulated? There are {', '.join(SCENARIOS)}, and --audit FILE")
    else:
        present = _scenario(given)
    other = None
    if given.policy is not None:
        with given.policy.open("rb") as policy:
            pools = tomllib.load(policy).get("pools", [])
        if not isinstance(pools, list) or not pools or not all(isinstance(pool, dict) for pool in pools):
            raise ScenarioError(f"{given.policy}: there is no [[pools]] in it")
        other = with_policy(present, pools)
    return _Work(present, other, recording)


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
