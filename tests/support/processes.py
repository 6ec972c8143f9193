"""A process of ours under test: started with a log file, killed or stopped by pid, its last lines shown on failure."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from llorch_shared.with_parent import with_parent

LOG_TAIL_BYTES = 6_000


class ProcessDied(AssertionError):
    """A process ended that should still run; the message carries the end of its log."""


class ServiceProcess:
    """`python -m <module>`, which dies with the test run. May be started again after it was killed or stopped."""

    def __init__(
        self, name: str, arguments: Sequence[str], *, folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.arguments = list(arguments)
        self.log_path = folder / f"{name}.log"
        self.environment = dict(environment or {})
        self.starts = 0
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._popen is not None, f"{self.name} was never started"
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        return None if self._popen is None else self._popen.poll()

    def start(self) -> None:
        assert not self.running, f"{self.name} runs already"
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                with_parent([sys.executable, "-m", *self.arguments]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_clean_environment() | self.environment,
            )
        self.starts += 1

    def kill9(self) -> None:
        """SIGKILL, and wait until the kernel has taken the process away."""
        assert self._popen is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._popen.pid, signal.SIGKILL)
        self._popen.wait(10)

    def handles(self, number: signal.Signals) -> bool:
        """Whether it has a handler for this signal. One that is still starting has none, and dies of it."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)

    def signal(self, number: signal.Signals) -> None:
        assert self._popen is not None
        self._popen.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        if self.running:
            assert self._popen is not None
            self._popen.terminate()

    def stop(self, deadline_s: float = 10) -> int:
        """SIGTERM, then SIGKILL after `deadline_s`. Returns the exit code; -9 says that it did not stop by itself."""
        self.terminate()
        return self.finish(deadline_s)

    def finish(self, deadline_s: float = 10) -> int:
        """Wait for a process that was asked to stop, SIGKILL after `deadline_s`. Returns the exit code."""
        assert self._popen is not None
        try:
            return self._popen.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill9()
            return -signal.SIGKILL

    def wait(self, deadline_s: float) -> int:
        assert self._popen is not None
        return self._popen.wait(deadline_s)

    def check_alive(self) -> None:
        if not self.running:
            raise ProcessDied(f"{self.name} ended with {self.exit_code}\n{self.tail()}")

    def tail(self) -> str:
        if not self.log_path.exists():
            return f"--- {self.name}: no log\n"
        data = self.log_path.read_bytes()[-LOG_TAIL_BYTES:]
        return (
            f"--- {self.name} (pid {self._popen.pid if self._popen else '-'}, exit {self.exit_code})\n"
            + data.decode(errors="replace")
        )

    def cpu_seconds(self) -> float:
        """User and system time this process has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children_of(pid: int) -> list[int]:
    """Direct children of a process, oldest first."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(text) for text in task.read_text().split()]
    return sorted(found)


def ports_of(pid: int) -> list[int]:
    """TCP ports on which a process or one of its children listens."""
    family = (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))
    links = [link for process in family for link in process.net_connections("tcp")]
    return [link.laddr.port for link in links if link.status == psutil.CONN_LISTEN]


def gone(pids: Sequence[int], deadline_s: float) -> bool:
    """True once none of `pids` runs any more (a zombie does not run)."""
    deadline = time.monotonic() + deadline_s
    while any(_runs(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def _clean_environment() -> dict[str, str]:
    """The surroundings without what would set one of our settings or secrets."""
    ours = ("LLORCH_", "ORCHD_", "NATS_", "AUTH_", "BIND_ADDR", "TRUST_PROXY_AUTH", "CANCEL_ON_DISCONNECT")
    return {key: value for key, value in os.environ.items() if not key.startswith(ours)}
