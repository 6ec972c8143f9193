"""The catalog bucket: entries by id, changed by compare-and-set alone, so that two who change one both count."""

from collections.abc import Callable
from typing import Final

import msgspec

from llorch_shared import change_note, streams, subjects
from llorch_shared.bus.conflicts import retry_on_conflict
from llorch_shared.bus.markers import DELETED
from llorch_shared.bus.port import Bus, Message, WrongSequence
from llorch_shared.wire.audit import AuditRecord
from llorch_shared.wire.catalog import ENTRY_DECODER, CatalogEntry
from llorch_shared.wire.version import Kind, decode, version_headers


class Kept(msgspec.Struct, frozen=True):
    """An entry and the sequence under which it stands."""

    entry: CatalogEntry
    seq: int


class Taken(Exception):
    """There is an entry of that id."""


class Contended(Exception):
    """Others changed the entry again and again."""


class Catalog:
    """Every method raises BusError, and Unreadable for what a newer release wrote."""

    def __init__(self, bus: Bus) -> None:
        self._bus: Final = bus

    async def get(self, model_id: str) -> Kept | None:
        found = await self._last(model_id)
        return None if found is None or found.deleted else _kept(found)

    async def all(self) -> list[Kept]:
        """By id."""
        found = await self._bus.snapshot(streams.CATALOG, subjects.catalog(subjects.model_key("*")))
        kept = [_kept(message) for message in found if not message.deleted]
        return sorted(kept, key=lambda one: one.entry.id)

    async def create(self, entry: CatalogEntry, note: AuditRecord | None = None) -> Kept:
        """`note` is what is to be on record of it. Raises Taken."""
        found = await self._last(entry.id)
        if found is not None and not found.deleted:
            raise Taken(entry.id)
        try:
            return await self._store(entry, 0 if found is None else found.seq, note)
        except WrongSequence as error:
            raise Taken(entry.id) from error

    async def change(
        self, model_id: str, edit: Callable[[CatalogEntry], CatalogEntry], note: AuditRecord | None = None
    ) -> Kept | None:
        """`edit` may be called again when somebody else wrote in between; None when there is no such entry. Raises
        Contended, and what `edit` raises."""

        async def attempt() -> Kept | None:
            kept = await self.get(model_id)
            if kept is None:
                return None
            entry = edit(kept.entry)
            return kept if entry == kept.entry else await self._store(entry, kept.seq, note)

        try:
            return await retry_on_conflict(attempt)
        except WrongSequence as error:
            raise Contended(model_id) from error

    async def delete(self, model_id: str, note: AuditRecord | None = None) -> int:
        """Returns the sequence of its deletion, 0 when there is none."""

        async def attempt() -> int:
            kept = await self.get(model_id)
            if kept is None:
                return 0
            headers = change_note.with_note(DELETED, note)
            return (await self._bus.store(_subject(model_id), b"", expect_seq=kept.seq, headers=headers)).seq

        try:
            return await retry_on_conflict(attempt)
        except WrongSequence as error:
            raise Contended(model_id) from error

    async def _last(self, model_id: str) -> Message | None:
        return await self._bus.last(streams.CATALOG, _subject(model_id))

    async def _store(self, entry: CatalogEntry, expect_seq: int, note: AuditRecord | None) -> Kept:
        data = msgspec.json.encode(entry)
        headers = change_note.with_note(version_headers(Kind.SPEC), note)
        stored = await self._bus.store(_subject(entry.id), data, expect_seq=expect_seq, headers=headers)
        return Kept(entry, stored.seq)


def _subject(model_id: str) -> str:
    return subjects.catalog(subjects.model_key(model_id))


def _kept(message: Message) -> Kept:
    return Kept(decode(Kind.SPEC, ENTRY_DECODER, message.data, message.headers), message.seq)
