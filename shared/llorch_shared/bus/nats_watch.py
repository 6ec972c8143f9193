"""Asks the server about a stream now and then, for two things that the answer tells: its time (`wall_clock.py`), and
that the stream has a leader as this server sees it.

A server of a cluster that is cut off from the rest goes on answering pings, takes core messages, and stores nothing.
Who is connected to it would wait as long as the cut lasts. So the connection is given up for the next server when
this one knows no leader for longer than an election takes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final, Protocol

from llorch_shared.bus.port import BusError, StreamState
from llorch_shared.wall_clock import CLOCK, steady_ns

log = logging.getLogger(__name__)

EVERY_S: Final = 5.0
AGAIN_S: Final = 1.0
"""After a question without an answer."""
ALONE_S: Final = 12.0
"""Since a leader was seen, who is asked for every five seconds. An election takes up to seven, at every server."""
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


class ServerWatch:
    """One per connection. `leave` gives the connection up; None where there is no other server."""

    def __init__(self, name: str, streams: _Streams, *, leave: Callable[[], Awaitable[None]] | None) -> None:
        self._name: Final = name
        self._streams: Final = streams
        self._leave: Final = leave
        self._clustered = False
        """A leader was named once. A server without a cluster names none."""
        self._task: asyncio.Task[None] | None = None

    def start(self, stream: str) -> None:
        """From now on; `stream` is one that stands. Once started it goes on."""
        if self._task is None:
            self._task = asyncio.create_task(self._watch(stream), name=f"{self._name}: server watch")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self, stream: str) -> None:
        clock = asyncio.get_running_loop().time
        led = clock()
        while True:
            wait_s = EVERY_S
            if await self._is_led(stream):
                led = clock()
            elif self._leave is not None and self._clustered:
                wait_s = AGAIN_S
                if clock() - led >= ALONE_S:
                    log.warning("%s: its server has no leader of %s, another is tried", self._name, stream)
                    led = clock()
                    await self._leave()
            await asyncio.sleep(wait_s)

    async def _is_led(self, stream: str) -> bool:
        try:
            state = await self._streams.state(stream)
        except BusError as error:
            log.debug("%s: nothing is told of %s: %s", self._name, stream, error)
            return False
        self._clustered = self._clustered or bool(state.leader)
        return bool(state.leader)
