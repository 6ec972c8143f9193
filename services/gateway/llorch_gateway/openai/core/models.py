"""Models by the names that clients use: a pool's model reference, or a pool's id."""

from collections.abc import Mapping

from llorch_gateway.openai.core.errors import ParamError
from llorch_shared.routing import Replicas
from llorch_shared.wire.openai import Model, ModelList
from llorch_shared.wire.registry import ReplicaState
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import PlacementMode, PlacementOverrides, Workload

Pools = Mapping[str, PoolSpec]


def chosen(
    name: str, pools: Pools, replicas: Replicas, workload: Workload = Workload.COMPLETION
) -> tuple[PoolSpec, PlacementOverrides | None]:
    """A pool that serves the workload with the model, whose engine and context the task names, and where the task must
    run. Of several pools one that is ready comes first, then the largest context; all that fit share the tasks. Raises
    ParamError."""
    named = _named(name, pools)
    found = [pool for pool in named if workload in pool.serves]
    if not found:
        served = "GET /v1/models says what its models serve"
        raise ParamError("model", f"{name!r} does not serve the workload {workload}", hint=served)
    if name in pools:
        return found[0], PlacementOverrides(mode=PlacementMode.PIN, pin_pool_id=name)
    return min(found, key=lambda each: (not _ready(each, replicas), -each.ctx, each.id)), None


def listed(pools: Pools, replicas: Replicas) -> ModelList:
    return ModelList(data=tuple(_model(name, pools, replicas) for name in sorted({p.model for p in pools.values()})))


def one(name: str, pools: Pools, replicas: Replicas) -> Model:
    """Raises ParamError."""
    return _model(_named(name, pools)[0].model, pools, replicas)


def _named(name: str, pools: Pools) -> list[PoolSpec]:
    """The pool of this id, or those with this model. Raises ParamError."""
    found = [pools[name]] if name in pools else _with_model(name, pools)
    if not found:
        raise ParamError(
            "model", f"no pool serves model {name!r}", status=404, hint="GET /v1/models lists what is served"
        )
    return found


def _model(name: str, pools: Pools, replicas: Replicas) -> Model:
    serving = _with_model(name, pools)
    return Model(
        id=name,
        pools=tuple(pool.id for pool in serving),
        ctx_max=max(pool.ctx for pool in serving),
        workloads=tuple(workload for workload in Workload if any(workload in pool.serves for pool in serving)),
        ready=any(_ready(pool, replicas) for pool in serving),
    )


def _with_model(name: str, pools: Pools) -> list[PoolSpec]:
    return sorted((pool for pool in pools.values() if pool.model == name), key=lambda pool: pool.id)


def _ready(pool: PoolSpec, replicas: Replicas) -> bool:
    return any(replica.state is ReplicaState.READY for replica in replicas.get(pool.id, ()))
