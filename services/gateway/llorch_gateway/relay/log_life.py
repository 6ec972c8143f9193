"""Knows which life of the token log the bus has now, so that a stream is read from where it begins and not from the
beginning of the log: the server looks at every message between.

The log is memory: another life may follow each loss of the connection, so what was known is forgotten with it. In a
cluster it follows each election, too, of which nobody is told: so it is asked for now and then, and forgotten when the
cluster has lost or found a server.
"""

import asyncio
import logging
from typing import Final

from llorch_shared import streams
from llorch_shared.bus.port import Bus, BusError

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 5.0
"""Streams whose mark is of another life than the one that is known are read from the beginning of the log."""


class LogLife:
    """`now` is empty while it is not known."""

    def __init__(self, bus: Bus) -> None:
        self._bus: Final = bus
        self._losses = 0
        self.now = ""
        bus.on_disconnect(self._forget)
        bus.on_cluster_change(self._forget)
        bus.on_reconnect(self.look)

    def _forget(self) -> None:
        self._losses += 1
        self.now = ""

    async def keep(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        losses = self._losses
        try:
            life = (await self._bus.stream_state(streams.TOK)).life
        except BusError as error:
            log.info("the token log is not known now, streams are looked for in all of it: %s", error)
            return
        if losses == self._losses:
            self.now = life
