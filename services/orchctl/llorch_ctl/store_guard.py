"""Listens to a supervised nats-server, watches the disk under its store, and has it started again when that helps.

Until then nothing is stored: gateways refuse new tasks (503), nodes are silent and keep what their engines say. When
is decided in `core.store_watch`; a disk that cannot be asked counts as full.
"""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from llorch_ctl.core.store_watch import MIB, StoreWatch, WatchPolicy

LOOK_EVERY_S: Final = 0.5
SAY_AGAIN_S: Final = 60.0
_STORE: Final = re.compile(rb'\[INF\]\s+Store Directory:\s+"(?P<path>[^"]+)"')
_READY: Final = b"[INF] Server is ready"

Say = Callable[[str, str], None]
"""A sentence and its level."""


class StoreGuard:
    """The listener of a nats-server's process (`keeper.Listener`); `run` for as long as it is supervised."""

    def __init__(self, name: str, say: Say, restart: Callable[[], Awaitable[None]], policy: WatchPolicy) -> None:
        self._name: Final = name
        self._say: Final = say
        self._restart: Final = restart
        self._policy: Final = policy
        self._watch: Final = StoreWatch(policy)
        self._failed: Final = asyncio.Event()
        self.store: Path | None = None
        """Where this life of the server stores, by its own word."""
        self.is_ready = False

    def begun(self) -> None:
        self._watch.begun()
        self._failed.clear()
        self.is_ready = False

    def heard(self, line: bytes) -> None:
        if found := _STORE.search(line):
            self.store = Path(os.fsdecode(found["path"]))
        if line.endswith(_READY):
            self.is_ready = True
        if failure := self._watch.heard(line):
            self._failed.set()
            self._say(
                f"{self._name} stores nothing more in {failure.part}: {failure.reason}. New tasks are refused until "
                f"{self.store} has {self._policy.room_bytes // MIB} MiB free; then it is started again",
                "error",
            )

    async def run(self) -> None:
        said = time.monotonic()
        while True:
            if not self._failed.is_set():
                await self._failed.wait()
                said = time.monotonic()
            free = await asyncio.to_thread(_free_bytes, self.store)
            now = time.monotonic()
            if self._watch.look(free, now):
                times = f"time {self._watch.restarts}"
                self._say(f"{self._name} is started again: {free // MIB} MiB are free ({times})", "warning")
                await self._restart()
            elif now - said >= SAY_AGAIN_S and self._failed.is_set():
                said, wait_s = now, self._watch.wait_s(now)
                why = f", the next restart may be in {wait_s:.0f} s" if wait_s else ""
                self._say(f"{self._name} still stores nothing: {free // MIB} MiB are free{why}", "error")
            await asyncio.sleep(LOOK_EVERY_S)


def _free_bytes(folder: Path | None) -> int:
    """What an ordinary user may still write there; 0 when nobody knows."""
    try:
        disk = os.statvfs(folder) if folder is not None else None
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize if disk is not None else 0
