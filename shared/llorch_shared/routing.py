"""Which pool serves a task: pure, used by the gateway and by whoever else admits.

Filter (engine, model, overrides, context, workload), look at what is alive, then pick: a preferred pool first, then
the shortest predicted wait, then the name. Equal inputs give the same pool. A task for a pool that is only starting is
routed: it waits in the queue. O(pools + replicas).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from llorch_shared import wishes
from llorch_shared.errors import ErrorCode, OrchError, invalid
from llorch_shared.waiting import expect
from llorch_shared.wire.registry import PoolLoad, ReplicaRecord, ReplicaState
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import PlacementMode, TaskRequest

POOL_RETRY_MS: Final = 1_000
"""When to ask again for a pool that serves nothing now: engines need seconds to start."""

_UNTRUSTED: Final = f"{ErrorCode.UNTRUSTED_ARTIFACT}: "

Replicas = Mapping[str, Sequence[ReplicaRecord]]
"""Live replica records by pool."""


def route(
    request: TaskRequest,
    pools: Mapping[str, PoolSpec],
    replicas: Replicas,
    loads: Mapping[str, PoolLoad],
    *,
    tenant: str,
    drained: Collection[str] = (),
) -> PoolSpec:
    """The pool that will queue this task of `tenant`, none that is `drained`. Raises OrchError: INVALID_PARAMS when no
    pool could ever serve, POOL_UNREADY, POOL_UNAVAILABLE or REPLICA_EXHAUSTED when one could and none does now,
    UNTRUSTED_ARTIFACT when none may. Where
    the client's own wish left no choice, the error's policy_label says so."""
    with wishes.labelled(request):
        return _route(request, pools, replicas, loads, tenant, drained=drained)


def _route(
    request: TaskRequest,
    pools: Mapping[str, PoolSpec],
    replicas: Replicas,
    loads: Mapping[str, PoolLoad],
    tenant: str,
    *,
    drained: Collection[str],
) -> PoolSpec:
    wanted = wishes.permitted(request, _matching(request, pools.values()))
    fitting = [pool for pool in wanted if request.ctx <= pool.ctx]
    if not fitting:
        largest = max(pool.ctx for pool in wanted)
        raise invalid(f"ctx {request.ctx} is over the {largest} that {request.model_ref} is served with")
    fitting = _open(request, fitting, drained)
    replicas = _on_device(request, fitting, replicas)
    alive = [pool for pool in fitting if _state_of(replicas.get(pool.id, ())) == "alive"]
    if not alive:
        raise _nobody(request, fitting, replicas)
    serving = [pool for pool in alive if _serves(request, replicas[pool.id])]
    if not serving:
        raise invalid(f"no replica of {request.model_ref} serves the workload {request.workload}")
    preferred = _preferred(request, serving)
    if len(preferred) == 1:
        return preferred[0]
    return min(preferred, key=lambda pool: (_wait_ms(request, loads.get(pool.id), tenant), pool.id))


def _matching(request: TaskRequest, pools: Iterable[PoolSpec]) -> list[PoolSpec]:
    found = [pool for pool in pools if pool.engine is request.engine and pool.model == request.model_ref]
    if not found:
        raise invalid(
            f"no pool serves model {request.model_ref!r} with engine {request.engine}",
            hint="GET /v1/capabilities lists what is served",
        )
    return found


def _open(request: TaskRequest, pools: list[PoolSpec], drained: Collection[str]) -> list[PoolSpec]:
    """Those that are not drained. Raises OrchError when all are."""
    found = [pool for pool in pools if pool.id not in drained]
    if not found:
        raise OrchError(
            ErrorCode.POOL_UNREADY,
            f"pool {pools[0].id} is drained and takes no tasks",
            engine=request.engine,
            pool_id=pools[0].id,
            retry_after_ms=POOL_RETRY_MS,
        )
    return found


def _on_device(request: TaskRequest, pools: Sequence[PoolSpec], replicas: Replicas) -> Replicas:
    """The replicas of `pools` that the client's device mask leaves. Raises OrchError when there are replicas, and none
    on that device."""
    held = {pool.id: wishes.on_device(request, replicas.get(pool.id, ())) for pool in pools}
    if not any(held.values()) and any(replicas.get(pool.id) for pool in pools):
        raise wishes.no_device(request)
    return held


def _state_of(replicas: Sequence[ReplicaRecord]) -> str:
    if not replicas:
        return "absent"
    if all(replica.state is ReplicaState.FAILED for replica in replicas):
        return "failed"
    return "alive"


def _nobody(request: TaskRequest, pools: list[PoolSpec], replicas: Replicas) -> OrchError:
    failed = [pool for pool in pools if _state_of(replicas.get(pool.id, ())) == "failed"]
    if failed:
        cause = next((r.last_error for r in replicas[failed[0].id] if r.last_error), "no cause was recorded")
        if all(replica.refused for pool in failed for replica in replicas[pool.id]):
            return OrchError(
                ErrorCode.UNTRUSTED_ARTIFACT,
                f"no node may load the model of pool {failed[0].id}: {cause.removeprefix(_UNTRUSTED)}",
                engine=request.engine,
                pool_id=failed[0].id,
            )
        return OrchError(
            ErrorCode.REPLICA_EXHAUSTED,
            f"every replica of pool {failed[0].id} has failed: {cause}",
            engine=request.engine,
            pool_id=failed[0].id,
            retry_after_ms=POOL_RETRY_MS,
        )
    return OrchError(
        ErrorCode.POOL_UNREADY,
        f"no replica of pool {pools[0].id} is registered",
        engine=request.engine,
        pool_id=pools[0].id,
        retry_after_ms=POOL_RETRY_MS,
        hint="a node that serves this pool must be up; `orchctl status` shows nodes and replicas",
    )


def _serves(request: TaskRequest, replicas: Sequence[ReplicaRecord]) -> bool:
    return any(request.workload in replica.workloads for replica in replicas)


def _preferred(request: TaskRequest, pools: list[PoolSpec]) -> list[PoolSpec]:
    wish = request.placement
    if wish is None or wish.mode is not PlacementMode.PREFER:
        return pools
    return [pool for pool in pools if pool.id in wish.prefer_pools] or pools


def _wait_ms(request: TaskRequest, load: PoolLoad | None, tenant: str) -> tuple[int, float]:
    """Predicted wait of a newcomer; a pool that nobody has reported on yet comes late, one that refuses the class at
    present last."""
    if load is None:
        return (1, 0)
    line = load.classes.get(request.priority)
    if line is not None and line.shed:
        return (2, line.shed_for_ms)
    return (0, expect(load, request.priority, tenant, due_in_ms=request.deadline_ms).start_ms)
