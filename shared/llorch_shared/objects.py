"""The object store: bytes too large for a message, or to be kept, under the digest of what they are.

The layout is that of NATS's own object stores (bucket ART), so `nats object` lists and reads them. Chunks come first,
under a name of their own for each writer; the entry that names them comes last, by compare-and-set. So an object is
there whole or not at all, and two writers of the same bytes make one object. What a killed writer leaves is forgotten
with its age, or when its tenant needs the room. To whom an object counts is in `object_share.py`.

ObjectError
├─ ObjectMissing     it was never stored, or its time is over
├─ ObjectTooLarge    over what the caller takes
└─ ObjectDamaged     what is stored under the digest is something else
"""

import asyncio
import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Final

import msgspec

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, Message, NoStream, Unanswered, WrongSequence
from llorch_shared.object_share import ObjectShare
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.objects import (
    CHUNK_BYTES,
    ENTRY_DECODER,
    OBJECT_BYTES_MAX,
    OBJECT_SHARE_BYTES,
    ObjectEntry,
    ObjectOptions,
    ObjectRef,
)

STORE_TIMEOUT_S: Final = 2.0
PUT_WITHIN_S: Final = 12.0
"""All tries of one message: longer than the election of a stream's leader."""
PAUSE_FIRST_S: Final = 0.05
PAUSE_MAX_S: Final = 0.5
NAME_TRIES: Final = 5
READ_TRIES: Final = 5
"""A copy of the stream may not have the chunks yet that its leader has acknowledged."""
PAGE_BYTES: Final = 4 * 1024 * 1024
HASHED_HERE_BYTES: Final = 1024 * 1024
"""More is hashed in a thread: 16 MiB take ten milliseconds and more."""

_ROLLUP: Final = {"Nats-Rollup": "sub"}
_NUID: Final = re.compile(r"^([a-z0-9_-]{1,64}\.)?[A-Za-z0-9_-]{1,64}$(?!\n)")
_encode: Final = msgspec.json.Encoder().encode


class ObjectError(Exception):
    """An object cannot be read."""


class ObjectMissing(ObjectError): ...


class ObjectTooLarge(ObjectError): ...


class ObjectDamaged(ObjectError): ...


class Objects:
    """One bucket, through one connection. `share_bytes`: what each tenant may have in it."""

    def __init__(self, bus: Bus, *, share_bytes: int = OBJECT_SHARE_BYTES) -> None:
        self._bus: Final = bus
        self._share: Final = ObjectShare(bus, share_bytes)

    async def put(self, data: bytes, *, tenant: str = "") -> ObjectRef:
        """Store `data` unless it is there for long enough yet; it counts to `tenant`, or to nobody. Raises ValueError
        when it is larger than any object may be, ShareFull, Full when the store has no room, BusError."""
        if len(data) > OBJECT_BYTES_MAX:
            raise ValueError(f"{len(data)} bytes; an object has at most {OBJECT_BYTES_MAX}")
        ref = ObjectRef(digest=await digest_of(data), bytes=len(data))
        found = await self._bus.last(streams.OBJECTS, subjects.object_entry(ref.digest))
        if found is None or not _stays(found):
            if tenant:
                await self._share.check(tenant, len(data))
            await self._write(ref, data, 0 if found is None else found.seq, tenant)
        return ref

    async def find(self, digest: str) -> ObjectRef | None:
        """None for what is not stored, or not any more. Raises ObjectDamaged, BusError."""
        found = await self._bus.last(streams.OBJECTS, subjects.object_entry(digest))
        entry = None if found is None else _entry_in(found)
        return None if entry is None else ObjectRef(digest=digest, bytes=entry.size)

    async def get(self, digest: str, *, bytes_max: int = OBJECT_BYTES_MAX) -> bytes:
        """Raises ObjectError, BusError."""
        for number in range(READ_TRIES):
            entry = await self._entry(digest)
            if entry.size > bytes_max:
                raise ObjectTooLarge(f"{digest} has {entry.size} bytes; at most {bytes_max} are taken")
            data = await self._chunks(entry)
            if data is not None:
                if await digest_of(data) != digest:
                    raise ObjectDamaged(f"what is stored as {digest} has another digest")
                return data
            await asyncio.sleep(PAUSE_FIRST_S * 2**number)
        raise ObjectMissing(f"parts of {digest} are not stored any more")

    async def _entry(self, digest: str) -> ObjectEntry:
        found = await self._bus.last(streams.OBJECTS, subjects.object_entry(digest))
        entry = None if found is None else _entry_in(found)
        if entry is None:
            raise ObjectMissing(f"{digest} is not stored, or not any more")
        return entry

    async def _chunks(self, entry: ObjectEntry) -> bytes | None:
        """None when some are not there. Never holds more than one message over what the entry says."""
        parts: list[bytes] = []
        size, from_seq = 0, 1
        subject = subjects.object_chunks(entry.nuid)
        while size < entry.size:
            page = await self._bus.page(streams.OBJECTS, subject, from_seq=from_seq, bytes_max=PAGE_BYTES)
            for message in page.messages:
                parts.append(message.data)
                size += len(message.data)
                from_seq = message.seq + 1
            if not page.more:
                break
        return b"".join(parts) if size >= entry.size else None

    async def _write(self, ref: ObjectRef, data: bytes, entry_seq: int, tenant: str) -> None:
        nuid = secrets.token_hex(11)
        if tenant:
            nuid = f"{tenant}.{len(data)}-{nuid}"
        stored: list[int] = []
        naming = named = False
        try:
            for number, start in enumerate(range(0, len(data), CHUNK_BYTES)):
                chunk = data[start : start + CHUNK_BYTES]
                stored.append(await self._store(subjects.object_chunks(nuid), chunk, f"{nuid}:{number}"))
            if tenant and len(stored) > 1:
                await self._share.check(tenant, 0)  # of all who write at once, the last to look sees everything
            naming = True
            named = await self._name(ref, nuid, len(stored), entry_seq)
        except (NoStream, Unanswered, asyncio.CancelledError):
            named = naming  # the entry may stand, although nobody said so
            raise
        finally:
            if not named:
                await self._remove(stored)

    async def _name(self, ref: ObjectRef, nuid: str, chunks: int, entry_seq: int) -> bool:
        """Write the entry. False when the object is there already, by another writer. Raises Full, WrongSequence when
        others write again and again, BusError."""
        entry, subject = _encode(entry_of(ref, nuid, chunks)), subjects.object_entry(ref.digest)
        for number in range(NAME_TRIES):
            try:
                await self._store(subject, entry, f"{nuid}:entry:{number}", expect_seq=entry_seq, headers=_ROLLUP)
                return True
            except WrongSequence:
                found = await self._bus.last(streams.OBJECTS, subject)
                if found is not None and _is_named(found, nuid):
                    return True  # an earlier try of ours, whose answer was lost
                if found is not None and _stays(found):
                    return False
                entry_seq = 0 if found is None else found.seq
        raise WrongSequence(f"the entry of {ref.digest} is changed again and again")

    async def _store(
        self,
        subject: str,
        data: bytes,
        msg_id: str,
        *,
        expect_seq: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """However often it takes within the bound: the message id makes repeats one message."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + PUT_WITHIN_S, PAUSE_FIRST_S
        while True:
            try:
                stored = await self._bus.store(
                    subject, data, msg_id=msg_id, expect_seq=expect_seq, headers=headers, timeout_s=STORE_TIMEOUT_S
                )
                return stored.seq
            except (NoStream, Unanswered):
                if loop.time() + pause > deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(PAUSE_MAX_S, 2 * pause)

    async def _remove(self, seqs: list[int]) -> None:
        """Give back the room of chunks that nothing names; what cannot be removed now goes with its age."""
        for seq in seqs:
            try:
                await self._bus.remove(streams.OBJECTS, seq)
            except BusError:
                return


async def digest_of(data: bytes) -> str:
    """`sha256:<hex>`."""
    if len(data) <= HASHED_HERE_BYTES:
        return f"sha256:{hashlib.sha256(data).hexdigest()}"
    return f"sha256:{(await asyncio.to_thread(hashlib.sha256, data)).hexdigest()}"


def entry_of(ref: ObjectRef, nuid: str, chunks: int) -> ObjectEntry:
    """What names the chunks of an object."""
    raw = bytes.fromhex(ref.digest.removeprefix("sha256:"))
    return ObjectEntry(
        name=subjects.object_name(ref.digest),
        bucket=subjects.OBJECT_BUCKET,
        nuid=nuid,
        size=ref.bytes,
        chunks=chunks,
        digest=f"SHA-256={base64.urlsafe_b64encode(raw).decode()}",
        options=ObjectOptions(max_chunk_size=CHUNK_BYTES),
    )


def _entry_in(found: Message) -> ObjectEntry | None:
    """What a stored entry says; None when it is a deletion. Raises ObjectDamaged."""
    if found.deleted:
        return None
    try:
        entry = ENTRY_DECODER.decode(found.data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ObjectDamaged(f"the entry on {found.subject} cannot be read: {error}") from error
    if not entry.deleted and _NUID.match(entry.nuid) is None:
        raise ObjectDamaged(f"the entry on {found.subject} names no chunks")
    return None if entry.deleted else entry


def _is_named(found: Message, nuid: str) -> bool:
    try:
        entry = _entry_in(found)
    except ObjectDamaged:
        return False
    return entry is not None and entry.nuid == nuid


def _stays(found: Message) -> bool:
    """Whether it is there for at least half of its time yet: an older one is stored anew."""
    age_ms = now_ms() - found.stored_ms if found.stored_ms else 0
    try:
        return _entry_in(found) is not None and age_ms < streams.OBJECT_TTL_S * 1000 / 2
    except ObjectDamaged:
        return False
