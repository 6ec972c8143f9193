"""Stores audit records in order, each linked to the one before it, until they stand.

The chain only goes on from what stands. A batch whose answer got lost is looked for, and else sent again as it was,
under the same message id: what was under way all the time is refused by the server, and counts as stored.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

from llorch_shared import streams
from llorch_shared.audit_chain import Chain
from llorch_shared.bus.port import Bus, BusError, Duplicate, TooLarge, WrongSequence
from llorch_shared.wall_clock import now_ms

log = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 5.0
LOOKS_MAX: Final = 64
"""Records looked for at once."""


class Entry(NamedTuple):
    subject: str
    data: bytes
    """The record, not linked yet."""
    once: bool = False
    """Not to be stored when its subject holds a record already."""


class AuditWriter:
    """The life of one process. One call at a time."""

    def __init__(self, bus: Bus, actor: str) -> None:
        self._bus: Final = bus
        self._chain: Final = Chain(actor)

    async def store(self, wanted: Sequence[Entry]) -> None:
        """Returns when all stand that are to be stored, however long the bus is away. One that is over the server's
        limit is logged as lost and has no number."""
        batch = _said_once(wanted)
        delay, uncertain = RETRY_FIRST_S, False
        while batch:
            messages = self._chain.link([(entry.subject, entry.data) for entry in batch])
            try:
                await self._send(batch, messages)
                break
            except WrongSequence:
                if uncertain and await self._stands(messages[-1]):
                    break
                known = await self._known(batch)
                batch = [entry for entry in batch if entry.subject not in known]
                if known:
                    continue
            except TooLarge as error:
                await self._store_apart(batch, error)
                return
            except BusError as error:
                uncertain = True
                log.warning("%d audit records wait, again in %.1f s: %s", len(batch), delay, error)
            await asyncio.sleep(delay)
            if uncertain and await self._stands(messages[-1]):
                break
            delay = min(RETRY_MAX_S, delay * 2)
        if batch:
            self._chain.stored()

    async def close(self) -> None:
        """Store the closing record, if there is anything to close."""
        if self._chain.number:
            await self.store([Entry(*self._chain.closing(now_ms()))])

    async def _send(self, batch: list[Entry], messages: list[tuple[str, bytes]]) -> None:
        """Returns, too, when the server has stored it before."""
        msg_id = self._chain.next_id
        if len(batch) == 1:
            ((subject, data),) = messages
            await self._bus.store(subject, data, msg_id=msg_id, expect_seq=0 if batch[0].once else None)
            return
        new = frozenset(entry.subject for entry in batch if entry.once)
        try:
            await self._bus.store_batch(messages, new=new, msg_id=msg_id)
        except Duplicate:
            log.info("a batch of audit records stands already: %s", msg_id)

    async def _store_apart(self, batch: list[Entry], error: TooLarge) -> None:
        if len(batch) == 1:
            log.error("an audit record is over the server's limit and not stored: %s %s", batch[0].subject, error)
            return
        for one in batch:
            await self.store([one])

    async def _known(self, batch: list[Entry]) -> frozenset[str]:
        """Subjects of records that are to be stored once and stand already, as far as that can be told now. Looked for
        many at a time: meanwhile others say the same, and the batch is refused again."""
        known: set[str] = set()
        once = [entry.subject for entry in batch if entry.once]
        for first in range(0, len(once), LOOKS_MAX):
            subjects = once[first : first + LOOKS_MAX]
            found = await asyncio.gather(*map(self._is_known, subjects))
            known.update(subject for subject, stands in zip(subjects, found, strict=True) if stands)
        return frozenset(known)

    async def _is_known(self, subject: str) -> bool:
        try:
            return await self._bus.last(streams.AUD, subject) is not None
        except BusError as error:
            log.info("%s cannot be looked for now: %s", subject, error)
            return False

    async def _stands(self, message: tuple[str, bytes]) -> bool:
        """Whether the last of a batch is stored: then the whole batch is. Others may have written there since."""
        subject, data = message
        try:
            last = await self._bus.last(streams.AUD, subject)
            if last is None or last.data == data:
                return last is not None
            return any(each.data == data for each in await self._bus.replay(streams.AUD, subject))
        except BusError:
            return False


def _said_once(batch: Sequence[Entry]) -> list[Entry]:
    """Of what is to be stored once, the first in the batch."""
    said: set[str] = set()
    kept = []
    for entry in batch:
        if not (entry.once and entry.subject in said):
            kept.append(entry)
        said.add(entry.subject)
    return kept
