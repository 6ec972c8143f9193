"""One entry of the spec bucket: read with its sequence, written only over the version that was read, and audited.

An entry's sequence is its version (`ETag` over HTTP). Who changes what, through which door, is told by an `Author`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from llorch_shared import change_note, streams, subjects
from llorch_shared.bus.markers import DELETED
from llorch_shared.bus.port import Bus, Message, Stored
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent, AuditRecord, Detail
from llorch_shared.wire.version import Kind, decode, spec_headers

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Author:
    """Who changes something. `record` keeps an audit record."""

    actor: str
    identity: str
    record: Callable[[AuditRecord], Awaitable[None]]
    channel: str = ""
    correlation_id: str = ""

    def note(self, event: AuditEvent, subject_id: str, detail: Detail, *, pool_id: str = "") -> AuditRecord:
        """Of something that is about to be done."""
        return AuditRecord(
            event=event,
            task_id=subject_id,
            at_ms=now_ms(),
            actor=self.actor,
            correlation_id=self.correlation_id,
            identity=self.identity,
            channel=self.channel,
            pool_id=pool_id,
            detail=detail,
        )


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """`value` is None where it was removed, or never was: then `seq` is 0."""

    seq: int
    value: T | None


class Entries(Generic[T]):
    """The entries `<kind>.<name>`. All methods raise BusError; reading raises DecodeError for what cannot be read."""

    def __init__(self, kind: str, key: Callable[[str], str], decoder: "msgspec.json.Decoder[T]") -> None:
        self._pattern: Final = f"{kind}.*"
        self._key: Final = key
        self._decoder: Final = decoder

    def subject(self, name: str) -> str:
        return subjects.spec(self._key(name))

    async def read(self, bus: Bus, name: str) -> Entry[T]:
        message = await bus.last(streams.SPEC, self.subject(name))
        return Entry(0, None) if message is None else self.entry(message)

    async def all(self, bus: Bus) -> dict[str, tuple[T, int]]:
        """Value and sequence of what is there, by name."""
        found = {}
        for message in await bus.snapshot(streams.SPEC, subjects.spec(self._pattern)):
            entry = self.entry(message)
            if entry.value is not None:
                found[subjects.last_token(message.subject)] = (entry.value, entry.seq)
        return found

    async def history(self, bus: Bus, name: str) -> list[Entry[T]]:
        """Oldest first, as far as it is kept. What a release with other keys has written counts as removed."""
        found = []
        for message in await bus.replay(streams.SPEC, self.subject(name)):
            try:
                found.append(self.entry(message))
            except msgspec.MsgspecError:
                found.append(Entry(message.seq, None))
        return found

    async def write(
        self, bus: Bus, name: str, value: T, *, over: int, by: Author | None = None, note: AuditRecord | None = None
    ) -> int:
        """Returns the new sequence. `by` keeps `note`. Raises WrongSequence when `over` is not the present one."""
        headers = change_note.with_note(spec_headers(value), note)
        stored = await bus.store(self.subject(name), msgspec.json.encode(value), expect_seq=over, headers=headers)
        await _keep(by, note, stored)
        return stored.seq

    async def remove(
        self, bus: Bus, name: str, *, over: int, by: Author | None = None, note: AuditRecord | None = None
    ) -> None:
        """As `write`."""
        headers = change_note.with_note(DELETED, note)
        await _keep(by, note, await bus.store(self.subject(name), b"", expect_seq=over, headers=headers))

    def entry(self, message: Message) -> Entry[T]:
        if message.deleted:
            return Entry(message.seq, None)
        return Entry(message.seq, decode(Kind.SPEC, self._decoder, message.data, message.headers))


async def _keep(by: Author | None, note: AuditRecord | None, stored: Stored) -> None:
    if by is not None and note is not None:
        await by.record(change_note.stored(note, streams.SPEC, stored.seq))
