"""Pools, and what the system can serve."""

from typing import Final

from llorch_shared.http_api.operation import POOL, UNKNOWN, Operation, Plane, Reply
from llorch_shared.wire.registry import Capabilities, PoolHealth

POOLS: Final[tuple[Operation, ...]] = (
    Operation(
        method="GET",
        path="/v1/capabilities",
        operation_id="getCapabilities",
        twin="capabilities",
        plane=Plane.CONTROL,
        requirements=("ORCH-3095", "OC-CTRL-2060", "OC-CTRL-2061"),
        summary="Engines, models, context sizes and slots this system serves",
        replies=(Reply(status=200, description="What can be asked for", body=Capabilities),),
    ),
    Operation(
        method="GET",
        path="/v1/pools/{id}/health",
        operation_id="getPoolHealth",
        twin="pools.health",
        plane=Plane.CONTROL,
        requirements=("ORCH-2103", "OC-CTRL-2001"),
        summary="Whether a pool lives, serves or drains, with its replicas",
        parameters=(POOL,),
        replies=(Reply(status=200, description="Health of the pool", body=PoolHealth),),
        errors=UNKNOWN,
    ),
)
