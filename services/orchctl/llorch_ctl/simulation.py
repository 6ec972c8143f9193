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
from llorch_shared.wire.simulated import Comparison, Result, SimulatorProgress
from llorch_shared.with_parent import with_parent

SAID_LINES_MAX: Final = 20
"""Lines of the child kept for the message when it fails."""


_RESULT: Final = msgspec.json.Decoder(Result)
_COMPARISON: Final = msgspec.json.Decoder(Comparison)
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


def read(document: bytes) -> Result:
    return _RESULT.decode(document)


def read_comparison(document: bytes) -> Comparison:
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
