"""Sessions that have ended and whose text an engine of this node still holds: found, and given to its replica to erase.

A deletion is heard at once. What is stored is the truth: it is read for every session whose text is held, every
`LOOK_EVERY_S` and whenever the bus comes back, so that a deletion nobody here heard of is found, and the end of one
that had no task for its TTL. While the bus is away only the pool's own TTL is known.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from llorch_poold.core.session_end import has_ended
from llorch_poold.core.slot_memory import Session, Use
from llorch_poold.node_context import NodeContext
from llorch_poold.replica import Replica
from llorch_shared import streams, subjects
from llorch_shared.bus.port import BusError, Message
from llorch_shared.errors import OrchError
from llorch_shared.readable import UNREADABLE, readable
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.session import SESSION_ENDED_DECODER, SessionRecord, SessionsSpec

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 30.0


class SessionEnds:
    """`policies` are those of the present specification."""

    def __init__(
        self, node: NodeContext, replicas: Callable[[], Iterable[Replica]], policies: Callable[[], SessionsSpec]
    ) -> None:
        self._node: Final = node
        self._replicas: Final = replicas
        self._policies: Final = policies
        self._soon: Final = asyncio.Event()

    async def start(self) -> None:
        """Raises BusError."""
        await self._node.bus.subscribe(subjects.SESSION_ENDED, self._on_ended)

    def look_soon(self) -> None:
        self._soon.set()

    async def look_always(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._soon.wait()
            except TimeoutError:
                log.debug("it is time to look for sessions that have ended")
            self._soon.clear()
            for replica in list(self._replicas()):
                await self._look_at(replica)

    async def _look_at(self, replica: Replica) -> None:
        """One question, or two, for each session whose text is held."""
        for session, use in replica.slots.sessions().items():
            if await self._has_ended(session, use, replica.spec.affinity.ttl_ms):
                replica.slots.session_ended(session.session_id, session.tenant)
        replica.slots.sweep()

    async def _has_ended(self, session: Session, use: Use, ttl_ms: int) -> bool:
        account, deleted_ms = await self._stored(session)
        return has_ended(
            use,
            account=account,
            deleted_ms=deleted_ms,
            policy=self._policies().of(session.tenant),
            ttl_ms=ttl_ms,
            now_ms=now_ms(),
        )

    async def _stored(self, session: Session) -> tuple[SessionRecord | None, int]:
        """Its account, or when it was deleted without one; neither where nobody tells."""
        tenant, session_id = session
        try:
            if (known := await self._node.sessions.read(tenant, session_id)) is not None:
                return known.record, 0
            message = await self._node.bus.last(streams.SES, subjects.session_deleted(tenant, session_id))
        except (BusError, OrchError) as error:
            log.debug("what is stored of session %s is not known: %s", session_id, error)
            return None, 0
        if message is None or message.deleted:
            return None, 0
        ended = readable(SESSION_ENDED_DECODER, message.data, f"the deletion at {message.subject}")
        return None, ended.at_ms if ended is not None else 0

    def _on_ended(self, message: Message) -> None:
        try:
            ended = SESSION_ENDED_DECODER.decode(message.data)
        except UNREADABLE as error:
            log.warning("that a session has ended cannot be read, and is looked for: %s", error)
            self._soon.set()
            return
        for replica in self._replicas():
            replica.slots.session_ended(ended.session_id.lower(), ended.tenant)
            replica.slots.sweep()
