"""Audit records on their way to the audit stream, off the path of the task they are about.

Records wait in a bounded queue and are stored in order, in atomic batches, as one chain (`audit_chain.py`). A record is
never dropped silently: when the queue is full, `record` waits.

That a task was admitted is on the record once, whoever says it again: another gateway, a scheduler that reads the queue
after a takeover, a client that sends the same task days later. The server refuses a second record of it, so the first
one costs nothing.
"""

import asyncio
import contextlib
import logging
from typing import Final

from llorch_shared.audit_chain import entry
from llorch_shared.audit_writer import AuditWriter, Entry
from llorch_shared.bus.port import Bus
from llorch_shared.wire.audit import AuditEvent, AuditRecord

log = logging.getLogger(__name__)

QUEUE_MAX: Final = 10_000
BATCH_MAX: Final = 500
BATCH_BYTES_MAX: Final = 4 * 1024 * 1024
GATHER_S: Final = 0.2
"""A batch on a file stream costs the server 2 ms of CPU and four syncs of its disk whatever its size, and the tasks of
that moment wait for them: gather first."""
FAREWELL_S: Final = 5.0


class Audit:
    """One writer per process. `start` before the first record, `close` after the last."""

    def __init__(self, bus: Bus, *, actor: str, queue_max: int = QUEUE_MAX, gather_s: float = GATHER_S) -> None:
        """`actor`: service and instance, as in the records. `gather_s`: how long the first record of a batch waits for
        others, which is what a killed process loses."""
        self._writer: Final = AuditWriter(bus, actor)
        self._gather_s: Final = gather_s
        self._queue: Final[asyncio.Queue[Entry]] = asyncio.Queue(queue_max)
        self._held: Entry | None = None
        self._unstored = 0
        self._closing: Final = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="audit")

    async def record(self, record: AuditRecord) -> None:
        """Returns when the record is queued; waits while the queue is full."""
        await self._queue.put(Entry(*entry(record), once=record.event is AuditEvent.ADMITTED))
        self._unstored += 1

    async def close(self) -> None:
        """Store what is queued and that this was all, for at most `FAREWELL_S`; what is left is logged as lost."""
        if self._task is None:
            return
        task, self._task = self._task, None
        self._closing.set()
        try:
            async with asyncio.timeout(FAREWELL_S):
                await self._queue.join()
                await _cancelled(task)
                await self._writer.close()
        except TimeoutError:
            log.error("%d audit records could not be stored before the end", self._unstored)  # noqa: TRY400
            await _cancelled(task)

    async def _run(self) -> None:
        while True:
            batch = [self._held or await self._queue.get()]
            self._held = None
            if self._queue.qsize() < BATCH_MAX:
                await self._gather()
            size = len(batch[0].data)
            while len(batch) < BATCH_MAX and not self._queue.empty():
                more = self._queue.get_nowait()
                if size + len(more.data) > BATCH_BYTES_MAX:
                    self._held = more
                    break
                batch.append(more)
                size += len(more.data)
            await self._writer.store(batch)
            for _ in batch:
                self._queue.task_done()
            self._unstored -= len(batch)

    async def _gather(self) -> None:
        """No longer than there may be others to wait for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._gather_s):
                await self._closing.wait()


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
