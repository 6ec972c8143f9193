"""Tenants: what each may use of every pool that has no entry of its own for it."""

from typing import Final

import msgspec

from llorch_shared.http_api.operation import (
    BODY_ERRORS,
    BUS_AWAY,
    OPERATOR_ONLY,
    UNKNOWN,
    Operation,
    Parameter,
    Plane,
    Reply,
)
from llorch_shared.http_api.pools import BUSY, CHANGED_MEANWHILE, IF_MATCH
from llorch_shared.wire.desired import Tenant, TenantList
from llorch_shared.wire.task import Name

_TENANT: Final = Parameter(
    name="id", where="path", type=Name, description="id of the tenant", required=True, twin="tenant_id"
)
_IF_MATCH: Final = msgspec.structs.replace(
    IF_MATCH, required=False, description="`ETag` of the version that was read; absent: whatever there is"
)
_ERRORS: Final = (*UNKNOWN, *OPERATOR_ONLY, *BUS_AWAY)

TENANTS: Final[tuple[Operation, ...]] = (
    Operation(
        method="GET",
        path="/v1/tenants",
        operation_id="listTenants",
        twin="tenants.list",
        plane=Plane.CONTROL,
        requirements=("ORCH-3036", "ORCH-3077"),
        summary="Every tenant that has limits of its own",
        replies=(Reply(status=200, description="By id", body=TenantList),),
        errors=(*OPERATOR_ONLY, *BUS_AWAY),
    ),
    Operation(
        method="GET",
        path="/v1/tenants/{id}",
        operation_id="getTenant",
        twin="tenants.get",
        plane=Plane.CONTROL,
        requirements=("ORCH-3036", "ORCH-3077"),
        summary="What a tenant may use of each pool",
        parameters=(_TENANT,),
        replies=(Reply(status=200, description="`ETag` is its version", body=Tenant),),
        errors=_ERRORS,
    ),
    Operation(
        method="PUT",
        path="/v1/tenants/{id}",
        operation_id="putTenant",
        twin="tenants.put",
        plane=Plane.CONTROL,
        requirements=("ORCH-3036", "ORCH-3075", "ORCH-3077"),
        summary="Weight and quotas, in effect at once in each pool that has no entry of its own for the tenant",
        parameters=(_TENANT, _IF_MATCH),
        request=Tenant,
        replies=(Reply(status=200, description="In effect; `ETag` is the new version", body=Tenant),),
        errors=(*_ERRORS, *BUSY, *CHANGED_MEANWHILE, *BODY_ERRORS),
    ),
    Operation(
        method="DELETE",
        path="/v1/tenants/{id}",
        operation_id="deleteTenant",
        twin="tenants.delete",
        plane=Plane.CONTROL,
        requirements=("ORCH-3036",),
        summary="The tenant has what every tenant has from now on",
        parameters=(_TENANT,),
        replies=(Reply(status=204, description="In effect"),),
        errors=_ERRORS,
    ),
)
