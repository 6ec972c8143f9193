"""Objects of the object store, as NATS's own object stores write them: an entry by name, and chunks that it names."""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

DIGEST_PATTERN: Final = r"^sha256:[0-9a-f]{64}$(?!\n)"
Digest = Annotated[str, Meta(pattern=DIGEST_PATTERN, description="SHA-256 of the bytes, in lower-case hex")]

OBJECT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Largest object that is taken or read: it is held in memory as a whole at both ends."""

CHUNK_BYTES: Final = 512 * 1024
"""Half of what a message may hold, beside its headers."""

OBJECT_SHARE_BYTES: Final = 512 * 1024 * 1024
"""Of one tenant, unless the deployment sets another: half of the store."""


class ObjectRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An object by what it is made of."""

    digest: Digest
    bytes: Annotated[int, Meta(ge=0, le=OBJECT_BYTES_MAX)]


class ObjectOptions(msgspec.Struct, frozen=True, kw_only=True):
    max_chunk_size: int


class ObjectEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`ObjectInfo` of the NATS clients."""

    name: str
    """The object's digest, with a dash where a digest has its colon."""
    bucket: str = ""
    nuid: str = ""
    """Which chunks are its own: the last part of their subject."""
    size: int = 0
    """Bytes."""
    mtime: str = "0001-01-01T00:00:00Z"
    """Unset, as the clients write it: the time of the entry's message counts."""
    chunks: int = 0
    digest: str = ""
    """`SHA-256=` and the digest in URL-safe base64."""
    options: ObjectOptions | None = None
    deleted: bool = False


ENTRY_DECODER: Final = msgspec.json.Decoder(ObjectEntry)
