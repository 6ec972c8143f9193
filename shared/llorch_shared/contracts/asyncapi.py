"""The bus as AsyncAPI 3.0, made from the subject table: one channel a subject, one operation per service and side."""

import re
from typing import Any, Final

from llorch_shared import subjects
from llorch_shared.contracts import examples, schemas, twins
from llorch_shared.http_api import API_VERSION
from llorch_shared.identifiers import CORRELATION_PATTERN, NAME_PATTERN
from llorch_shared.subject_table import SUBJECTS, Subject
from llorch_shared.wire import dead
from llorch_shared.wire.version import VERSION_HEADER

Document = dict[str, Any]

FRAMES: Final = "text/event-stream"
"""Payload of subjects that carry encoded server-sent events instead of JSON."""
_FRAME_TYPES: Final = ("Started", "Token", "Metrics", "End", "ErrorBody")

_PARAMETERS: Final = {
    "pool": "pool_id",
    "priority": "class of the task",
    "tenant": "tenant_id; `default` while there is one token",
    "task": "task_id in lower case",
    "replica": "replica_id",
    "lane": "the gateway process that reads the stream; `bus` for tasks of bus clients without one",
    "event": "what happened, a value of AuditEvent",
    "key": "bucket key; may hold several dot-separated tokens",
    "node": "node_id",
    "job": "job id of the plan",
    "instance": "one life of one scheduler process",
    "what": "which queue it was taken from: `admission` or `placement`",
    "object": "name of the object, `sha256-<hex>`, in URL-safe base64",
    "chunks": "`nuid` of the entry that names these chunks",
    "kind": "a value of ArtifactKind",
    "artifact": "SHA-256 of the artifact in hexadecimal",
    "shard": "part of the pools one scheduler holds: CRC-32 of pool_id, modulo 8",
}
_CHOICES: Final = {"priority": ["interactive", "batch"]}

_VERSION: Final = {VERSION_HEADER: "version of the message; 1 when absent"}
_HEADERS: Final = {
    subjects.ADMISSION: {
        "Nats-Msg-Id": "task_id: the server refuses a second copy within 10 minutes",
        subjects.CORRELATION_HEADER: "correlation id; made by the scheduler when absent",
        subjects.LANE_HEADER: "lane for the token stream; `bus-<tenant>` when absent",
        **_VERSION,
    },
    subjects.PLACEMENT: {"Nats-Msg-Id": "`<task_id>:<run sequence>`", **_VERSION},
    subjects.RUN: _VERSION,
    subjects.REGISTRY: _VERSION,
    subjects.SPEC: _VERSION,
    subjects.CATALOG: _VERSION,
    subjects.DEAD_LETTER: {
        "Nats-Msg-Id": "`dead:<stream>:<sequence>:<stored at>` of the original",
        dead.REASON: "a value of Reason: `undecodable`, `unknown_version`, `too_large`, `unprocessable`",
        dead.PROBLEM: "the same in words",
        dead.SUBJECT: "where the original was published",
        dead.STREAM: "the stream that held it",
        dead.SEQUENCE: "its sequence there",
        dead.AT_MS: "when it was given up, Unix milliseconds",
        dead.ACTOR: "who gave it up",
        dead.TASK: "task_id, where one could be read: that task has ended with an error",
        dead.CUT: "size of the original in bytes, where only its beginning is kept",
        f"{dead.ORIGINAL}*": "the headers of the original, under this prefix",
    },
    subjects.OBJECT_ENTRY: {"Nats-Rollup": "`sub`: a new entry takes the place of the one before"},
    subjects.RUN_LIVE: {
        "Nats-Sequence": "sequence of the run record, expected by the next compare-and-set",
        **_VERSION,
    },
    subjects.REGISTRY_LIVE: {
        "Nats-Sequence": "sequence of the key's newest version",
        "Nats-Marker-Reason": "`MaxAge` or `Remove` when the key expired or was deleted",
    },
}


def document() -> Document:
    """The AsyncAPI document, ready for YAML."""
    channels: Document = {}
    operations: Document = {}
    messages: Document = {}
    for name, subject in channel_names().items():
        headers = _headers(subject)
        keys = _messages(messages, name, subject.payload, headers)
        channels[name] = _channel(subject, keys)
        reply_keys = _messages(messages, f"{name}Reply", subject.reply, {}) if subject.reply else []
        if subject.reply:
            channels[f"{name}Reply"] = {
                "address": None,
                "description": f"Reply to {name}, at the inbox that the request names",
                "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in reply_keys},
            }
        for service in subject.publishers:
            operations[f"{_camel(service)}Sends{_capital(name)}"] = _operation("send", service, name, keys, reply_keys)
        for service in subject.consumers:
            operations[f"{_camel(service)}Receives{_capital(name)}"] = _operation(
                "receive", service, name, keys, reply_keys
            )
    twins.add(channels, operations, messages)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "llama-orch bus",
            "version": API_VERSION,
            "description": "Every subject on NATS: who publishes, who consumes, what is promised. `nats-server` "
            "stands for the server's own republish of stored messages.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"nats": {"host": "127.0.0.1:4222", "protocol": "nats", "description": "NATS with JetStream"}},
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }


def channel_names() -> dict[str, Subject]:
    """Channel name → row, the name being that of the constant in subjects.py."""
    names = {
        value: _camel(name.replace("_", " ").lower())
        for name, value in vars(subjects).items()
        if name.isupper() and isinstance(value, str)
    }
    return {names[subject.pattern]: subject for subject in SUBJECTS}


def payload_names(payload: str) -> list[str]:
    """The wire types, or the one media type, of a row."""
    return payload.split(" | ")


def _is_media_type(name: str) -> bool:
    return "/" in name


def _headers(subject: Subject) -> dict[str, str]:
    return _HEADERS.get(subject.pattern, {})


def _channel(subject: Subject, keys: list[str]) -> Document:
    made: Document = {
        "address": subject.pattern,
        "title": subject.title,
        "x-delivery": {"kind": subject.delivery.name.lower(), "promise": subject.delivery.value},
        "x-publishers": list(subject.publishers),
        "x-consumers": list(subject.consumers),
        "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in keys},
    }
    if names := re.findall(r"{(\w+)}", subject.pattern):
        made["parameters"] = {name: _address_parameter(name) for name in names}
    return made


def _address_parameter(name: str) -> Document:
    made: Document = {"description": _PARAMETERS[name]}
    if name in _CHOICES:
        made["enum"] = _CHOICES[name]
    return made


def _messages(messages: Document, channel: str, payload: str, headers: dict[str, str]) -> list[str]:
    """Add a channel's messages; returns their keys. A message with headers belongs to its channel alone."""
    keys = []
    for name in payload_names(payload):
        own = _is_media_type(name) or bool(headers)
        key = f"{_capital(channel)}{'Text' if _is_media_type(name) else name}" if own else name
        message: Document = {"name": name, **_payload(name)}
        if headers:
            message["headers"] = {
                "type": "object",
                "properties": {
                    header: {"type": "string", "description": note, **_header_form(header)}
                    for header, note in headers.items()
                },
            }
        messages[key] = message
        keys.append(key)
    return keys


def _payload(name: str) -> Document:
    if name == FRAMES:
        return {
            "contentType": FRAMES,
            "summary": "One `started`, one `metrics`, one `end` or `error`, or consecutive `token` events",
            "payload": {"type": "string"},
            "x-event-data": {kind: f"./schemas/{kind}.json" for kind in _FRAME_TYPES},
            "examples": [{"name": title, "payload": text} for title, text in examples.STREAMS.items()],
        }
    if _is_media_type(name):
        return {"contentType": name, "payload": {"type": "string"}}
    made: Document = {"payload": {"$ref": f"./schemas/{name}.json"}}
    if (example := examples.of_type(name)) is not None:
        made["examples"] = [{"payload": example}]
    return made


def _header_form(header: str) -> Document:
    if header == subjects.CORRELATION_HEADER:
        return {"pattern": schemas.ecma(CORRELATION_PATTERN)}
    return {"pattern": schemas.ecma(NAME_PATTERN)} if header == subjects.LANE_HEADER else {}


def _operation(action: str, service: str, channel: str, keys: list[str], reply_keys: list[str]) -> Document:
    made: Document = {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "x-service": service,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{key}"} for key in keys],
    }
    if reply_keys:
        made["reply"] = {
            "channel": {"$ref": f"#/channels/{channel}Reply"},
            "messages": [{"$ref": f"#/channels/{channel}Reply/messages/{key}"} for key in reply_keys],
        }
    return made


def _camel(words: str) -> str:
    first, *rest = re.split(r"[ -]", words)
    return first + "".join(_capital(word) for word in rest)


def _capital(word: str) -> str:
    return word[:1].upper() + word[1:]
