"""One operation, however it is asked: what the caller gave, already checked against the operation's row, and what is
answered. Every handler is served over HTTP (`control`) and on the bus (`bus_api`); it knows neither."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from llorch_gateway.bodies import check_values
from llorch_gateway.call import Call
from llorch_shared.errors import invalid
from llorch_shared.http_api import JSON, OPERATIONS, Operation, Parameter
from llorch_shared.readable import UNREADABLE

T = TypeVar("T")

_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY: Final = msgspec.json.Decoder()
_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Ask:
    """`given`: parameters by their names in the row, of the row's types; one that was not given is absent."""

    call: Call
    given: Mapping[str, Any]
    raw: bytes = b""
    """The body; empty where the row names no request."""

    def body(self, kind: type[T]) -> T:
        """The body as the type that the row names. Raises OrchError 400."""
        return _decoded(msgspec.json.Decoder(kind), self.raw)


@dataclass(frozen=True, slots=True)
class Answer:
    """`body`: bytes are sent as they are, anything else as JSON; None is no body, and over HTTP a 204 has none whatever
    is said here. `headers` are names and values."""

    body: Any = None
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    media_type: str = JSON

    def encoded(self) -> bytes:
        if self.body is None:
            return b""
        return self.body if isinstance(self.body, bytes) else _encode(self.body)


Handler = Callable[[Ask], Awaitable[Answer]]
Handlers = Mapping[str, Handler]
"""By operation_id."""

OPERATION: Final[Mapping[str, Operation]] = {operation.operation_id: operation for operation in OPERATIONS}


def asked_over_http(
    operation: Operation,
    call: Call,
    *,
    path: Mapping[str, str],
    query: Mapping[str, str],
    headers: Mapping[str, str],
    body: bytes,
) -> Ask:
    """`headers` by names in lower case. Raises OrchError 400 for what the row does not permit."""
    wanted = {parameter.name: headers.get(parameter.name.lower()) for parameter in operation.parameters}
    places: Mapping[str, Mapping[str, str | None]] = {"path": path, "query": query, "header": wanted}
    given = {}
    for parameter in operation.parameters:
        text = places[parameter.where].get(parameter.name)
        if text is not None:
            given[parameter.name] = _value(parameter, text)
        elif parameter.required:
            raise invalid(f"{parameter.name}: it is required")
    filters = {parameter.name for parameter in operation.parameters if parameter.where == "query"}
    if filters and (unknown := query.keys() - filters):
        raise invalid(f"{min(unknown)[:80]!r} is no parameter of this operation; it has {', '.join(sorted(filters))}")
    return Ask(call, given, body)


def asked_on_the_bus(operation: Operation, call: Call, payload: bytes) -> Ask:
    """One flat object: parameters by their keys beside the fields of the body. Raises as `asked_over_http`, and
    OrchError 413 for too many values."""
    check_values(payload)
    if operation.request is not None and not operation.parameters:
        return Ask(call, {}, payload)
    fields = _decoded(_OBJECT, payload or b"{}")
    given = {}
    for parameter in operation.parameters:
        if (raw := fields.pop(parameter.key, None)) is not None:
            given[parameter.name] = _value(parameter, _decoded(_ANY, raw))
        elif parameter.required:
            raise invalid(f"{parameter.key}: it is required")
    if operation.request is not None:
        return Ask(call, given, _encode(fields))
    if fields:
        raise invalid(f"this operation has no field {min(fields)!r}")
    return Ask(call, given)


def _value(parameter: Parameter, given: Any) -> Any:
    try:
        return msgspec.convert(given, parameter.type, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(f"{parameter.name}: {error}") from error


def _decoded(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw) -> T:
    try:
        return decoder.decode(data)
    except UNREADABLE as error:
        raise invalid(str(error)) from error
