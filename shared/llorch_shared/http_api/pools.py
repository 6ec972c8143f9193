"""Pools: what they are, what is asked of them, how they are, and what the system can serve."""

from typing import Annotated, Final

from msgspec import Meta

from llorch_shared.errors import ErrorCode
from llorch_shared.http_api.operation import (
    BAD_ID,
    BODY_ERRORS,
    BUS_AWAY,
    OPERATOR_ONLY,
    POOL,
    UNKNOWN,
    Operation,
    Parameter,
    Plane,
    Reply,
)
from llorch_shared.wire.desired import DrainRequest, PoolDrain, PoolList, PoolReload, ReloadRequest
from llorch_shared.wire.registry import Capabilities, PoolHealth
from llorch_shared.wire.spec import PoolSpec

IF_MATCH: Final = Parameter(
    name="If-Match",
    where="header",
    type=Annotated[str, Meta(pattern=r'^("[0-9]{1,18}"|[0-9]{1,18})$(?!\n)')],
    description="`ETag` of the version that was read",
    required=True,
)
CHANGED_MEANWHILE: Final = ((412, ErrorCode.INVALID_PARAMS),)
BUSY: Final = ((409, ErrorCode.INVALID_PARAMS),)
_OPERATOR: Final = (*UNKNOWN, *OPERATOR_ONLY, *BUS_AWAY)

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
        method="POST",
        path="/v1/pools",
        operation_id="createPool",
        twin="pools.create",
        plane=Plane.CONTROL,
        requirements=("ORCH-2101", "CP-002"),
        summary="Want a pool that is not there yet; the nodes start its replicas",
        request=PoolSpec,
        replies=(Reply(status=201, description="Wanted from now on; `ETag` is its version", body=PoolSpec),),
        errors=(*BAD_ID, *OPERATOR_ONLY, *BUSY, *BODY_ERRORS, *BUS_AWAY),
    ),
    Operation(
        method="GET",
        path="/v1/pools",
        operation_id="listPools",
        twin="pools.list",
        plane=Plane.CONTROL,
        requirements=("ORCH-2101", "CP-002"),
        summary="Every pool as it is wanted",
        replies=(Reply(status=200, description="By id; what may be secret is hidden", body=PoolList),),
        errors=(*OPERATOR_ONLY, *BUS_AWAY),
    ),
    Operation(
        method="GET",
        path="/v1/pools/{id}",
        operation_id="getPool",
        twin="pools.get",
        plane=Plane.CONTROL,
        requirements=("ORCH-2101", "CP-002"),
        summary="A pool as it is wanted",
        parameters=(POOL,),
        replies=(
            Reply(
                status=200, description="`ETag` is its version; values that may be secrets are hidden", body=PoolSpec
            ),
        ),
        errors=_OPERATOR,
    ),
    Operation(
        method="PUT",
        path="/v1/pools/{id}",
        operation_id="replacePool",
        twin="pools.replace",
        plane=Plane.CONTROL,
        requirements=("ORCH-2101", "CP-002"),
        summary="Want the pool to be exactly so. A hidden value stays as it is; another model drains before it starts",
        parameters=(POOL, IF_MATCH),
        request=PoolSpec,
        replies=(Reply(status=200, description="In effect; `ETag` is the new version", body=PoolSpec),),
        errors=(*_OPERATOR, *CHANGED_MEANWHILE, *BODY_ERRORS),
    ),
    Operation(
        method="DELETE",
        path="/v1/pools/{id}",
        operation_id="deletePool",
        twin="pools.delete",
        plane=Plane.CONTROL,
        requirements=("ORCH-2101", "CP-002"),
        summary="Want the pool no longer. Running tasks end, waiting ones wait until it returns or their time is up",
        parameters=(POOL,),
        replies=(Reply(status=204, description="Its replicas drain"),),
        errors=_OPERATOR,
    ),
    Operation(
        method="POST",
        path="/v1/pools/{id}/drain",
        operation_id="drainPool",
        twin="pools.drain",
        plane=Plane.CONTROL,
        requirements=("ORCH-2101", "OC-CTRL-2002", "ORCH-3505", "CP-002"),
        summary="Take no tasks until it is undrained; what runs at the deadline makes way and waits",
        parameters=(POOL,),
        request=DrainRequest,
        replies=(Reply(status=202, description="The nodes drain it", body=PoolDrain),),
        errors=(*_OPERATOR, *BODY_ERRORS),
    ),
    Operation(
        method="DELETE",
        path="/v1/pools/{id}/drain",
        operation_id="undrainPool",
        twin="pools.undrain",
        plane=Plane.CONTROL,
        requirements=("ORCH-2101", "CP-002"),
        summary="Serve again; repeating it is fine",
        parameters=(POOL,),
        replies=(Reply(status=204, description="The nodes start its replicas"),),
        errors=_OPERATOR,
    ),
    Operation(
        method="POST",
        path="/v1/pools/{id}/reload",
        operation_id="reloadPool",
        twin="pools.reload",
        plane=Plane.CONTROL,
        requirements=("ORCH-2102", "OC-CTRL-2003", "ORCH-3031", "CP-002"),
        summary="Another model as a whole, or none: health tells how it goes and how it ended",
        parameters=(POOL,),
        request=ReloadRequest,
        replies=(Reply(status=202, description="The nodes bring the new model up beside the old", body=PoolReload),),
        errors=(*_OPERATOR, *BUSY, *BODY_ERRORS),
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
