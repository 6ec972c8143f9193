"""HTTP as OpenAPI 3.0.3, one document per plane, made from the operation table. Nothing is read or written here.

msgspec describes types in JSON Schema 2020-12. OpenAPI 3.0 has an older dialect: `null` is `nullable`, nothing may
stand beside `$ref`, there is no `const`, and that a bound itself is excluded is said beside it.
"""

from http import HTTPStatus
from typing import Any, Final

import msgspec

from llorch_shared.contracts import examples, schemas
from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.http_api import (
    API_VERSION,
    BUDGET_HEADERS,
    CORRELATION,
    CORRELATION_HEADER,
    COST_REMAINING_HEADER,
    HEADER_NOTES,
    JSON,
    OPERATIONS,
    STATUS_HEADERS,
    TIME_REMAINING_HEADER,
    TOKENS_REMAINING_HEADER,
    Operation,
    Parameter,
    Plane,
    Reply,
)

Schema = dict[str, Any]

_REF: Final = "#/components/schemas/{name}"
_WHOLE_NUMBERS: Final = frozenset({"Retry-After", "X-Backoff-Ms", TOKENS_REMAINING_HEADER, TIME_REMAINING_HEADER})
_TITLES: Final = {
    Plane.DATA: "llama-orch data plane: tasks and their token streams",
    Plane.CONTROL: "llama-orch control plane: capabilities, pools, health, metrics",
}
_LINKED: Final = {("submitTask", 202): ("getTask", "streamTask", "cancelTask", "deleteTask")}
"""What a client may do next with the task_id of an answer."""
_TOO_MANY: Final = 429
_TOO_MANY_FIELDS: Final = ["code", "message", "retriable", "retry_after_ms", "policy_label"]


def document(plane: Plane) -> Schema:
    """The OpenAPI document of one plane, ready for JSON or YAML."""
    operations = [operation for operation in OPERATIONS if operation.plane is plane]
    types: list[Any] = [ErrorBody, *(operation.error_body for operation in operations)]
    for operation in operations:
        types += [reply.body for reply in operation.replies if reply.body is not None]
        types += [operation.request] if operation.request is not None else []
    _, components = schemas.described(types, _REF)
    wire = schemas.wire_types()
    paths: dict[str, Schema] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.0.3",
        "info": {
            "title": _TITLES[plane],
            "version": API_VERSION,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "schemas": {name: _component(name, components[name], wire) for name in sorted(components)},
            "headers": {
                name: {"description": note, "required": name not in BUDGET_HEADERS, "schema": _header_schema(name)}
                for name, note in HEADER_NOTES.items()
            },
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "AUTH_TOKEN, a token of the token file or of the OpenID issuer; X-API-Key carries "
                    "it, too. Loopback callers may omit it where AUTH_OPTIONAL is true (AUTH-1004).",
                }
            },
        },
    }


def _operation(operation: Operation) -> Schema:
    made: Schema = {
        "operationId": operation.operation_id,
        "summary": operation.summary,
        "x-req-id": list(operation.requirements),
        "parameters": [_parameter(parameter) for parameter in (*operation.parameters, CORRELATION)],
    }
    if not operation.authenticated:
        made["security"] = []
    if operation.request is not None:
        made["requestBody"] = {"required": True, "content": {JSON: {"schema": _schema_of(operation.request)}}}
    errors = operation.error_codes()
    replies: dict[int, list[Reply]] = {}
    for reply in operation.replies:
        replies.setdefault(reply.status, []).append(reply)
    made["responses"] = {
        str(status): _reply(replies.get(status, []), status, errors.get(status, ()), operation.error_body)
        for status in sorted(replies.keys() | errors.keys())
    }
    for (source, status), targets in _LINKED.items():
        if source == operation.operation_id:
            made["responses"][str(status)]["links"] = {
                target: {"operationId": target, "parameters": {"id": "$response.body#/task_id"}} for target in targets
            }
    if listed := examples.of_operation(operation.operation_id):
        made["x-examples"] = listed
    return made


def _parameter(parameter: Parameter) -> Schema:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.required,
        "description": parameter.description,
        "schema": {"type": "string"} if parameter is CORRELATION else _schema_of(parameter.type),
    }


def _reply(replies: list[Reply], status: int, codes: tuple[ErrorCode, ...], error_body: Any) -> Schema:
    names = [CORRELATION_HEADER, *(STATUS_HEADERS.get(status, ()) if codes else ())]
    names += [name for reply in replies for name in reply.headers]
    content: dict[str, list[Schema]] = {}
    for reply in replies:
        if reply.body is not None:
            content.setdefault(reply.media_type, []).append(_schema_of(reply.body))
    if codes:
        content.setdefault(JSON, []).append(_error_schema(status, codes, error_body))
    description = replies[0].description if replies else HTTPStatus(status).phrase
    if codes:
        description += f": {', '.join(codes)}"
    made: Schema = {
        "description": description,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
    }
    if content:
        made["content"] = {
            media: {"schema": options[0] if len(options) == 1 else {"anyOf": options}}
            for media, options in content.items()
        }
    return made


def _error_schema(status: int, codes: tuple[ErrorCode, ...], error_body: Any) -> Schema:
    enumeration = {"type": "string", "enum": [code.value for code in codes]}
    narrowed: Schema = {"type": "object", "properties": {"code": enumeration}}
    if error_body is not ErrorBody:
        narrowed = {"type": "object", "properties": {"error": narrowed}}
    elif status == _TOO_MANY:
        narrowed["required"] = _TOO_MANY_FIELDS
    return {"allOf": [{"$ref": _REF.format(name=error_body.__name__)}, narrowed]}


def _header_schema(name: str) -> Schema:
    if name == COST_REMAINING_HEADER:
        return {"type": "number", "minimum": 0}
    if name in _WHOLE_NUMBERS:
        return {"type": "integer", "minimum": 0}
    return _schema_of(CORRELATION.type) if name == CORRELATION_HEADER else {"type": "string"}


def _schema_of(kind: Any) -> Schema:
    made, _ = schemas.described([kind], _REF)
    return to_openapi_30(made[0])


def _component(name: str, schema: Schema, wire: dict[str, type[msgspec.Struct]]) -> Schema:
    made = to_openapi_30(schema)
    kind = wire.get(name)
    if kind is not None:
        config = kind.__struct_config__
        if not config.omit_defaults and not config.forbid_unknown_fields:
            optional = {field.encode_name for field in msgspec.structs.fields(kind) if field.default is msgspec.UNSET}
            made["required"] = [name for name in made["properties"] if name not in optional]
        if (example := examples.of_type(name)) is not None:
            made["example"] = example
    if not made.get("required", True):
        del made["required"]
    return made


def to_openapi_30(schema: Schema, name: str = "") -> Schema:
    """One JSON Schema 2020-12 fragment, as msgspec writes them, in the dialect of OpenAPI 3.0.3."""
    made = dict(schema)
    if "const" in made:
        made["enum"] = [made.pop("const")]
    for union in ("anyOf", "oneOf"):
        if union in made:
            made = _union(made, union)
    if "$ref" in made and len(made) > 1:
        made = {"allOf": [{"$ref": made.pop("$ref")}], **made}
    if made.get("default", 0) is None:
        del made["default"]
    elif "default" in made:
        made["default"] = _without_nulls(made["default"])
    for end in ("Minimum", "Maximum"):
        bound = made.get(f"exclusive{end}")
        if bound is not None and bound is not True:
            made |= {end.lower(): bound, f"exclusive{end}": True}
    if made.get("type") == "integer":
        made.setdefault("format", "int32" if _is_small(made, name) else "int64")
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = to_openapi_30(made[key])
    if "properties" in made:
        made["properties"] = {field: to_openapi_30(value, field) for field, value in made["properties"].items()}
    if "allOf" in made:
        made["allOf"] = [to_openapi_30(part) for part in made["allOf"]]
    return made


def _without_nulls(default: Any) -> Any:
    """A section that is off by default is left out: a nullable reference takes no null in OpenAPI 3.0."""
    if isinstance(default, dict):
        return {key: _without_nulls(value) for key, value in default.items() if value is not None}
    return default


def _union(schema: Schema, union: str) -> Schema:
    options: list[Schema] = schema.pop(union)
    concrete = [option for option in options if option != {"type": "null"}]
    if len(concrete) == len(options):
        return {**schema, union: [to_openapi_30(option) for option in options]}
    if len(concrete) > 1:
        return {**schema, "nullable": True, union: [to_openapi_30(option) for option in concrete]}
    only = concrete[0]
    if "$ref" in only:
        return {**schema, "allOf": [only], "nullable": True}
    return {**to_openapi_30(only), **schema, "nullable": True}


def _is_small(schema: Schema, name: str) -> bool:
    """Counts and positions are int32 in the requirements, times, seeds and sizes are int64."""
    upper = schema.get("maximum")
    return (upper is not None and upper < 2**31) or name in {"queue_position", "tokens_in", "tokens_out", "attempt"}
