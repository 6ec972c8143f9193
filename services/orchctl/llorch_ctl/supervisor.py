"""Runs processes: starts them, knows when they are ready, ends them in order and leaves none behind.

What is run is data (`ProcessSpec`). One task per process owns its whole life (`keeper.py`).
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

from llorch_ctl.core.supervision import Phase
from llorch_ctl.exits import Problem
from llorch_ctl.keeper import KILLED_WAIT_S, Keeper, ProcessSpec
from llorch_ctl.logfiles import LogFile, LogView
from llorch_shared.lifecycle import first_of


class Supervisor:
    """Use as an async context manager: leaving it ends every process, newest first."""

    def __init__(self, log_dir: Path | None, view: LogView) -> None:
        """Without `log_dir` lines are shown and not kept."""
        self._log_dir: Final = log_dir
        self._view: Final = view
        self._kept: dict[str, Keeper] = {}
        self.given_up: Final = asyncio.Event()
        """Set when a process is not started again: the system cannot be whole."""

    async def __aenter__(self) -> "Supervisor":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def start(self, spec: ProcessSpec) -> None:
        path = self._log_dir / f"{spec.name}.log" if self._log_dir is not None else None
        keeper = Keeper(spec, LogFile(path), self._view, self.given_up)
        self._kept[spec.name] = keeper
        keeper.task = asyncio.create_task(keeper.run(), name=f"keep {spec.name}")

    async def ready(self, names: Iterable[str]) -> None:
        """Return when each of `names` has become ready. Raises Problem when one is given up first."""
        for name in names:
            keeper = self._kept[name]
            await first_of(keeper.ready.wait(), self.given_up.wait())
            if not keeper.ready.is_set():
                raise self.problem()

    def problem(self) -> Problem:
        """Why a process was given up, with the last lines it wrote."""
        for keeper in self._kept.values():
            if keeper.life.phase is Phase.FAILED:
                tail = "\n".join(f"    {line}" for line in list(keeper.log.tail)[-12:])
                return Problem(
                    f"{keeper.spec.name} does not start: {keeper.last_end}" + (f"\n{tail}" if tail else ""),
                    fix=f"its whole log: {keeper.log.path}" if keeper.log.path is not None else "",
                )
        return Problem("a process was given up")

    def lives(self) -> dict[str, tuple[Phase, int, int]]:
        """name -> (phase, pid or 0, restarts)."""
        return {name: (keeper.life.phase, keeper.pid, keeper.life.restarts) for name, keeper in self._kept.items()}

    async def restart(self, name: str) -> None:
        """End a process, within its limit, to have it started again at once. Returns when it has ended."""
        await self._kept[name].restart()

    def reload(self, name: str) -> None:
        """Have a process read its configuration again (SIGHUP)."""
        self._kept[name].signal(signal.SIGHUP)

    def kill_now(self) -> None:
        """SIGKILL to all: the second Ctrl-C."""
        for keeper in self._kept.values():
            keeper.signal(signal.SIGKILL)

    async def stop(self) -> list[str]:
        """End every process, newest first, each within its own limit. Returns what had to be killed, by name."""
        family = descendants()
        killed = []
        for name in reversed(list(self._kept)):
            if not await self._kept[name].stop():
                killed.append(name)
        self._kept.clear()
        left = await asyncio.to_thread(_reap, family)
        return killed + left


def descendants() -> list[psutil.Process]:
    """Every process below this one, now; psutil compares start times, so a reused pid is not mistaken for it."""
    return psutil.Process(os.getpid()).children(recursive=True)


def _reap(family: list[psutil.Process]) -> list[str]:
    """Wait a moment for `family` to be gone, kill what is left; returns the killed as `name (pid)`."""
    _, alive = psutil.wait_procs(family, timeout=2)
    killed = []
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            killed.append(f"{process.name()} ({process.pid})")
            process.kill()
    psutil.wait_procs(alive, timeout=KILLED_WAIT_S)
    return killed
