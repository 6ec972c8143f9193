"""Where a client wants its task to run (`placement`, ORCH-3903, 3907), and the refusals when that leaves nothing. Pure;
the gateway's router and the guards of tasks that come past it ask the same.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec

from llorch_shared.errors import OrchError, PolicyLabel, invalid
from llorch_shared.wire.registry import ReplicaRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import PlacementMode, PlacementOverrides, TaskRequest


def permitted(request: TaskRequest, pools: list[PoolSpec]) -> list[PoolSpec]:
    """Those of `pools`, which serve the request's model, that its client accepts: pin, prefer without fallback, avoid.
    Raises OrchError when none is left."""
    wish = request.placement
    if wish is None:
        return pools
    if wish.mode is PlacementMode.PIN:
        if wish.pin_pool_id is None:
            raise invalid("placement.mode is pin and placement.pin_pool_id is missing")
        pools = [pool for pool in pools if pool.id == wish.pin_pool_id]
        if not pools:
            raise invalid(f"pool {wish.pin_pool_id!r} does not serve {request.model_ref!r} with {request.engine}")
    elif _strictly_prefers(wish):
        pools = [pool for pool in pools if pool.id in wish.prefer_pools]
        if not pools:
            raise invalid("none of placement.prefer_pools serves this model, and allow_fallback is false")
    pools = [pool for pool in pools if pool.id not in wish.avoid_pools]
    if not pools:
        raise invalid("placement.avoid_pools excludes every pool that serves this model")
    return pools


def on_device(request: TaskRequest, replicas: Iterable[ReplicaRecord]) -> list[ReplicaRecord]:
    """Those with the device mask that the client requires; all when it requires none."""
    mask = request.placement.require_device_mask if request.placement is not None else None
    return [replica for replica in replicas if mask in (None, replica.device)]


def no_device(request: TaskRequest) -> OrchError:
    mask = request.placement.require_device_mask if request.placement is not None else None
    return invalid(f"no replica of {request.model_ref!r} runs on device {mask!r}")


@contextmanager
def labelled(request: TaskRequest) -> Iterator[None]:
    """A refusal that is raised in here says so when the client's own wish left no choice of pools."""
    try:
        yield
    except OrchError as error:
        error.body = msgspec.structs.replace(error.body, policy_label=_without_choice(request.placement))
        raise


def _without_choice(wish: PlacementOverrides | None) -> PolicyLabel | None:
    if wish is not None and wish.mode is PlacementMode.PIN:
        return PolicyLabel.PINNED_INFEASIBLE
    if wish is not None and _strictly_prefers(wish):
        return PolicyLabel.PREFERRED_INFEASIBLE
    return None


def _strictly_prefers(wish: PlacementOverrides) -> bool:
    return wish.mode is PlacementMode.PREFER and not wish.allow_fallback
