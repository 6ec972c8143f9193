"""Operations on the catalog of models. Each change is an audit record; what pools and nodes have to do about it, they
do by themselves when they see the changed state (drains, verifications)."""

import hashlib
from collections.abc import Iterable
from functools import partial
from typing import Final

import msgspec

from llorch_gateway.catalog_verification import Verifications
from llorch_gateway.core import catalog as core
from llorch_gateway.failures import unavailable
from llorch_gateway.operations import Answer, Ask, Handler, Handlers
from llorch_gateway.pools_api import Authors
from llorch_gateway.snapshot import Snapshot
from llorch_shared import change_note, streams
from llorch_shared.bus.port import Bus
from llorch_shared.catalog import Catalog, Contended, Kept, Taken
from llorch_shared.desired import model_pools
from llorch_shared.desired.entries import Author
from llorch_shared.errors import invalid, not_found
from llorch_shared.http_api.catalog import ETAG_HEADER, TRUST_POLICY_HEADER
from llorch_shared.metrics import Metrics
from llorch_shared.signatures import verify
from llorch_shared.trust import effective, judge
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditEvent, AuditRecord, Detail
from llorch_shared.wire.catalog import (
    ENTRY_BYTES_MAX,
    CatalogEntry,
    CatalogList,
    CatalogModel,
    ModelState,
    StateAccepted,
    StateChange,
    TrustPolicy,
    VerifyStarted,
)

LIMIT_DEFAULT: Final = 50
MODELS_MAX: Final = 1_000
"""Every scheduler and gateway holds each of them, and a list reads them all."""


class CatalogApi:
    def __init__(self, bus: Bus, snapshot: Snapshot, author: Authors, metrics: Metrics, *, policy: TrustPolicy) -> None:
        self._bus: Final = bus
        self._snapshot: Final = snapshot
        self._author: Final = author
        self._policy: Final = policy
        self._entered: Final = metrics.counter("catalog_entries_total")
        self._catalog: Final = Catalog(bus)
        self._verifications: Final = Verifications(bus, snapshot)

    def handlers(self) -> Handlers:
        return {
            "createCatalogModel": _for_operators(self.create),
            "listCatalogModels": self.listed,
            "getCatalogModel": self.find,
            "deleteCatalogModel": _for_operators(self.delete),
            "verifyCatalogModel": _for_operators(self.verify),
            "setCatalogModelState": _for_operators(self.set_state),
        }

    async def create(self, ask: Ask) -> Answer:
        model = ask.body(CatalogModel)
        strict = ask.given.get(TRUST_POLICY_HEADER) == "strict"
        size = len(msgspec.json.encode(model))
        if size > ENTRY_BYTES_MAX:
            raise invalid(f"the model has {size} bytes; an entry has at most {ENTRY_BYTES_MAX}", status=413)
        entry = self._entry(model, effective(self._policy, model.trust_policy, strict=strict))
        if self._is_full(entry.id):
            raise invalid(f"the catalog has {MODELS_MAX} models, and no more may be", status=409)
        by = self._author(ask.call)
        note = _note(by, entry.id, {"change": "created", "digest": entry.digest, "tags": list(entry.tags)})
        try:
            kept = await self._catalog.create(entry, note)
        except Taken:
            return _with_tag(await self._same(entry), 201)
        self._entered.inc()
        await by.record(change_note.stored(note, streams.CATALOG, kept.seq))
        return _with_tag(kept, 201)

    def _is_full(self, model_id: str) -> bool:
        """Of what this process has heard; a few made at the same time by others may go beyond it."""
        models = self._snapshot.models
        return models.count >= MODELS_MAX and model_id not in models

    def _entry(self, model: CatalogModel, policy: TrustPolicy) -> CatalogEntry:
        verdict = judge(model, policy, verify)
        at_ms = now_ms()
        return CatalogEntry(
            id=model.id,
            digest=model.digest,
            source_url=model.source_url,
            tags=model.tags,
            manifests=model.manifests,
            signatures=verdict.signatures,
            sbom=model.sbom,
            trust_policy=policy,
            state=ModelState(model.state),
            warnings=verdict.problems,
            created_ms=at_ms,
            changed_ms=at_ms,
        )

    async def _same(self, entry: CatalogEntry) -> Kept:
        """The entry that has the id, if it is of the same model."""
        kept = await self._catalog.get(entry.id)
        if kept is None or (kept.entry.digest, kept.entry.source_url) != (entry.digest, entry.source_url):
            raise invalid(f"id: the catalog has another model {entry.id}", status=409)
        return kept

    async def find(self, ask: Ask) -> Answer:
        return _unless_known(ask, _with_tag(await self._kept(ask)))

    async def listed(self, ask: Ask) -> Answer:
        given = ask.given
        tag, after, limit = given.get("tag"), given.get("cursor", ""), given.get("limit", LIMIT_DEFAULT)
        found = [
            kept
            for kept in await self._catalog.all()
            if kept.entry.id > after and (tag is None or tag in kept.entry.tags)
        ]
        page = found[:limit]
        cursor = page[-1].entry.id if len(found) > limit else None
        body = CatalogList(models=tuple(kept.entry for kept in page), cursor=cursor)
        return _unless_known(ask, Answer(body, headers=((ETAG_HEADER, _tag_of(page, cursor)),)))

    async def delete(self, ask: Ask) -> Answer:
        model_id, by = ask.given["id"], self._author(ask.call)
        note = _note(by, model_id, {"change": "deleted"})
        try:
            gone = await self._catalog.delete(model_id, note)
        except Contended as error:
            raise _busy(error) from error
        if not gone:
            raise not_found(f"model {model_id}")
        await by.record(change_note.stored(note, streams.CATALOG, gone))
        return Answer(status=204)

    async def verify(self, ask: Ask) -> Answer:
        entry = (await self._kept(ask)).entry
        began = await self._verifications.start(entry, self._policy)
        if not began:
            raise unavailable(f"no node that holds model {entry.id} answers")
        by = self._author(ask.call)
        await by.record(_note(by, entry.id, {"change": "verify", "nodes": began}))
        return Answer(VerifyStarted(), 202)

    async def set_state(self, ask: Ask) -> Answer:
        change, by, at_ms = ask.body(StateChange), self._author(ask.call), now_ms()
        detail: Detail = {"change": "state", "state": str(change.state), "deadline_ms": change.deadline_ms}
        note = _note(by, ask.given["id"], detail)
        try:
            kept = await self._catalog.change(ask.given["id"], partial(core.moved, change=change, now_ms=at_ms), note)
        except Contended as error:
            raise _busy(error) from error
        if kept is None:
            raise not_found(f"model {ask.given['id']}")
        entry = kept.entry
        await model_pools.follow(self._bus, entry, self._snapshot.pools.values(), by, deadline_ms=change.deadline_ms)
        was_so = entry.changed_ms != at_ms
        await by.record(note if was_so else change_note.stored(note, streams.CATALOG, kept.seq))
        return Answer(StateAccepted(), 202)

    async def _kept(self, ask: Ask) -> Kept:
        kept = await self._catalog.get(ask.given["id"])
        if kept is None:
            raise not_found(f"model {ask.given['id']}")
        return kept


def _note(by: Author, model_id: str, detail: Detail) -> AuditRecord:
    return by.note(AuditEvent.CATALOG_CHANGED, model_id, detail)


def _for_operators(handler: Handler) -> Handler:
    async def checked(ask: Ask) -> Answer:
        ask.call.check_operator()
        return await handler(ask)

    return checked


def _with_tag(kept: Kept, status: int = 200) -> Answer:
    return Answer(kept.entry, status, headers=((ETAG_HEADER, f'"{kept.seq}"'),))


def _tag_of(page: Iterable[Kept], cursor: str | None) -> str:
    text = f"{[(kept.entry.id, kept.seq) for kept in page]}{cursor}"
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def _unless_known(ask: Ask, answer: Answer) -> Answer:
    known = {tag.strip().removeprefix("W/") for tag in ask.given.get("If-None-Match", "").split(",")}
    tag = dict(answer.headers)[ETAG_HEADER]
    return Answer(status=304, headers=answer.headers) if tag in known or "*" in known else answer


def _busy(error: Contended) -> Exception:
    return invalid(f"model {error} is being changed by others; ask again", status=409)
