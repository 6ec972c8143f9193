"""Examples of what operators ask of pools and tenants."""

from typing import Any, Final

from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.wire.desired import (
    DrainRequest,
    PoolDrain,
    PoolList,
    PoolReload,
    PoolView,
    ReloadRequest,
    ReloadState,
    Tenant,
    TenantList,
)
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine

POOL: Final = PoolSpec(id="small", engine=Engine.LLAMACPP, model="file:/models/small.gguf", slots=4)
TENANT: Final = Tenant(id="acme", weight=3, max_concurrent=8, tokens_per_min=100_000)
_DRAIN: Final = PoolDrain(pool_id="small", requested_ms=1_760_000_000_000, deadline_ms=60_000, identity="token:a1b2c3")
_RELOAD: Final = PoolReload(
    id="5f0c1a2b3d4e5f60",
    pool_id="small",
    new_model_ref="file:/models/new.gguf",
    old_model_ref="file:/models/small.gguf",
    state=ReloadState.UNDERWAY,
    requested_ms=1_760_000_000_000,
    identity="token:a1b2c3",
    channel="http",
)


def _refusal(message: str, **fields: Any) -> ErrorBody:
    return ErrorBody(code=ErrorCode.INVALID_PARAMS, message=message, **fields)


_BOUND: Final = _refusal("this token is bound to a tenant and may not operate the system")
_UNKNOWN: Final = _refusal("pool small is not known here")
_LATE: Final = _refusal("pool small was changed meanwhile: read it again")

OPERATION_EXAMPLES: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "createPool": (
        {"name": "made", "request": POOL, "status": 201, "response": POOL},
        {"name": "there already", "request": POOL, "status": 409, "response": _refusal("there is a pool small")},
        {"name": "bound to a tenant", "request": POOL, "status": 403, "response": _BOUND},
    ),
    "listPools": (
        {
            "name": "one pool",
            "status": 200,
            "response": PoolList(pools=(PoolView(revision=12, drained=False, spec=POOL),)),
        },
    ),
    "getPool": (
        {"name": "there", "status": 200, "response": POOL},
        {"name": "not there", "status": 404, "response": _UNKNOWN},
    ),
    "replacePool": (
        {"name": "in effect", "request": POOL, "status": 200, "response": POOL},
        {"name": "changed meanwhile", "request": POOL, "status": 412, "response": _LATE},
    ),
    "deletePool": ({"name": "its replicas drain", "status": 204},),
    "drainPool": ({"name": "asked", "request": DrainRequest(deadline_ms=60_000), "status": 202, "response": _DRAIN},),
    "undrainPool": ({"name": "serves again", "status": 204},),
    "reloadPool": (
        {
            "name": "asked",
            "request": ReloadRequest(new_model_ref="file:/models/new.gguf"),
            "status": 202,
            "response": _RELOAD,
        },
        {
            "name": "one is under way",
            "request": ReloadRequest(new_model_ref="file:/models/third.gguf"),
            "status": 409,
            "response": _refusal("pool small is being reloaded to file:/models/new.gguf", pool_id="small"),
        },
    ),
    "listTenants": ({"name": "one tenant", "status": 200, "response": TenantList(tenants=(TENANT,))},),
    "getTenant": ({"name": "there", "status": 200, "response": TENANT},),
    "putTenant": (
        {"name": "in effect", "request": TENANT, "status": 200, "response": TENANT},
        {"name": "bound to a tenant", "request": TENANT, "status": 403, "response": _BOUND},
    ),
    "deleteTenant": ({"name": "as every tenant", "status": 204},),
}
