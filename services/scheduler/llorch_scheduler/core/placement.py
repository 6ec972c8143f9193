"""Which replica takes a task: filter, score, pick, and a log that says why. Pure: equal inputs give an equal decision.

Filters, in order: ready, engine, model, device_mask, ctx, workload, slots. Score (OC-CORE-1017): most free VRAM, then
fewest active slots, then the least replica id. O(replicas of the pool).
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from llorch_scheduler.core.fleet import Replica
from llorch_shared.wire.registry import ReplicaRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import PlacementMode, TaskRequest


class DecisionLog(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task goes where it goes (ORCH-3906). `selected` is empty when no replica was picked."""

    selected: str
    candidates_considered: int
    filters_applied: tuple[str, ...]
    """Filters that removed a candidate, with how many, for example `slots:2`."""
    tie_breakers_applied: tuple[str, ...]
    pinned: bool
    fallback_used: bool
    decision_reason: str


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """`busy` is true when a replica could take the task as soon as a slot is free."""

    replica: Replica | None
    log: DecisionLog
    busy: bool = False


_Check = Callable[[ReplicaRecord, TaskRequest, PoolSpec], bool]


def _mask_fits(record: ReplicaRecord, request: TaskRequest, _pool: PoolSpec) -> bool:
    mask = request.placement.require_device_mask if request.placement else None
    return mask is None or record.device == mask


_CHECKS: Final[tuple[tuple[str, _Check], ...]] = (
    ("engine", lambda record, _request, pool: record.engine is pool.engine),
    ("model", lambda record, _request, pool: record.model_ref in ("", pool.model)),
    ("device_mask", _mask_fits),
    ("ctx", lambda record, request, _pool: record.ctx_max == 0 or record.ctx_max >= request.ctx),
    ("workload", lambda record, request, _pool: request.workload in record.workloads),
)
_TIE_BREAKERS: Final = ("free_vram_mb", "active_slots", "replica_id")


def _score(replica: Replica) -> tuple[int, int, str]:
    free_vram_mb = replica.record.free_vram_mb if replica.record is not None else 0
    return (-free_vram_mb, replica.slots_taken, replica.replica_id)


def decide(request: TaskRequest, pool: PoolSpec, replicas: Sequence[Replica]) -> Decision:
    """Pick the replica of `pool` that takes the task now."""
    removed: list[str] = []
    fit = [replica for replica in replicas if replica.ready]
    if len(fit) < len(replicas):
        removed.append(f"ready:{len(replicas) - len(fit)}")
    for name, check in _CHECKS:
        kept = [each for each in fit if each.record is not None and check(each.record, request, pool)]
        if len(kept) < len(fit):
            removed.append(f"{name}:{len(fit) - len(kept)}")
            fit = kept
    free = [replica for replica in fit if replica.slots_free > 0]
    if len(free) < len(fit):
        removed.append(f"slots:{len(fit) - len(free)}")
    picked = min(free, key=_score, default=None)
    ties = _ties(picked, free) if picked is not None else ()
    if picked is None:
        reason = "all_slots_taken" if fit else "no_feasible_replica"
    else:
        reason = ties[-1] if ties else "only_candidate"
    log = DecisionLog(
        selected=picked.replica_id if picked is not None else "",
        candidates_considered=len(replicas),
        filters_applied=tuple(removed),
        tie_breakers_applied=ties,
        pinned=_pinned(request),
        fallback_used=_fell_back(request, pool),
        decision_reason=reason,
    )
    return Decision(replica=picked, log=log, busy=picked is None and bool(fit))


def _ties(picked: Replica, free: Sequence[Replica]) -> tuple[str, ...]:
    """The score's parts that had to be looked at until one candidate was left."""
    rivals = [replica for replica in free if replica is not picked]
    used: list[str] = []
    for index, name in enumerate(_TIE_BREAKERS):
        if not rivals:
            break
        used.append(name)
        rivals = [rival for rival in rivals if _score(rival)[index] == _score(picked)[index]]
    return tuple(used)


def _pinned(request: TaskRequest) -> bool:
    return request.placement is not None and request.placement.mode is PlacementMode.PIN


def _fell_back(request: TaskRequest, pool: PoolSpec) -> bool:
    """The client preferred other pools; the router used this one because they could not serve it."""
    wish = request.placement
    if wish is None or wish.mode is not PlacementMode.PREFER or not wish.prefer_pools:
        return False
    return pool.id not in wish.prefer_pools
