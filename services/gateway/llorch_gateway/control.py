"""Operations over HTTP, in Litestar: one route for each handler, made from the operation's row.

Auth and the correlation id have been dealt with before a request comes here (`front`).
"""

import re
from typing import Any, Final
from urllib.parse import parse_qs

from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException, MethodNotAllowedException
from litestar.handlers import HTTPRouteHandler, route

from llorch_gateway.asgi import CALL
from llorch_gateway.bodies import check_json, read_body
from llorch_gateway.call import Call
from llorch_gateway.failures import as_orch_error
from llorch_gateway.http_errors import error_reply
from llorch_gateway.operations import OPERATION, Answer, Handler, Handlers, asked_over_http
from llorch_shared.errors import OrchError, invalid
from llorch_shared.http_api import OPERATIONS, Operation

_Request = Request[Any, Any, Any]
_Reply = Response[bytes]

BODY_HEADERS: Final = (b"content-length", b"content-type")


def application(handlers: Handlers, *, body_bytes_max: int, body_read_s: float) -> Litestar:
    return Litestar(
        route_handlers=[
            _route(OPERATION[name], handler, body_bytes_max, body_read_s) for name, handler in handlers.items()
        ],
        before_request=_refuse_options,
        exception_handlers={Exception: _on_error},
        openapi_config=None,
        logging_config=None,
        pdb_on_exception=False,
        debug=False,
    )


def _route(operation: Operation, handler: Handler, body_bytes_max: int, body_read_s: float) -> HTTPRouteHandler:
    async def serve(request: _Request) -> _Reply:
        headers = {name.lower(): value for name, value in request.headers.items()}
        body = b""
        if operation.request is not None:
            raw = {
                name: headers.get(name.decode(), "").encode("latin-1") for name in (b"content-length", b"content-type")
            }
            body = await read_body(request.receive, raw, body_bytes_max, within_s=body_read_s)
            check_json(raw, operation.summary)
        ask = asked_over_http(
            operation,
            _call(request),
            path=request.path_params,
            query=_query(request),
            headers=headers,
            body=body,
        )
        return _reply(await handler(ask))

    path = re.sub(r"\{(\w+)\}", r"{\1:str}", operation.path)
    return route(path, http_method=[operation.method], name=operation.operation_id, status_code=200)(serve)


def _call(request: _Request) -> Call:
    call = request.scope[CALL]  # type: ignore[typeddict-item]
    assert isinstance(call, Call)
    return call


def _query(request: _Request) -> dict[str, str]:
    """Raises OrchError 400 when a parameter is given more than once."""
    given = parse_qs(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    for name, values in given.items():
        if len(values) > 1:
            raise invalid(f"{name}: give it once")
    return {name: values[0] for name, values in given.items()}


def _reply(answer: Answer) -> _Reply:
    body = b"" if answer.status == 204 else answer.encoded()
    reply: _Reply = Response(body, status_code=answer.status, media_type=answer.media_type)
    for name, value in answer.headers:
        reply.headers[name] = value
    return reply


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
