"""Artifacts on the bus: the document is an object, and an index says whose it is and what it is about.

The index is a stream with one message for each tenant and artifact, written by compare-and-set behind the object. So
the same document twice is one artifact, a list is a read of the index, and tenants have no subject in common.
"""

from typing import Final

import msgspec

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Message, WrongSequence
from llorch_shared.objects import ObjectError, Objects
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.artifacts import (
    ARTIFACT_DECODER,
    ARTIFACT_REF_DECODER,
    Artifact,
    ArtifactKind,
    ArtifactList,
    ArtifactRef,
    StoredArtifact,
    canonical,
)
from llorch_shared.wire.objects import OBJECT_SHARE_BYTES

PAGE_BYTES: Final = 256 * 1024
PAGES_MAX: Final = 8
"""Read for one answer: a tag that hardly anything has is looked for in several answers."""


class UnknownParent(Exception):
    """The artifact that another is said to come from is not there."""


class Artifacts:
    """`tenant` None stands for all of them."""

    def __init__(self, bus: Bus, *, share_bytes: int = OBJECT_SHARE_BYTES) -> None:
        self._bus: Final = bus
        self._objects: Final = Objects(bus, share_bytes=share_bytes)

    async def create(self, artifact: Artifact, tenant: str) -> ArtifactRef:
        """Raises UnknownParent, ValueError when it is too large, ShareFull, Full, BusError."""
        if artifact.parent is not None and await self._indexed(artifact.parent, tenant) is None:
            raise UnknownParent(artifact.parent)
        stored = await self._objects.put(canonical(artifact), tenant=tenant)
        ref = ArtifactRef(
            id=stored.digest,
            kind=artifact.kind,
            digest=stored.digest,
            created_ms=now_ms(),
            tags=artifact.tags,
            parent=artifact.parent,
            bytes=stored.bytes,
        )
        subject = subjects.artifact(tenant, artifact.kind, ref.id)
        found = await self._bus.last(streams.ARTIFACTS, subject)
        if found is not None:
            ref = msgspec.structs.replace(ref, created_ms=ARTIFACT_REF_DECODER.decode(found.data).created_ms)
            if not _ages(found):
                return ref
        try:
            await self._bus.store(subject, msgspec.json.encode(ref), expect_seq=0 if found is None else found.seq)
        except WrongSequence:
            other = await self._bus.last(streams.ARTIFACTS, subject)
            return ref if other is None else ARTIFACT_REF_DECODER.decode(other.data)
        return ref

    async def get(self, artifact_id: str, tenant: str | None) -> StoredArtifact | None:
        """None for what is not there, or not any more, or not what it should be. Raises BusError."""
        ref = await self._indexed(artifact_id, tenant)
        if ref is None:
            return None
        try:
            artifact = ARTIFACT_DECODER.decode(await self._objects.get(artifact_id))
        except ObjectError:
            return None
        return StoredArtifact(
            id=ref.id,
            kind=ref.kind,
            digest=ref.digest,
            created_ms=ref.created_ms,
            tags=artifact.tags,
            parent=artifact.parent,
            metadata=artifact.metadata,
            content=artifact.content,
        )

    async def page(
        self, tenant: str | None, *, kind: ArtifactKind | None = None, tag: str = "", after: int = 0, limit: int
    ) -> ArtifactList:
        """Behind the index's message `after`. Raises BusError."""
        pattern = subjects.artifacts(tenant or "*", kind or "*")
        found: list[ArtifactRef] = []
        for _ in range(PAGES_MAX):
            page = await self._bus.page(streams.ARTIFACTS, pattern, from_seq=after + 1, bytes_max=PAGE_BYTES)
            for number, message in enumerate(page.messages, 1):
                after = message.seq
                ref = ARTIFACT_REF_DECODER.decode(message.data)
                if not tag or tag in ref.tags:
                    found.append(ref)
                if len(found) == limit:
                    more = page.more or number < len(page.messages)
                    return ArtifactList(artifacts=tuple(found), cursor=str(after) if more else None)
            if not page.more:
                return ArtifactList(artifacts=tuple(found), cursor=None)
        return ArtifactList(artifacts=tuple(found), cursor=str(after))

    async def _indexed(self, artifact_id: str, tenant: str | None) -> ArtifactRef | None:
        pattern = subjects.artifact(tenant or "*", "*", artifact_id)
        found = await self._bus.snapshot(streams.ARTIFACTS, pattern)
        return ARTIFACT_REF_DECODER.decode(found[0].data) if found else None


def _ages(found: Message) -> bool:
    """Past half of its time: its object was stored anew, so its place in the index is, too."""
    return bool(found.stored_ms) and now_ms() - found.stored_ms >= streams.OBJECT_TTL_S * 1000 / 2
