"""Knows where in which life of the token log a stream that begins now lies (`llorch_shared.token_mark`), and when the
log may lack what was published, of which nobody is told: in a cluster nothing is stored between the loss of its leader
and the next election, and what passed between two servers is lost with their connection.

Asked now and then and after a reconnect, never for a task: a mark that is a little old is only less than it could be.
While what is published may not reach the log there is no mark: nobody may go on from what the log has of such a stream.
"""

import asyncio
import contextlib
import logging
from typing import Final

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, StreamState
from llorch_shared.token_mark import NOT_KNOWN, mark_of
from llorch_shared.wire.frames import Metrics, encode_metrics

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 5.0
LOOK_AGAIN_S: Final = 1.0
"""While something may be missing. A reader looks for missing tokens for 15 s, an election may take 9."""
PROBE_WAITS_S: Final = (0.02, 0.05, 0.1, 0.3, 0.5)
"""Between a probe and the question for it. A leader answers before all servers know that it listens."""
PROBE_WITHIN_S: Final = 2.0
_PROBE: Final = encode_metrics(Metrics())


class TokenLog:
    """One per node. A `mark` of a life that is over promises nothing later."""

    def __init__(self, bus: Bus, node_id: str) -> None:
        self._bus: Final = bus
        self._probe: Final = subjects.token_probe(node_id)
        self._mark = NOT_KNOWN
        self.sure = True
        """Nothing was heard since the last look by which the log may lack anything, and that look was answered."""
        self._proven = True
        """So far as is known, what is published reaches the log."""
        self._doubted: Final = asyncio.Event()
        self._life = ""
        """Of a cluster's log, as it was last seen; empty where there is only one server."""
        self._last_seq = 0
        bus.on_cluster_change(self.doubt)

    @property
    def mark(self) -> str:
        """Of a stream that begins now."""
        return self._mark if not self._life or (self.sure and self._proven) else NOT_KNOWN

    def doubt(self) -> None:
        """What was published lately may be missing."""
        self.sure = False
        self._doubted.set()

    async def until_due(self) -> None:
        """Wait until it is time to look: soon after something may be missing."""
        if self.sure:
            self._doubted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._doubted.wait()
        if not self.sure:
            await asyncio.sleep(LOOK_AGAIN_S)

    async def state(self) -> StreamState:
        """Raises BusError."""
        return await self._bus.stream_state(streams.TOK)

    async def look(self) -> bool:
        """Whether what was published lately may be missing, and there is a log again that can take it."""
        sure, self.sure = self.sure, True
        try:
            state = await self.state()
        except BusError as error:
            log.debug("the token log is not known now: %s", error)
            self.sure = False
            return False
        before = self._life
        if before and not state.leader:
            self.sure = False
            return False
        self._mark, self._last_seq = mark_of(state), state.last_seq
        self._life = state.life if state.leader else ""
        lacks = bool(state.leader) and (not sure or before not in ("", state.life))
        self._proven = self._proven and not lacks
        return lacks

    async def stores(self) -> bool:
        """Whether what this node publishes from now on reaches the log: something that was published since the last
        look has. Asked of a cluster alone."""
        if not self._life:
            self._proven = True
            return True
        try:
            async with asyncio.timeout(PROBE_WITHIN_S):
                for wait_s in PROBE_WAITS_S:
                    self._bus.publish(self._probe, _PROBE)
                    await asyncio.sleep(wait_s)
                    found = await self._bus.last(streams.TOK, self._probe)
                    if found is not None and found.seq > self._last_seq:
                        self._proven = True
                        return True
        except (BusError, TimeoutError) as error:
            log.debug("the token log does not answer: %r", error)
        return False
