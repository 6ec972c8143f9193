"""What the token log has of a task's stream, page by page, for who hears its tokens on the bus and missed some.

The log is read, and nothing is followed: whoever asks puts the pages behind what it heard, and drops what it has by
index, as every reader of a stream does. How the task ended is told beside them, since the log is memory. Which life of
the log it is, is asked for each page: the next one may be asked of another gateway, and of a log that began anew behind
a connection that stood.
"""

from typing import Final
from zlib import crc32

import msgspec

from llorch_gateway.core import record as records
from llorch_gateway.operations import Answer, Ask, Handlers
from llorch_gateway.tasks import Tasks
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Message
from llorch_shared.streaming.endings import terminal_frame
from llorch_shared.token_mark import first_seq
from llorch_shared.wire.frames import BadFrame, StoredEvent, StoredEvents, peek, split_events
from llorch_shared.wire.run import RunRecord

PAGE_BYTES: Final = 128 * 1024
"""Read at once, about. A stored message has half a megabyte at most, so an answer fits into one of the bus."""


def handlers(bus: Bus, tasks: Tasks) -> Handlers:
    async def listed(ask: Ask) -> Answer:
        task = ask.given["id"].lower()
        record = (await tasks.find(task, ask.call)).record
        life = (await bus.stream_state(streams.TOK)).life
        if record is None:
            return Answer(StoredEvents(cursor=place(life, 1)))
        from_seq = _from(ask.given.get("cursor", ""), record, life)
        subject = subjects.tokens(record.lane, task)
        page = await bus.page(streams.TOK, subject, from_seq=from_seq, bytes_max=PAGE_BYTES)
        next_seq = page.messages[-1].seq + 1 if page.messages else from_seq
        return Answer(
            StoredEvents(
                events=tuple(event for message in page.messages for event in _events(message)),
                cursor=place(life, next_seq),
                more=page.more,
                end=events_of(terminal_frame(record))[0] if records.is_final(record) else None,
            )
        )

    return {"listTaskEvents": listed}


def place(life: str, seq: int) -> str:
    """A sequence means something in its life of the log only."""
    return f"{crc32(life.encode()):08x}.{seq}"


def _from(cursor: str, record: RunRecord, life: str) -> int:
    """Where to read on; from where the stream begins, where the cursor is none of this life of the log."""
    begins = first_seq(record.token_log, life)
    if not cursor:
        return begins
    seq = int(cursor.rpartition(".")[2])
    return max(begins, seq) if cursor == place(life, seq) else begins


def _events(message: Message) -> list[StoredEvent]:
    """None of what is no frame: it is passed over here as it is in streams."""
    try:
        peek(message.data)
    except BadFrame:
        return []
    return events_of(message.data)


def events_of(data: bytes) -> list[StoredEvent]:
    return [StoredEvent(id=each.id, event=each.event, data=msgspec.Raw(each.data)) for each in split_events(data)]
