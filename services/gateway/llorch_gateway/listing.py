"""Pages of tasks, read from the streams that hold them: the queues, then the run records.

A request reads a bounded part and says where the next one goes on: a page may hold fewer tasks than asked for, or none,
while there is a cursor. A task that moves while its list is read may be missed, or listed as it stood before.
"""

import asyncio
from collections.abc import Sequence
from operator import attrgetter
from typing import Final

from llorch_gateway.core import record as records
from llorch_gateway.core.listing import InQueue, InRuns, Place, Wanted, queues_from, session_of
from llorch_gateway.core.prospect import is_loading, prospect_of
from llorch_gateway.lists import STEP
from llorch_gateway.snapshot import Snapshot
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Message, NoStream, Page
from llorch_shared.readable import UNREADABLE
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.run import RunRecord, TaskList, TaskView, WaitsFor, decode_run
from llorch_shared.wire.task import REQUEST_DECODER, TaskState
from llorch_shared.wire.version import Unreadable

READ_BYTES: Final = 1024 * 1024
"""Read at once. A waiting or running task has its whole prompt with it: from a kilobyte to a megabyte."""
READS_MAX: Final = 8
"""For one page of the list."""
WINDOW_FIRST: Final = 256
WINDOW_MAX: Final = 16_384
"""Sequences of the run stream looked through at once. Where records have changed since there is nothing."""


class Listing:
    def __init__(self, bus: Bus, snapshot: Snapshot) -> None:
        self._bus: Final = bus
        self._snapshot: Final = snapshot

    async def page(self, wanted: Wanted, place: Place | None) -> TaskList:
        """Raises BusError."""
        found: list[TaskView] = []
        reads = READS_MAX
        for queue in queues_from(self._snapshot.pool_names(), wanted, place):
            seq: int | None = queue.seq
            while seq is not None:
                if len(found) >= wanted.limit or reads <= 0:
                    return TaskList(tasks=tuple(found), cursor=str(queue._replace(seq=seq)))
                reads -= 1
                seq = await self._queued(queue._replace(seq=seq), wanted, found)
        below: int | None = place.below if isinstance(place, InRuns) else 0
        if len(found) < wanted.limit and reads > 0:
            below = await self._runs(below or 0, wanted, found, reads)
        return TaskList(tasks=tuple(found), cursor=None if below is None else str(InRuns(below)))

    async def _queued(self, queue: InQueue, wanted: Wanted, found: list[TaskView]) -> int | None:
        """Add what is wanted of one read; returns where to go on, None at the end."""
        if wanted.tenant:
            named = (queue.pool, queue.priority, wanted.tenant)
            filters = [subjects.admission(*named), subjects.own_admission(*named)]
        else:
            filters = [subjects.admission_filter(queue.pool, queue.priority)]
        stream = streams.admission_stream(queue.pool, queue.priority)
        reading = (self._bus.page(stream, each, from_seq=queue.seq, bytes_max=READ_BYTES) for each in filters)
        try:
            page = in_one(await asyncio.gather(*reading))
        except NoStream:
            return None
        for number, message in enumerate(page.messages, 1):
            if number % STEP == 0:
                await asyncio.sleep(0)
            view = self._waiting(message, queue, wanted)
            if view is not None:
                found.append(view)
                if len(found) >= wanted.limit:
                    return message.seq + 1
        return page.messages[-1].seq + 1 if page.more else None

    def _waiting(self, message: Message, queue: InQueue, wanted: Wanted) -> TaskView | None:
        """None for what is not asked for, and for what is no task: its reader sets that aside."""
        try:
            request = REQUEST_DECODER.decode(message.data)
        except UNREADABLE:
            return None
        if wanted.session not in ("", request.session_id.lower()):
            return None
        load = self._snapshot.loads.get(queue.pool)
        tenant = subjects.queued_by(message.subject).tenant
        due_in_ms = message.stored_ms + request.deadline_ms - now_ms()
        prospect = prospect_of(load, queue.priority, tenant, seq=message.seq, due_in_ms=due_in_ms)
        return TaskView(
            task_id=request.task_id.lower(),
            state=TaskState.QUEUED,
            pool_id=queue.pool,
            engine=request.engine,
            priority=queue.priority,
            correlation_id=message.headers.get(subjects.CORRELATION_HEADER, ""),
            queue_position=max(0, prospect.position),
            predicted_start_ms=max(0, prospect.start_ms),
            waits_for=WaitsFor.MODEL if is_loading(load) else WaitsFor.SLOT,
            admitted_ms=message.stored_ms,
            tenant=tenant,
            session_id=request.session_id,
        )

    async def _runs(self, below: int, wanted: Wanted, found: list[TaskView], reads: int) -> int | None:
        """Add wanted records, last changed first; returns below which sequence to go on, None at the end."""
        state = await self._bus.stream_state(streams.RUN)
        below = min(below or state.last_seq + 1, state.last_seq + 1)
        width = WINDOW_FIRST
        while below > max(1, state.first_seq):
            if reads <= 0:
                return below
            low = max(1, state.first_seq, below - width)
            window = await self._window(low, below)
            if window is None:
                width, reads = max(1, width // 8), max(1, reads - 1)
                continue
            reads -= 1
            for number, message in enumerate(reversed(window), 1):
                if number % STEP == 0:
                    await asyncio.sleep(0)
                record = _record(message)
                if record is not None and wanted.has(record):
                    found.append(records.listed(record, session_of(record)))
                    if len(found) >= wanted.limit:
                        return message.seq if message.seq > state.first_seq else None
            below, width = low, min(WINDOW_MAX, 2 * width)
        return None

    async def _window(self, low: int, below: int) -> Sequence[Message] | None:
        """The run records between two sequences; None when they are too much to be read at once."""
        page = await self._bus.page(streams.RUN, subjects.ALL_RUNS, from_seq=low, bytes_max=READ_BYTES)
        if page.more and page.messages[-1].seq < below - 1 and below - low > 1:
            return None
        return [message for message in page.messages if message.seq < below]


def in_one(pages: Sequence[Page]) -> Page:
    """Pages of one stream by different filters, in its order, as far as all of them reach."""
    reached = min((page.messages[-1].seq for page in pages if page.more), default=None)
    messages = sorted(
        (each for page in pages for each in page.messages if reached is None or each.seq <= reached),
        key=attrgetter("seq"),
    )
    return Page(messages, more=reached is not None)


def _record(message: Message) -> RunRecord | None:
    if message.deleted:
        return None
    try:
        return decode_run(message.data, message.headers)
    except Unreadable:
        return None
