"""Asks the server for its time now and then: every answer about a stream tells it (`wall_clock.py`)."""

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Protocol

from llorch_shared.bus.port import BusError, StreamState
from llorch_shared.wall_clock import CLOCK, steady_ns

log = logging.getLogger(__name__)

EVERY_S: Final = 5.0
TOLD_MS: Final = 500
"""A clock that was set by less is not worth a line."""


class _Streams(Protocol):
    async def state(self, stream: str) -> StreamState: ...


def unix_ms(stamp: str) -> int:
    """Of a time as the server writes it."""
    return round(datetime.fromisoformat(stamp).timestamp() * 1000)


def hear(name: str, reply: Mapping[str, Any], asked_ns: int) -> None:
    """What an answer of `$JS.API` tells of the time, if it does."""
    if not (stamp := reply.get("ts")):
        return
    set_ms = CLOCK.heard(unix_ms(stamp), asked_ns, steady_ns())
    if abs(set_ms) >= TOLD_MS:
        way = "ahead of" if set_ms > 0 else "behind"
        log.warning("%s: the bus's clock is %.1f s %s this process's, which follows it", name, abs(set_ms) / 1000, way)


class ClockWatch:
    """One per connection."""

    def __init__(self, name: str, streams: _Streams) -> None:
        self._name: Final = name
        self._streams: Final = streams
        self._task: asyncio.Task[None] | None = None

    def start(self, stream: str) -> None:
        """From now on; `stream` is one that stands. Once started it goes on."""
        if self._task is None:
            self._task = asyncio.create_task(self._watch(stream), name=f"{self._name}: clock")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self, stream: str) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self._streams.state(stream)
            except BusError as error:
                log.debug("%s: the bus does not tell its time: %s", self._name, error)
