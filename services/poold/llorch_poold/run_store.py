"""Compare-and-set on a run record, through bus outages.

An answer that got lost may hide a success: before trying again the stored record is compared with ours. Tried until
the bus answers; what bounds it is the caller's life, and the pause between tries.
"""

import asyncio
import logging
from typing import Final

import msgspec

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, Denied, Message, TooLarge, WrongSequence
from llorch_shared.wire.run import Placement, RunRecord, decode_run
from llorch_shared.wire.version import Kind, Unreadable, version_headers

log = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 2.0


class NotStorable(Exception):
    """The server will never take this record."""


def is_overtaken(stored: Message | None, run: RunRecord, seq: int, *, storing: bool) -> bool:
    """Whether somebody else has written the record since it stood at `seq` as `run`. `storing`: what was written may
    also be this attempt's own end."""
    if stored is None or stored.seq <= seq:
        return False
    if not storing:
        return True
    try:
        record = decode_run(stored.data, stored.headers)
    except Unreadable:
        return True
    return record.attempt - record.preemptions > run.attempt - run.preemptions


class RunStore:
    """The run records of the tasks of this node."""

    def __init__(self, bus: Bus) -> None:
        self._bus: Final = bus

    async def swap(self, record: RunRecord, expect_seq: int) -> int | None:
        """Store `record` if its subject still stands at `expect_seq`. Its new sequence, or None when somebody else
        wrote. Raises NotStorable."""
        subject = subjects.run(record.task_id)
        data = msgspec.json.encode(record)
        headers = version_headers(Kind.RUN, record.request)
        unsure = False
        delay = RETRY_FIRST_S
        while True:
            try:
                return (await self._bus.store(subject, data, expect_seq=expect_seq, headers=headers)).seq
            except WrongSequence:
                current = await self._last(subject)
                return current.seq if unsure and current is not None and current.data == data else None
            except (TooLarge, Denied) as error:
                raise NotStorable(str(error)) from error
            except BusError as error:
                unsure = True
                log.debug("run record of %s waits for the bus: %s", record.task_id, error)
            await asyncio.sleep(delay)
            delay = min(RETRY_MAX_S, delay * 2)

    async def claim(self, record: RunRecord, placement: Placement) -> int | None:
        """`swap` for what was placed. It may have been recorded as placed while its placement was under way. Raises
        NotStorable."""
        seq = await self.swap(record, placement.run_seq)
        if seq is None and not placement.run_seq and (stands := await self._stands(placement.run)) is not None:
            return await self.swap(record, stands)
        return seq

    async def _stands(self, run: RunRecord) -> int | None:
        """Where `run` is the stored record; None when another is."""
        message = await self._last(subjects.run(run.task_id))
        if message is None:
            return None
        try:
            stored = decode_run(message.data, message.headers)
        except Unreadable:
            return None
        return message.seq if stored == run else None

    async def cancel_wish(self, task_id: str) -> Message | None:
        """The stored wish to cancel a task, if there is one. Raises BusError."""
        return await self._bus.last(streams.RUN, subjects.cancel(task_id))

    async def current(self, task_id: str) -> Message | None:
        """The stored run record. Raises BusError."""
        return await self._bus.last(streams.RUN, subjects.run(task_id))

    async def _last(self, subject: str) -> Message | None:
        delay = RETRY_FIRST_S
        while True:
            try:
                return await self._bus.last(streams.RUN, subject)
            except Denied as error:
                raise NotStorable(str(error)) from error
            except BusError as error:
                log.debug("reading %s waits for the bus: %s", subject, error)
            await asyncio.sleep(delay)
            delay = min(RETRY_MAX_S, delay * 2)
