"""Artifacts: documents that are kept under the digest of what they say (AR-001, OC-CTRL-2065)."""

from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from llorch_shared import url_credentials
from llorch_shared.wire.objects import Digest

TAGS_MAX: Final = 32
LIST_MAX: Final = 200

Tag = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:@/+=-]{1,128}$(?!\n)")]


class ArtifactKind(StrEnum):
    PLAN = "plan"
    SUMMARY = "summary"
    DIFF = "diff"
    TRACE = "trace"
    OTHER = "other"


class Artifact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """As it is given. Its id is the SHA-256 of this as JSON with sorted keys and without what is at its default."""

    kind: ArtifactKind
    content: dict[str, Any]
    tags: Annotated[tuple[Tag, ...], Meta(max_length=TAGS_MAX)] = ()
    parent: Digest | None = None
    """Id of the artifact that this one was made from; it must be there."""
    metadata: dict[str, Any] = {}

    def __post_init__(self) -> None:
        for tag in self.tags:
            url_credentials.check("tags", tag)


class ArtifactRef(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact without its content."""

    id: Digest
    kind: ArtifactKind
    digest: Digest
    """The same as `id`: artifacts are named by what they are."""
    created_ms: int
    """When it was stored first, Unix milliseconds."""
    tags: tuple[str, ...]
    parent: Digest | None
    bytes: int


class StoredArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """An artifact as it is kept."""

    id: Digest
    kind: ArtifactKind
    digest: Digest
    created_ms: int
    tags: tuple[str, ...]
    parent: Digest | None
    metadata: dict[str, Any]
    content: dict[str, Any]


class ArtifactList(msgspec.Struct, frozen=True, kw_only=True):
    """One page, oldest first."""

    artifacts: tuple[ArtifactRef, ...]
    cursor: str | None
    """Where the next page begins; None at the end. A page may be empty and yet have a next one."""


ARTIFACT_DECODER: Final = msgspec.json.Decoder(Artifact)
ARTIFACT_REF_DECODER: Final = msgspec.json.Decoder(ArtifactRef)


def canonical(artifact: Artifact) -> bytes:
    """What is hashed and stored: equal artifacts are equal bytes, whoever wrote them in whatever order."""
    return msgspec.json.encode(artifact, order="sorted")
