"""Keeps this node's keys alive in the registry: each is told again every second, and at once when it changed.

One writer per key, latest record wins: a record is made when it is about to be stored, never queued. While the bus is
away nothing piles up, and the first thing after a reconnect is to tell everything again. Every renewal that the server
has confirmed is told to the node's fence, with the time at which it began.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from llorch_poold.outlet import fence_clock
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.wire.version import Kind, version_headers

log = logging.getLogger(__name__)

STORE_TIMEOUT_S: Final = 1.5
RETRY_S: Final = 0.1

Make = Callable[[], Any]
"""The record as it is now."""
Confirmed = Callable[[str, float], None]
"""(key, start of the renewal in seconds of the fence's clock)."""
Left = Callable[[str], None]


class Registrar:
    """One task per key."""

    def __init__(self, bus: Bus, *, confirmed: Confirmed, left: Left) -> None:
        self._bus: Final = bus
        self._confirmed: Final = confirmed
        self._left: Final = left
        self._wake: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def keep(self, key: str, make: Make) -> None:
        """Tell `key` from now on."""
        self._wake[key] = asyncio.Event()
        self._wake[key].set()
        self._tasks[key] = asyncio.create_task(self._keep(key, make), name=f"registry {key}")

    def tell(self, key: str) -> None:
        """It changed: tell it now."""
        if wake := self._wake.get(key):
            wake.set()

    def tell_all(self) -> None:
        for wake in self._wake.values():
            wake.set()

    async def leave(self, key: str, last: Any) -> None:
        """Tell `last`, then let the key expire."""
        task = self._tasks.pop(key, None)
        self._wake.pop(key, None)
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._left(key)
        try:
            await self._store(key, last)
        except BusError as error:
            log.debug("the last word of %s was not stored: %s", key, error)

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        self._wake.clear()

    async def _keep(self, key: str, make: Make) -> None:
        wake = self._wake[key]
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(streams.REGISTRY_RENEW_S):
                    await wake.wait()
            wake.clear()
            started = fence_clock()
            try:
                await self._store(key, make())
            except BusError as error:
                log.debug("registry key %s: %s", key, error)
                await asyncio.sleep(RETRY_S)
                wake.set()
            else:
                self._confirmed(key, started)

    async def _store(self, key: str, record: Any) -> None:
        await self._bus.store(
            subjects.registry(key),
            msgspec.json.encode(record),
            headers=version_headers(Kind.REGISTRY),
            ttl_s=streams.REGISTRY_TTL_S,
            timeout_s=STORE_TIMEOUT_S,
        )
