"""Which replica takes a task: filter, score, pick, and a log that says why. Pure: equal inputs give an equal decision.

Filters, in order: `FILTERS`. Score: the soonest predicted end where speeds were measured; among those that end about as
soon, the replica that had the session last; then most free VRAM, fewest taken slots, least id (OC-CORE-1017).

    predicted_end_ms = first_token_ms + 1000 * expected tokens / tokens_per_s

A replica that was not measured yet counts as one of the soonest: its first task measures it.
"""

from collections.abc import Collection, Sequence
from typing import Final

from llorch_scheduler.core.decision import Offers
from llorch_scheduler.core.index import PoolIndex
from llorch_scheduler.core.peers import Abilities, Entry, Peers
from llorch_scheduler.core.replica_sets import ReplicaSets, side_of
from llorch_scheduler.core.shape import CANARY, STABLE, Shape
from llorch_shared.errors import PolicyLabel
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import PlacementMode, TaskRequest

FILTERS: Final = (
    "ready",
    "draining",
    "engine",
    "model",
    "device_mask",
    "ctx",
    "quant",
    "workload",
    "extensions",
    "replica_set",
    "determinism_class",
    "slots",
    "vram",
)
ABOUT: Final = 1.15
"""Ends within this factor of the soonest count as equal: speeds are measured no better than that, and a warm cache is
worth more than the difference."""
_TERMS: Final = ("free_vram_mb", "active_slots", "replica_id")
_CTX_CLASS_LEAST: Final = 256


def shape_of(request: TaskRequest, spec: PoolSpec, ctx_limits: Collection[int] = ()) -> Shape:
    """What the task requires. Its context class is the next power of two, the pool's size, or one of `ctx_limits`,
    the smaller sizes that replicas of the pool have, whichever is least; so there are few shapes."""
    wanted = request.ctx
    ctx = 1 << (wanted - 1).bit_length() if wanted > _CTX_CLASS_LEAST else _CTX_CLASS_LEAST
    for size in (spec.ctx, *ctx_limits):
        if wanted <= size < ctx:
            ctx = size
    wish = request.placement
    device = (wish.require_device_mask or "") if wish is not None else ""
    return Shape(request.workload, ctx, device, side_of(request, spec))


def refusal(abilities: Abilities, shape: Shape, spec: PoolSpec, sets: ReplicaSets) -> str:
    """The first filter that a ready replica of these abilities does not pass; empty when it passes all."""
    version = abilities.version
    checks = (
        ("engine", version.engine is spec.engine),
        ("model", version.model_ref in ("", spec.model)),
        ("device_mask", shape.device in ("", abilities.device)),
        ("ctx", version.ctx_max == 0 or version.ctx_max >= shape.ctx),
        ("quant", spec.quant is None or version.quant in ("", spec.quant)),
        ("workload", shape.workload in abilities.workloads),
        ("extensions", set(shape.extensions) <= set(abilities.features)),
        ("replica_set", sets.takes(version, shape.side, spec)),
        ("determinism_class", shape.determinism_class in ("", abilities.determinism_class)),
    )
    return next((name for name, passes in checks if not passes), "")


def serves(abilities: Abilities, spec: PoolSpec, sets: ReplicaSets) -> bool:
    """Whether any task of the pool may go to ready replicas of these abilities."""
    return any(
        not refusal(abilities, Shape(workload=workload, side=side), spec, sets)
        for workload in abilities.workloads
        for side in (STABLE, CANARY)
    )


def soonest(offers: Offers) -> list[Peers]:
    """Those that end about as soon as the soonest, and those of which nobody knows."""
    if len(offers.peers) == 1:
        return offers.peers
    most = min(filter(None, offers.ends_ms), default=0.0) * ABOUT
    return [peers for peers, end_ms in zip(offers.peers, offers.ends_ms, strict=True) if end_ms <= most]


def tie_breakers(
    index: PoolIndex,
    offers: Offers,
    tied: Sequence[Peers],
    bests: Sequence[Entry],
    picked: Entry,
    *,
    by_session: bool,
) -> tuple[str, ...]:
    """Parts of the score that had to be looked at until one candidate was left. `bests` are those of `tied`."""
    if len(offers.peers) == 1 and offers.peers[0].free == 1:
        return ()
    first = ("predicted_end_ms",) if any(offers.ends_ms) else ()
    if first and len(tied) == 1 and tied[0].free == 1:
        return first
    if by_session:
        return (*first, "session_affinity")
    peers = picked[4].peers
    runner_up = index.second(peers) if peers is not None else None
    for best in bests:
        if best[4] is not picked[4] and (runner_up is None or best < runner_up):
            runner_up = best
    if runner_up is None:
        return first
    if picked[0] != runner_up[0]:
        return (*first, *_TERMS[:1])
    return (*first, *(_TERMS[:2] if picked[1] != runner_up[1] else _TERMS))


def pinned(request: TaskRequest) -> bool:
    return request.placement is not None and request.placement.mode is PlacementMode.PIN


def fell_back(request: TaskRequest, pool: PoolSpec) -> bool:
    """The client preferred other pools; the router used this one because they could not serve it."""
    wish = request.placement
    if wish is None or wish.mode is not PlacementMode.PREFER or not wish.prefer_pools:
        return False
    return pool.id not in wish.prefer_pools


def nobody(request: TaskRequest) -> str:
    """Why a task that no replica can serve is not placed."""
    return PolicyLabel.PINNED_INFEASIBLE if pinned(request) else "no_feasible_replica"
