"""What the system can serve, and how a pool is: made from the snapshot a gateway holds, told as it is (HME-012)."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from llorch_shared.http_api import API_VERSION
from llorch_shared.pool_policy import CLASSES, class_policy
from llorch_shared.routing import Replicas
from llorch_shared.wire.desired import PoolDrain, PoolReload
from llorch_shared.wire.registry import (
    Capabilities,
    EngineCapability,
    PoolCapability,
    PoolHealth,
    PoolLoad,
    ReplicaRecord,
    ReplicaState,
)
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import MAX_TOKENS_MAX, Engine, Workload

FEATURES: Final = {"streaming": True, "cancel": True, "resume": True, "seed": True, "idempotent_submit": True}
"""What every engine is used with here; a false one would be listed, not left out."""


def capabilities(
    pools: Mapping[str, PoolSpec],
    replicas: Replicas,
    loads: Mapping[str, PoolLoad],
    drained: Collection[str] = (),
) -> Capabilities:
    by_engine: dict[Engine, list[PoolSpec]] = {}
    for pool in sorted(pools.values(), key=lambda pool: pool.id):
        by_engine.setdefault(pool.engine, []).append(pool)
    return Capabilities(
        api_version=API_VERSION,
        engines=tuple(
            _engine(engine, by_engine[engine], replicas, loads, drained)
            for engine in sorted(by_engine, key=lambda each: each.value)
        ),
    )


def _engine(
    engine: Engine,
    pools: Sequence[PoolSpec],
    replicas: Replicas,
    loads: Mapping[str, PoolLoad],
    drained: Collection[str],
) -> EngineCapability:
    ready = [replica for pool in pools for replica in _ready(replicas.get(pool.id, ()))]
    workloads = {workload for replica in ready for workload in replica.workloads}
    return EngineCapability(
        engine=engine,
        ctx_max=max(pool.ctx for pool in pools),
        supported_workloads=tuple(workload for workload in Workload if workload in workloads),
        rate_limits=_rate_limits(pools),
        features=FEATURES,
        concurrency=sum(replica.slots_total for replica in ready),
        pools=tuple(
            _pool(pool, replicas.get(pool.id, ()), loads.get(pool.id), drained=pool.id in drained) for pool in pools
        ),
    )


def _rate_limits(pools: Sequence[PoolSpec]) -> dict[str, float]:
    """Of a class that no pool takes without a limit."""
    found = {}
    for priority in CLASSES:
        limits = [class_policy(pool, priority).rate_limit_rps for pool in pools]
        known = [limit for limit in limits if limit is not None]
        if len(known) == len(limits):
            found[f"{priority}_rps"] = sum(known)
    return found


def _pool(pool: PoolSpec, replicas: Sequence[ReplicaRecord], load: PoolLoad | None, *, drained: bool) -> PoolCapability:
    ready = _ready(replicas)
    shown = ready[0] if ready else None
    slots = sum(replica.slots_total for replica in ready)
    busy = sum(len(replica.active) for replica in ready)
    return PoolCapability(
        pool_id=pool.id,
        model_ref=pool.model,
        workloads=pool.serves,
        ctx_max=pool.ctx,
        slots_total=slots,
        slots_free=max(0, slots - busy) if load is None else load.slots_free,
        engine_version=shown.engine_version if shown else "",
        model_digest=shown.model_digest if shown else "",
        sampler_profile_version=shown.sampler_profile_version if shown else pool.sampler_profile_version,
        device=shown.device if shown else "",
        ready=bool(ready),
        max_tokens_out=min(MAX_TOKENS_MAX, pool.ctx),
        features=tuple(sorted({feature for replica in ready for feature in replica.features})),
        rate_limits=_rate_limits([pool]),
        drained=drained,
    )


def pool_health(
    replicas: Sequence[ReplicaRecord],
    load: PoolLoad | None,
    *,
    reload: PoolReload | None = None,
    drain: PoolDrain | None = None,
) -> PoolHealth:
    """OC-CTRL-2001. `draining` while somebody wants it drained, or when nothing of it serves any more."""
    ready = _ready(replicas)
    metrics = {
        "replicas": float(len(replicas)),
        "replicas_ready": float(len(ready)),
        "slots_total": float(sum(replica.slots_total for replica in ready)),
        "active_leases": float(sum(len(replica.active) for replica in replicas)),
    }
    if load is not None:
        metrics["slots_free"] = float(load.slots_free)
        metrics["running"] = float(load.running)
        metrics["service_ms"] = load.service_ms
        metrics.update({f"queue_depth_{priority}": float(depth) for priority, depth in sorted(load.queued.items())})
    return PoolHealth(
        live=any(replica.live for replica in replicas),
        ready=bool(ready),
        draining=drain is not None
        or (not ready and any(replica.state is ReplicaState.DRAINING for replica in replicas)),
        metrics=metrics,
        last_error=next((replica.last_error for replica in replicas if replica.last_error), None)
        or (reload.last_error or None if reload is not None else None),
        reload=reload,
        drain=drain,
        replicas=tuple(replicas),
    )


def without_tasks(health: PoolHealth) -> PoolHealth:
    """The same, and no word about which tasks run there, or who operates the pool."""
    replicas = tuple(msgspec.structs.replace(replica, active=()) for replica in health.replicas)
    drain, reload = health.drain, health.reload
    return msgspec.structs.replace(
        health,
        replicas=replicas,
        drain=drain and msgspec.structs.replace(drain, identity=""),
        reload=reload and msgspec.structs.replace(reload, identity="", channel=""),
    )


def _ready(replicas: Sequence[ReplicaRecord]) -> list[ReplicaRecord]:
    return [replica for replica in replicas if replica.state is ReplicaState.READY]
