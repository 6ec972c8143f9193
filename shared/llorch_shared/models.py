"""What the catalog says of the models that tasks ask for: for the gateway before a queue, and for the scheduler of what
bus clients put there themselves. Pure."""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from llorch_shared.errors import ErrorCode, OrchError, invalid
from llorch_shared.wire.catalog import CatalogEntry, ModelState, VerifyResult
from llorch_shared.wire.registry import ReplicaRecord
from llorch_shared.wire.task import TaskRequest

SCHEME: Final = "catalog:"
ADMITTED: Final = frozenset({ModelState.ACTIVE, ModelState.CANARY})
_HINTS: Final = {ModelState.DEPRECATED: 'who operates the system may send it with "override": true'}


class Models:
    """The entries, as admission asks for them. A model that is in no entry is admitted as ever."""

    def __init__(self) -> None:
        self._entries: dict[str, CatalogEntry] = {}
        self._by_source: dict[str, list[CatalogEntry]] = {}

    def put(self, model_id: str, entry: CatalogEntry | None) -> None:
        before = self._entries.pop(model_id, None)
        if before is not None:
            others = [one for one in self._by_source[before.source_url] if one is not before]
            self._by_source[before.source_url] = others
            if not others:
                del self._by_source[before.source_url]
        if entry is not None:
            self._entries[model_id] = entry
            self._by_source.setdefault(entry.source_url, []).append(entry)

    @property
    def count(self) -> int:
        return len(self._entries)

    def __contains__(self, model_id: str) -> bool:
        return model_id in self._entries

    def of_source(self, model_ref: str) -> Sequence[CatalogEntry]:
        """The versions of what pools name so."""
        return self._by_source.get(model_ref, ())

    def resolved(self, request: TaskRequest, *, session_since_ms: int | None = None) -> TaskRequest:
        """With the reference that pools know in place of `catalog:<id or tag>`. Raises OrchError as `check`."""
        if not request.model_ref.startswith(SCHEME):
            return request
        name = request.model_ref.removeprefix(SCHEME)
        entry = self._entries.get(name) or holder(name, self._entries.values())
        if entry is None:
            raise invalid(f"model_ref: the catalog has no {name[:128]!r}", engine=request.engine)
        self._check([entry], request, session_since_ms)
        return msgspec.structs.replace(request, model_ref=entry.source_url)

    def check(self, request: TaskRequest, *, stored_ms: int | None = None, session_since_ms: int | None = None) -> None:
        """Raises OrchError MODEL_DEPRECATED, UNTRUSTED_ARTIFACT. `stored_ms`: of a task that waits already; what became
        of a model after that does not count, for what was accepted is kept. `session_since_ms`: when the account of its
        session was opened; a session that is older than the deprecation of its model goes on (ORCH-3070)."""
        found = self._by_source.get(request.model_ref)
        if found and (stored_ms is None or all(_since_ms(entry) <= stored_ms for entry in found)):
            self._check(found, request, session_since_ms)

    def check_served(
        self, request: TaskRequest, replicas: Sequence[ReplicaRecord], *, session_since_ms: int | None = None
    ) -> None:
        """What the replicas say that they have loaded is what the catalog says it is. Raises OrchError."""
        if not (found := self._by_source.get(request.model_ref)):
            return
        known = {entry.digest for entry in found if _may_serve(entry, request, session_since_ms)}
        loaded = {replica.model_digest for replica in replicas if replica.model_digest}
        if loaded and not loaded & known:
            raise _untrusted(f"{request.model_ref} is loaded with another digest than the catalog has")

    def _check(self, entries: Sequence[CatalogEntry], request: TaskRequest, session_since_ms: int | None) -> None:
        """Several entries of one source are versions of it: one that may be used is enough."""
        usable = [entry for entry in entries if _may_serve(entry, request, session_since_ms)]
        if not usable:
            entry = entries[0]
            raise OrchError(
                ErrorCode.MODEL_DEPRECATED,
                f"model {entry.id} is {entry.state} and takes no new tasks",
                engine=request.engine,
                hint=_HINTS.get(entry.state),
            )
        failed = [entry for entry in usable if _has_failed(entry)]
        if len(failed) == len(usable):
            assert failed[0].verification is not None
            raise _untrusted(f"model {failed[0].id} failed its verification: {failed[0].verification.message}")


def _may_serve(entry: CatalogEntry, request: TaskRequest, session_since_ms: int | None) -> bool:
    """A deprecated model is for the sessions that it had, and for those who say that they mean it."""
    if entry.state is not ModelState.DEPRECATED:
        return entry.state in ADMITTED
    return request.override or (session_since_ms is not None and session_since_ms <= entry.changed_ms)


def _has_failed(entry: CatalogEntry) -> bool:
    return entry.verification is not None and entry.verification.result is VerifyResult.FAIL


def holder(tag: str, entries: Iterable[CatalogEntry]) -> CatalogEntry | None:
    """Whoever was entered last with the tag has it, among those in use; equal inputs give the same model."""
    having = [entry for entry in entries if tag in entry.tags and entry.state in ADMITTED]
    return max(having, key=lambda entry: (entry.created_ms, entry.id), default=None)


def _since_ms(entry: CatalogEntry) -> int:
    """When what it says became so."""
    return max(entry.changed_ms, entry.last_verified_ms or 0)


def _untrusted(message: str) -> OrchError:
    return OrchError(ErrorCode.UNTRUSTED_ARTIFACT, message)
