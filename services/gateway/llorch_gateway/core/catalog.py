"""The life of a model in the catalog (ORCH-3069, 3072). What it means for tasks is in `llorch_shared.models`. Pure."""

from typing import Final

import msgspec

from llorch_shared.errors import invalid
from llorch_shared.wire.catalog import CatalogEntry, ModelState, StateChange

_S = ModelState
MOVES: Final[dict[ModelState, frozenset[ModelState]]] = {
    _S.DRAFT: frozenset({_S.ACTIVE, _S.CANARY, _S.RETIRED}),
    _S.ACTIVE: frozenset({_S.CANARY, _S.DEPRECATED, _S.RETIRED}),
    _S.CANARY: frozenset({_S.ACTIVE, _S.DEPRECATED, _S.RETIRED}),
    _S.DEPRECATED: frozenset({_S.ACTIVE, _S.RETIRED}),
    _S.RETIRED: frozenset({_S.ACTIVE}),
}
"""To itself it always may; a draft nothing becomes again."""


def moved(entry: CatalogEntry, change: StateChange, now_ms: int) -> CatalogEntry:
    """The same entry when it is in that state. Raises OrchError 409 for a move that there is not."""
    if change.state is entry.state:
        return entry
    if change.state not in MOVES[entry.state]:
        allowed = ", ".join(sorted(MOVES[entry.state]))
        raise invalid(f"state: model {entry.id} is {entry.state}; from there it becomes {allowed}", status=409)
    retired = change.state is ModelState.RETIRED
    return msgspec.structs.replace(
        entry,
        state=change.state,
        changed_ms=now_ms,
        drain_deadline_ms=now_ms + change.deadline_ms if retired else None,
    )
