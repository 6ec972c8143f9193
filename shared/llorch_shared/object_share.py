"""What each tenant has of the object store, and may have.

An object is counted to the tenant who put it first. Its name and the size stand in the subject of the chunks, so what
counts is what is stored, whoever stored it and whoever died: the server tells the subjects, and no book is kept. What
killed writers left counts, too, until it is removed (`object_remains.py`).
"""

from collections.abc import Mapping
from typing import Final

from llorch_shared import object_remains, streams, subjects
from llorch_shared.bus.port import Bus, Full
from llorch_shared.wire.objects import CHUNK_BYTES, OBJECT_BYTES_MAX

COUNTED_MIN: Final = 16 * 1024
"""An object counts at least so much: a share has a bounded number of objects, whose subjects are told in one answer."""


class ShareFull(Full):
    """The tenant has as much in the store as it may."""


class ObjectShare:
    """Of each tenant alike."""

    def __init__(self, bus: Bus, share_bytes: int) -> None:
        self._bus: Final = bus
        self._share_bytes: Final = share_bytes

    async def held(self, tenant: str) -> int:
        """Bytes that are counted to the tenant. Raises BusError."""
        return _sum(await self._counts(tenant))

    async def check(self, tenant: str, more: int) -> None:
        """Whether there is room for so much more. Raises ShareFull, BusError."""
        counts = await self._counts(tenant)
        held = _sum(counts)
        if held + more > self._share_bytes and await object_remains.remove(self._bus, counts):
            held = await self.held(tenant)
        if held + more > self._share_bytes:
            raise ShareFull(f"tenant {tenant} has {held} bytes in the object store, and may have {self._share_bytes}")

    async def _counts(self, tenant: str) -> Mapping[str, int]:
        return await self._bus.counts(streams.OBJECTS, subjects.objects_of(tenant))


def _sum(counts: Mapping[str, int]) -> int:
    return sum(_counted(subject, chunks) for subject, chunks in counts.items())


def _counted(subject: str, chunks: int) -> int:
    """Bytes of one object, of which so many chunks are stored: whole where all are, and never less than the least."""
    size = object_remains.size_of(subject)
    return max(COUNTED_MIN, min(chunks * CHUNK_BYTES, OBJECT_BYTES_MAX if size is None else size))
