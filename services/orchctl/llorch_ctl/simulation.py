"""Runs the scheduler's simulator as a process of its own and reads what it found. Services do not import each other.

The child has a session of its own, so that Ctrl-C reaches only this process, which passes it on once: the child then
ends with what it has. A second one kills it. It dies with this process, too.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

import msgspec

from llorch_ctl.exits import Exit, Problem
from llorch_shared.lifecycle import with_parent

SAID_LINES_MAX: Final = 20
"""Lines of the child kept for the message when it fails."""


class SimulatorProgress(msgspec.Struct, frozen=True, kw_only=True):
    tasks: int
    ended: int
    simulated_s: float
    wall_s: float
    tasks_per_s: float


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    p50: float
    p95: float
    p99: float


class Group(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    priority: str
    arrived: int
    done: int
    gave_up: int
    infeasible: int
    dropped: int
    expired: int
    due: int
    met: float
    wait_ms: Quantiles


class SimulatedPool(msgspec.Struct, frozen=True, kw_only=True):
    pool_id: str
    replicas: int
    slots: int
    utilisation: float
    tokens_per_s: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    tasks: int
    error_median_ms: float
    error_median_ratio: float


class Returns(msgspec.Struct, frozen=True, kw_only=True):
    tries: int
    admitted: int
    promised: int
    promised_admitted: int


class Fairness(msgspec.Struct, frozen=True, kw_only=True):
    priority: str
    jain_mean: float | None
    jain_least: float | None
    share_deviation: float


class Simulated(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the simulator's result that is shown at a terminal."""

    scenario: str
    about: str
    seed: int
    partial: bool
    simulated_s: float
    arrived: int
    outcomes: dict[str, int]
    refusals: int
    returns: Returns
    preemptions: int
    fairness: tuple[Fairness, ...]
    requeues: dict[str, int]
    tokens_per_s: float
    utilisation: float
    prediction: Prediction
    classes: tuple[Group, ...]
    tenants: tuple[Group, ...]
    pools: tuple[SimulatedPool, ...]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    wait_p50_ms: float
    wait_p95_ms: float
    sent_away: int
    refused: int
    late: int
    missed: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    priority: str
    tasks: int
    recorded: Outcome | None
    present: Outcome
    other: Outcome | None


class Reproduction(msgspec.Struct, frozen=True, kw_only=True):
    tasks: int
    error_median_ms: float
    recorded_mean_ms: float
    simulated_mean_ms: float


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the simulator's comparison that is shown at a terminal."""

    about: str
    partial: bool
    left_out: dict[str, int]
    reproduction: Reproduction | None
    rows: tuple[Row, ...]


_RESULT: Final = msgspec.json.Decoder(Simulated)
_COMPARISON: Final = msgspec.json.Decoder(Compared)
_PROGRESS: Final = msgspec.json.Decoder(SimulatorProgress)


def simulate(arguments: Sequence[str], result: Path, told: Callable[[SimulatorProgress], None]) -> tuple[int, bytes]:
    """Run it to its end; the result is written to `result`. Returns the exit code, 0 or 130, and the document, empty
    when it was stopped before it had one. Raises Problem."""
    simulator = (sys.executable, "-m", "llorch_scheduler.simulator")
    argv = with_parent((*simulator, *arguments, "--json", str(result), "--progress", "json"))
    said: list[str] = []
    with _Wishes() as wishes:
        child = subprocess.Popen(  # noqa: S603  (our own interpreter and module, no shell)
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        with child:
            wishes.pass_to(child)
            assert child.stderr is not None
            for line in child.stderr:
                try:
                    told(_PROGRESS.decode(line))
                except msgspec.DecodeError:
                    said = [*said, line.decode(errors="replace").rstrip()][-SAID_LINES_MAX:]
    if child.returncode in (Exit.OK, Exit.INTERRUPTED):
        return child.returncode, result.read_bytes()
    if wishes.count:
        return Exit.INTERRUPTED, b""
    message = "\n".join(said).removeprefix("simulator: ") or f"the simulator ended with {child.returncode}"
    if child.returncode == Exit.USAGE:
        raise Problem(message, fix="see: orchctl simulate --help", exit_code=Exit.USAGE)
    raise Problem(message)


def read(document: bytes) -> Simulated:
    return _RESULT.decode(document)


def read_comparison(document: bytes) -> Compared:
    return _COMPARISON.decode(document)


class _Wishes:
    """Wishes to stop, Ctrl-C or SIGTERM: the first becomes an interrupt of the child, the second kills it."""

    def __init__(self) -> None:
        self.count = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Wishes":
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_to(self, child: "subprocess.Popen[bytes]") -> None:
        self._child = child
        if self.count:
            self._send()

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self._send()

    def _send(self) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGINT if self.count == 1 else signal.SIGKILL)
