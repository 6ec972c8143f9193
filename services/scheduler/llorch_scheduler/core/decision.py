"""What a decision of placement consists of. How it is made: `placement`, `pool_fleet`."""

import msgspec

from llorch_scheduler.core.peers import Peers
from llorch_scheduler.core.replica import Replica


class DecisionLog(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Why a task goes where it goes (ORCH-3906). `selected` is empty when no replica was picked."""

    selected: str
    candidates_considered: int
    filters_applied: tuple[str, ...]
    """Filters that removed a candidate, with how many, for example `slots:2`."""
    tie_breakers_applied: tuple[str, ...]
    """Parts of the score that had to be looked at until one candidate was left."""
    pinned: bool
    fallback_used: bool
    decision_reason: str
    replica_set: str = ""
    """Version of the set that the task goes to; empty when versions may mix."""
    predicted_end_ms: float = 0
    """From the placement; 0 when the replica was not measured yet."""
    free_vram_mb: int = 0
    active_slots: int = 0
    """Of the selected replica, before this task."""
    kv_warmth: bool | None = None
    """As in `Decision`."""


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`busy` is true when a replica could take the task as soon as a slot, or memory, is free. Neither a replica nor
    busy: no replica of the pool can serve it as they are."""

    replica: Replica | None
    log: DecisionLog
    busy: bool = False
    kv_warmth: bool | None = None
    """Whether it goes where its session was last; None for a session that was not seen within its time to live."""


class Offers(msgspec.Struct, frozen=True, gc=False):
    """Peers with a free replica that has room, and when a task ends there: 0 when their speed was not measured."""

    peers: list[Peers]
    ends_ms: list[float]
