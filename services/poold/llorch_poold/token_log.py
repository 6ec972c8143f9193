"""Knows where in which life of the token log a stream that begins now lies (`llorch_shared.token_mark`), and when the
log may lack what was published: in a cluster nothing is stored between the loss of its leader and the next election.

Asked now and then and after a reconnect, never for a task: a mark that is a little old is only less than it could be.
"""

import logging
from typing import Final

from llorch_shared import streams
from llorch_shared.bus.port import Bus, BusError, StreamState
from llorch_shared.token_mark import NOT_KNOWN, mark_of

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 5.0
LOOK_AGAIN_S: Final = 1.0
"""After one in vain. A reader looks for missing tokens for 15 s, an election may take 9."""


class TokenLog:
    """One per node. A `mark` of a life that is over promises nothing later."""

    def __init__(self, bus: Bus) -> None:
        self._bus: Final = bus
        self.mark = NOT_KNOWN
        self.seen = False
        """Whether the last look was answered."""
        self._leader = ""
        """Who led when it was last sure that nothing is missing; empty where there is only one server."""

    async def state(self) -> StreamState:
        """Raises BusError."""
        return await self._bus.stream_state(streams.TOK)

    async def look(self) -> bool:
        """Whether what was published lately may be missing."""
        before = self._leader
        try:
            state = await self.state()
        except BusError as error:
            log.debug("the token log is not known now: %s", error)
            self.seen = False
            return False
        missed = bool(before) and (state.leader != before or not self.seen)
        self.seen, self._leader, self.mark = True, state.leader or before, mark_of(state)
        return missed and bool(state.leader)
