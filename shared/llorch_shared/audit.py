"""Audit records on their way to the audit stream, off the path of the task they are about.

Records wait in a bounded queue and are stored in order, in atomic batches. A record is never dropped silently: when
the queue is full, `record` waits. A batch whose ack got lost is looked for before it is stored again.

That a task was admitted is on the record once, whoever says it again: another gateway, a scheduler that reads the queue
after a takeover, a client that sends the same task days later. The server refuses a second record of it, so the first
one costs nothing.
"""

import asyncio
import logging
from typing import Final, NamedTuple

import msgspec

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, TooLarge, WrongSequence
from llorch_shared.wire.audit import AuditEvent, AuditRecord

log = logging.getLogger(__name__)

QUEUE_MAX: Final = 10_000
BATCH_MAX: Final = 500
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
GATHER_S: Final = 0.05
"""A batch on a file stream costs some milliseconds whatever its size: gather first."""
RETRY_FIRST_S: Final = 0.1
RETRY_MAX_S: Final = 5.0
FAREWELL_S: Final = 5.0

_encode: Final = msgspec.json.Encoder().encode


class _Entry(NamedTuple):
    subject: str
    data: bytes
    once: bool
    """Not to be stored when its subject holds a record already."""


class Audit:
    """One writer per process. `start` before the first record, `close` after the last."""

    def __init__(self, bus: Bus, *, queue_max: int = QUEUE_MAX, gather_s: float = GATHER_S) -> None:
        self._bus: Final = bus
        self._gather_s: Final = gather_s
        self._queue: Final[asyncio.Queue[_Entry]] = asyncio.Queue(queue_max)
        self._held: _Entry | None = None
        self._unstored = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="audit")

    async def record(self, record: AuditRecord) -> None:
        """Returns when the record is queued; waits while the queue is full."""
        subject = subjects.audit(record.event, record.task_id)
        await self._queue.put(_Entry(subject, _encode(record), record.event is AuditEvent.ADMITTED))
        self._unstored += 1

    async def close(self) -> None:
        """Store what is queued, for at most `FAREWELL_S`; what is left is logged as lost."""
        if self._task is None:
            return
        try:
            async with asyncio.timeout(FAREWELL_S):
                await self._queue.join()
        except TimeoutError:
            log.error("%d audit records could not be stored before the end", self._unstored)  # noqa: TRY400
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None

    async def _run(self) -> None:
        while True:
            batch = [self._held or await self._queue.get()]
            self._held = None
            if self._queue.qsize() < BATCH_MAX:
                await asyncio.sleep(self._gather_s)
            size = len(batch[0].data)
            while len(batch) < BATCH_MAX and not self._queue.empty():
                entry = self._queue.get_nowait()
                if size + len(entry.data) > BATCH_BYTES_MAX:
                    self._held = entry
                    break
                batch.append(entry)
                size += len(entry.data)
            await self._store(batch)
            for _ in batch:
                self._queue.task_done()
            self._unstored -= len(batch)

    async def _store(self, wanted: list[_Entry]) -> None:
        """The same batch again until it is stored, so that the order stays."""
        batch = _said_once(wanted)
        delay = RETRY_FIRST_S
        while batch:
            try:
                await self._store_all(batch)
                return
            except WrongSequence:
                known = await self._known(batch)
                batch = [entry for entry in batch if entry.subject not in known]
                if known:
                    continue
            except TooLarge as error:
                if len(batch) == 1:
                    log.error(  # noqa: TRY400
                        "an audit record is over the server's limit and not stored: %s %s", batch[0].subject, error
                    )
                    return
                for one in batch:
                    await self._store([one])
                return
            except BusError as error:
                log.warning("%d audit records wait, again in %.1f s: %s", len(batch), delay, error)
            await asyncio.sleep(delay)
            if await self._is_stored(batch[-1]):
                return
            delay = min(RETRY_MAX_S, delay * 2)

    async def _store_all(self, batch: list[_Entry]) -> None:
        if len(batch) == 1:
            subject, data, once = batch[0]
            await self._bus.store(subject, data, expect_seq=0 if once else None)
        else:
            new = frozenset(entry.subject for entry in batch if entry.once)
            await self._bus.store_batch([(entry.subject, entry.data) for entry in batch], new=new)

    async def _known(self, batch: list[_Entry]) -> frozenset[str]:
        """Subjects of records that are to be stored once and stand already; none when that cannot be told now."""
        known = set()
        for entry in batch:
            if entry.once:
                try:
                    message = await self._bus.last(streams.AUD, entry.subject)
                except BusError as error:
                    log.info("%s cannot be looked for now: %s", entry.subject, error)
                    continue
                if message is not None:
                    known.add(entry.subject)
        return frozenset(known)

    async def _is_stored(self, entry: _Entry) -> bool:
        """Whether the last of a batch stands: its answer got lost then, and the whole batch stands with it."""
        try:
            message = await self._bus.last(streams.AUD, entry.subject)
        except BusError:
            return False
        return message is not None and message.data == entry.data


def _said_once(batch: list[_Entry]) -> list[_Entry]:
    """Of what is to be stored once, the first in the batch."""
    said: set[str] = set()
    kept = []
    for entry in batch:
        if not (entry.once and entry.subject in said):
            kept.append(entry)
        said.add(entry.subject)
    return kept
