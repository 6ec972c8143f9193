"""The routes that are not hot, in Litestar: lookups, cancels, capabilities, health, metrics, contracts.

Auth and the correlation id have been dealt with before a request comes here (`asgi`).
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from litestar import Litestar, Request, Response, delete, get, post
from litestar.exceptions import HTTPException, MethodNotAllowedException
from litestar.types import ControllerRouterHandler

from llorch_gateway.asgi import CALL
from llorch_gateway.call import Call
from llorch_gateway.core.capability import capabilities, pool_health, without_tasks
from llorch_gateway.failures import as_orch_error
from llorch_gateway.http_errors import error_reply
from llorch_gateway.snapshot import Snapshot
from llorch_gateway.tasks import Tasks, task_id
from llorch_shared.contracts import openapi
from llorch_shared.errors import OrchError, invalid, not_found
from llorch_shared.http_api import JSON, METRICS_TEXT, OPERATIONS, Liveness, Plane, Readiness
from llorch_shared.identifiers import is_name
from llorch_shared.metrics import Metrics
from llorch_shared.wire.registry import Capabilities, PoolHealth

Ready = Callable[[], Readiness]
"""Whether this process can serve now."""
_Request = Request[Any, Any, Any]
_Reply = Response[bytes]

_encode: Final = msgspec.json.Encoder().encode


def application(*, tasks: Tasks, snapshot: Snapshot, metrics: Metrics, readiness: Ready) -> Litestar:
    handlers = (
        *_task_routes(tasks),
        *_pool_routes(snapshot),
        *_process_routes(metrics, readiness),
        *_contract_routes(),
    )
    return Litestar(
        route_handlers=handlers,
        before_request=_refuse_options,
        exception_handlers={Exception: _on_error},
        openapi_config=None,
        logging_config=None,
        pdb_on_exception=False,
        debug=False,
    )


def _task_routes(tasks: Tasks) -> tuple[ControllerRouterHandler, ...]:
    @get("/v1/tasks/{id:str}", name="getTask")
    async def get_task(request: _Request) -> _Reply:
        return _json(200, await tasks.get(_id(request), _call(request)))

    @post("/v1/tasks/{id:str}/cancel", name="cancelTask")
    async def cancel_task(request: _Request) -> _Reply:
        return await _cancel(tasks, request)

    @delete("/v1/tasks/{id:str}", name="deleteTask", status_code=200)
    async def delete_task(request: _Request) -> _Reply:
        return await _cancel(tasks, request)

    return (get_task, cancel_task, delete_task)


def _pool_routes(snapshot: Snapshot) -> tuple[ControllerRouterHandler, ...]:
    @get("/v1/capabilities", name="getCapabilities")
    async def get_capabilities() -> _Reply:
        return _json(200, told_capabilities(snapshot))

    @get("/v1/pools/{id:str}/health", name="getPoolHealth")
    async def get_pool_health(request: _Request) -> _Reply:
        return _json(200, told_health(snapshot, request.path_params["id"], _call(request)))

    return (get_capabilities, get_pool_health)


def _process_routes(metrics: Metrics, readiness: Ready) -> tuple[ControllerRouterHandler, ...]:
    @get("/metrics", name="getMetrics")
    async def get_metrics() -> _Reply:
        return Response(metrics.render(), media_type=METRICS_TEXT)

    @get("/healthz", name="getLiveness")
    async def get_liveness() -> _Reply:
        return _json(200, Liveness())

    @get("/readyz", name="getReadiness")
    async def get_readiness() -> _Reply:
        told = readiness()
        return _json(200 if told.ready else 503, told)

    return (get_metrics, get_liveness, get_readiness)


def _contract_routes() -> tuple[ControllerRouterHandler, ...]:
    paths = {plane.value: f"/openapi/{plane}.json" for plane in Plane}
    documents = {f"{plane}.json": _encode(openapi.document(plane)) for plane in Plane}

    @get("/openapi", name="listContracts")
    async def list_contracts() -> _Reply:
        return _json(200, paths)

    @get("/openapi/{plane:str}", name="getContract")
    async def get_contract(request: _Request) -> _Reply:
        document = documents.get(request.path_params["plane"])
        if document is None:
            raise not_found(f"the contract {request.path_params['plane']!r}")
        return Response(document, media_type=JSON)

    return (list_contracts, get_contract)


def told_capabilities(snapshot: Snapshot) -> Capabilities:
    return capabilities(snapshot.pools, snapshot.replicas, snapshot.loads)


def told_health(snapshot: Snapshot, pool: str, call: Call) -> PoolHealth:
    """Without the ids of tasks for a caller that is bound to its tenant: most are others'. Raises OrchError: 400 for
    what is not a name, 404 for a pool that nobody wants."""
    if not is_name(pool):
        raise invalid("the pool id is not a name")
    if pool not in snapshot.pools:
        raise not_found(f"pool {pool}")
    told = pool_health(snapshot.replicas.get(pool, ()), snapshot.loads.get(pool))
    return without_tasks(told) if call.bound else told


async def _cancel(tasks: Tasks, request: _Request) -> _Reply:
    ended, view = await tasks.cancel(_id(request), _call(request))
    return Response(b"", status_code=204, media_type=JSON) if ended else _json(202, view)


def _id(request: _Request) -> str:
    return task_id(request.path_params["id"])


def _call(request: _Request) -> Call:
    call = request.scope[CALL]  # type: ignore[typeddict-item]
    assert isinstance(call, Call)
    return call


def _json(status: int, body: object) -> _Reply:
    return Response(_encode(body), status_code=status, media_type=JSON)


async def _refuse_options(request: _Request) -> None:
    """Litestar would answer OPTIONS by itself, naming the methods of only one of a path's handlers."""
    if request.method == "OPTIONS":
        raise MethodNotAllowedException


def _on_error(request: _Request, error: Exception) -> _Reply:
    """Litestar's own refusals, and ours, in the one envelope."""
    allow = ""
    if isinstance(error, MethodNotAllowedException):
        allow = ", ".join(methods_of(request.scope["path"]))
        known: OrchError = invalid(f"this path takes {allow}", status=405)
    elif isinstance(error, HTTPException) and error.status_code == 404:
        known = invalid("there is no such path", status=404)
    elif isinstance(error, HTTPException) and error.status_code < 500:
        known = invalid(error.detail)
    else:
        known = as_orch_error(error, _call(request).correlation_id)
    status, headers, body = error_reply(known, _call(request).correlation_id, allow=allow)
    reply: _Reply = Response(body, status_code=status)
    for name, value in headers:
        reply.headers[name.decode()] = value.decode()
    return reply


def methods_of(path: str) -> list[str]:
    """Methods of every operation whose path this is."""
    parts = path.strip("/").split("/")
    return sorted({operation.method for operation in OPERATIONS if _is_path(operation.path, parts)})


def _is_path(template: str, parts: list[str]) -> bool:
    wanted = template.strip("/").split("/")
    return len(wanted) == len(parts) and all(
        want.startswith("{") or want == part for want, part in zip(wanted, parts, strict=True)
    )
