"""Models by the names that clients use: a pool's model reference, or a pool's id."""

from collections.abc import Mapping

from llorch_gateway.openai.core.errors import ParamError
from llorch_shared.routing import Replicas
from llorch_shared.wire.openai import Model, ModelList
from llorch_shared.wire.registry import ReplicaState
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import PlacementMode, PlacementOverrides

Pools = Mapping[str, PoolSpec]


def chosen(name: str, pools: Pools, replicas: Replicas) -> tuple[PoolSpec, PlacementOverrides | None]:
    """A pool that serves the model, whose engine and context the task names, and where the task must run. Of several
    pools with the model one that is ready comes first, then the largest context; all that fit share the tasks. Raises
    ParamError."""
    pool = pools.get(name)
    if pool is not None:
        return pool, PlacementOverrides(mode=PlacementMode.PIN, pin_pool_id=pool.id)
    found = sorted(_with_model(name, pools), key=lambda each: (not _ready(each, replicas), -each.ctx, each.id))
    if not found:
        raise ParamError(
            "model", f"no pool serves model {name!r}", status=404, hint="GET /v1/models lists what is served"
        )
    return found[0], None


def listed(pools: Pools, replicas: Replicas) -> ModelList:
    return ModelList(data=tuple(_model(name, pools, replicas) for name in sorted({p.model for p in pools.values()})))


def one(name: str, pools: Pools, replicas: Replicas) -> Model:
    """Raises ParamError."""
    return _model(chosen(name, pools, replicas)[0].model, pools, replicas)


def _model(name: str, pools: Pools, replicas: Replicas) -> Model:
    serving = _with_model(name, pools)
    return Model(
        id=name,
        pools=tuple(pool.id for pool in serving),
        ctx_max=max(pool.ctx for pool in serving),
        ready=any(_ready(pool, replicas) for pool in serving),
    )


def _with_model(name: str, pools: Pools) -> list[PoolSpec]:
    return sorted((pool for pool in pools.values() if pool.model == name), key=lambda pool: pool.id)


def _ready(pool: PoolSpec, replicas: Replicas) -> bool:
    return any(replica.state is ReplicaState.READY for replica in replicas.get(pool.id, ()))
