"""Knows where in which life of the token log a stream that begins now lies (`core.token_mark`).

Asked now and then and after a reconnect, never for a task: a mark that is a little old is only less than it could be.
"""

import logging
from typing import Final

from llorch_poold.core.token_mark import NOT_KNOWN, mark_of
from llorch_shared import streams
from llorch_shared.bus.port import Bus, BusError, StreamState

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 5.0


class TokenLog:
    """One per node. A `mark` of a life that is over promises nothing later."""

    def __init__(self, bus: Bus) -> None:
        self._bus: Final = bus
        self.mark = NOT_KNOWN

    async def state(self) -> StreamState:
        """Raises BusError."""
        return await self._bus.stream_state(streams.TOK)

    async def look(self) -> None:
        try:
            self.mark = mark_of(await self.state())
        except BusError as error:
            log.debug("the token log is not known now: %s", error)
