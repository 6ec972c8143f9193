"""What killed writers left of objects in the store: chunks of an object of which not all are there, long after any
writer has given up. They count to their tenant, so they are looked for when it has no room, and removed.

The server's account of subjects, which every writer of the tenant reads anyway, tells which objects may be such. That
they are is seen by their bytes, since another release may cut its chunks in another way. An object whose chunks are all
there and which nothing names, because its writer was killed in the very moment before, stays until its time is over.
"""

import logging
from collections.abc import Mapping
from typing import Final

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.objects import CHUNK_BYTES

log = logging.getLogger(__name__)

LEFT_AFTER_MS: Final = 3_600_000
"""The slowest writer that lives is done in seven minutes."""
LOOKS_MAX: Final = 8
"""Objects that are read at once, each of up to 16 MiB."""
PAGE_BYTES: Final = 4 * 1024 * 1024


def size_of(subject: str) -> int | None:
    """Bytes of the object whose chunks these are, as the subject says; None where it does not."""
    size = subjects.last_token(subject).partition("-")[0]
    return int(size) if size.isdecimal() else None


async def remove(bus: Bus, counts: Mapping[str, int]) -> int:
    """`counts`: chunks by subject. Returns how many objects' remains were removed. Raises BusError."""
    maybe = [subject for subject, chunks in counts.items() if (size_of(subject) or 0) > chunks * CHUNK_BYTES]
    removed = 0
    for subject in sorted(maybe)[:LOOKS_MAX]:
        newest = await bus.last(streams.OBJECTS, subject)
        if newest is not None and newest.stored_ms and now_ms() - newest.stored_ms >= LEFT_AFTER_MS:
            removed += await _remove(bus, subject)
    if removed:
        log.warning("what killed writers left of %d objects is removed", removed)
    return removed


async def _remove(bus: Bus, subject: str) -> bool:
    """False when it is whole after all."""
    seqs: list[int] = []
    size, more = 0, True
    while more:
        from_seq = seqs[-1] + 1 if seqs else 1
        page = await bus.page(streams.OBJECTS, subject, from_seq=from_seq, bytes_max=PAGE_BYTES)
        seqs.extend(message.seq for message in page.messages)
        size += sum(len(message.data) for message in page.messages)
        more = page.more and bool(page.messages)
    if size >= (size_of(subject) or 0):
        return False
    for seq in seqs:
        await bus.remove(streams.OBJECTS, seq)
    return True
