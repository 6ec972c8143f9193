"""The operations as the bus serves them, for the AsyncAPI document: one channel for each row that names a twin.

What is asked is one flat object: the parameters by their keys beside the fields of the body.
"""

from typing import Any, Final

import msgspec

from llorch_shared import subjects
from llorch_shared.contracts import schemas
from llorch_shared.http_api import OPERATIONS, Operation
from llorch_shared.identifiers import CORRELATION_PATTERN
from llorch_shared.subject_table import Delivery

Document = dict[str, Any]

ASKS: Final = "bus client"
ANSWERS: Final = "gateway"
_FILE: Final = "./schemas/{name}.json"
_INSIDE: Final = "#/$defs/{name}"


def add(channels: Document, operations: Document, messages: Document) -> None:
    for operation in OPERATIONS:
        if operation.twin:
            _add(operation, channels, operations, messages)


def channel_name(operation: Operation) -> str:
    """`tasks.submit` is `apiTasksSubmit`."""
    return "api" + "".join(part[:1].upper() + part[1:] for part in operation.twin.split("."))


def _add(operation: Operation, channels: Document, operations: Document, messages: Document) -> None:
    name = channel_name(operation)
    title = name[0].upper() + name[1:]
    messages[f"{title}Request"] = {
        "name": f"{title}Request",
        "headers": {
            "type": "object",
            "properties": {
                subjects.CORRELATION_HEADER: {
                    "type": "string",
                    "description": "correlation id; made by the gateway when absent",
                    "pattern": schemas.ecma(CORRELATION_PATTERN),
                }
            },
        },
        "payload": request_schema(operation),
    }
    messages[f"{title}Answer"] = {"name": f"{title}Answer", "payload": answer_schema(operation)}
    channels[name] = {
        "address": subjects.api(operation.twin),
        "title": f"{operation.summary}; the twin of {operation.method} {operation.path}",
        "x-delivery": {"kind": Delivery.REQUEST.name.lower(), "promise": Delivery.REQUEST.value},
        "x-publishers": [ASKS],
        "x-consumers": [ANSWERS],
        "x-req-id": list(operation.requirements),
        "messages": {f"{title}Request": {"$ref": f"#/components/messages/{title}Request"}},
    }
    channels[f"{name}Reply"] = {
        "address": None,
        "description": f"Reply to {name}, at the inbox that the request names",
        "messages": {f"{title}Answer": {"$ref": f"#/components/messages/{title}Answer"}},
    }
    for action, service, made in (
        ("send", ASKS, f"busClientSends{title}"),
        ("receive", ANSWERS, f"gatewayReceives{title}"),
    ):
        operations[made] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{name}"},
            "x-service": service,
            "messages": [{"$ref": f"#/channels/{name}/messages/{title}Request"}],
            "reply": {
                "channel": {"$ref": f"#/channels/{name}Reply"},
                "messages": [{"$ref": f"#/channels/{name}Reply/messages/{title}Answer"}],
            },
        }


def request_schema(operation: Operation, refs: str = _FILE) -> Document:
    """JSON Schema of what the twin takes; types by file, or as `refs` says."""
    given: Document = {
        "type": "object",
        "properties": {
            parameter.key: {**schemas.described([parameter.type], refs)[0][0], "description": parameter.description}
            for parameter in operation.parameters
        },
    }
    if required := [parameter.key for parameter in operation.parameters if parameter.required]:
        given["required"] = required
    if operation.request is None:
        return given
    body = _schema(operation.request, refs)
    return {"allOf": [given, body]} if operation.parameters else body


def answer_schema(operation: Operation, refs: str = _FILE) -> Document:
    """JSON Schema of what it answers: a body of one of its replies, or the envelope of an error."""
    return {"anyOf": [_schema(kind, refs) for kind in _answers(operation)]}


def request_schema_text(operation: Operation) -> str:
    """The same in one piece, for who has no files at hand."""
    types = [parameter.type for parameter in operation.parameters]
    types += [operation.request] if operation.request is not None else []
    return _in_one_piece(request_schema(operation, _INSIDE), types)


def answer_schema_text(operation: Operation) -> str:
    return _in_one_piece(answer_schema(operation, _INSIDE), _answers(operation))


def _answers(operation: Operation) -> list[Any]:
    return [*(reply.body for reply in operation.replies if reply.body is not None), operation.error_body]


def _in_one_piece(schema: Document, types: list[Any]) -> str:
    _, components = schemas.described(types, _INSIDE)
    return msgspec.json.encode({**schema, "$defs": components} if components else schema).decode()


def _schema(kind: Any, refs: str) -> Document:
    return schemas.described([kind], refs)[0][0]
