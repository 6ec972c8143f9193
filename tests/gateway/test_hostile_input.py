"""Whatever stands in a field, the answer is one that the operation's row has: never a fault of the gateway."""

import copy
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec
import pytest
from msgspec import inspect

from llorch_gateway.anthropic.core.request import read as read_message
from llorch_gateway.openai.core.request import read as read_completion
from llorch_gateway.openai.core.responses_request import read as read_response
from llorch_gateway.openai.core.results import read_embedding, read_rerank
from llorch_shared import subjects
from llorch_shared.contracts.examples import of_operation
from llorch_shared.contracts.schemas import wire_types
from llorch_shared.errors import ErrorCode, OrchError
from llorch_shared.guards import check_request
from llorch_shared.http_api import OPERATIONS, Operation
from support.client import task_request
from support.gateways import Cluster, Door, pool_spec, replica

NASTY: Final[tuple[Any, ...]] = (
    "",
    "\x00\x1b[2J",
    "a b.*>",
    "../../etc/passwd",
    "http://user:secret@host/x",
    "\U0001f600" * 300,
    10**30,
    -1,
    1.5e308,
    True,
    None,
    [],
    [[]],
    {"a": {"b": []}},
)
BROKEN: Final = (b"\xff\xfe", b"[" * 5_000, b'"\\ud800"', b"NaN", b"1e999", b"-", b"{}{}")
"""JSON that is none, or that no decoder should trust."""
BREAKS: Final = ("\n", "\r", "\x00", "\x7f", "\u2028")
"""Behind what is right."""
NEW_ID: Final = "00000000-0000-4000-8000-000000000001"
COMPATIBLE: Final[Mapping[str, Callable[..., Any]]] = {
    "createChatCompletion": functools.partial(read_completion, chat=True),
    "createCompletion": functools.partial(read_completion, chat=False),
    "createResponse": read_response,
    "createMessage": read_message,
    "createEmbedding": read_embedding,
    "createRanking": read_rerank,
}
POOLS: Final = {
    pool.id: pool
    for pool in (
        pool_spec("chat"),
        pool_spec("vectors", model="mock:vectors", workloads=["embedding"]),
        pool_spec("ranks", model="mock:ranks", workloads=["rerank"]),
    )
}
POOL_OF: Final = {"createEmbedding": "vectors", "createRanking": "ranks"}
REPLICAS: Final = {name: [replica(name, workloads=pool.serves)] for name, pool in POOLS.items()}


def example(operation: Operation) -> Mapping[str, Any]:
    """A request that was answered well."""
    told = of_operation(operation.operation_id)
    return next((each.get("request", {}) for each in told if each["status"] < 300), {})


def as_twin(operation: Operation) -> dict[str, Any]:
    """The same on the bus."""
    asked = example(operation)
    given = {**asked.get("path", {}), **asked.get("query", {}), **asked.get("headers", {})}
    flat = {parameter.key: given[parameter.name] for parameter in operation.parameters if parameter.name in given}
    return flat | asked.get("body", {})


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of everything inside."""
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*at, key)
        yield from paths(one, (*at, key))


def spoilt(body: dict[str, Any], fields: tuple[str, ...] = ()) -> Iterator[bytes]:
    """With each part in turn, and each of the `fields`, replaced by what does not belong there."""
    yield from BROKEN
    full = {name: None for name in fields if name not in body} | body
    for path in paths(full):
        made = copy.deepcopy(body)
        place = functools.reduce(lambda outer, key: outer[key], path[:-1], made)
        present = place.get(path[-1]) if isinstance(place, dict) else place[path[-1]]
        more = tuple(present + each for each in BREAKS) if isinstance(present, str) else ()
        for nasty in (*NASTY, *more):
            place[path[-1]] = nasty
            yield json.dumps(made).encode()
        place[path[-1]] = "@@"
        marked = json.dumps(made).encode()
        for raw in BROKEN:
            yield marked.replace(b'"@@"', raw)


def fields_of(operation: Operation) -> tuple[str, ...]:
    kind = operation.request
    own = msgspec.structs.fields(kind) if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else ()
    return tuple(field.encode_name for field in own)


async def test_no_request_on_the_bus_makes_a_fault(cluster: Cluster, door: Door) -> None:
    faults = []
    for operation in OPERATIONS:
        keys = tuple(parameter.key for parameter in operation.parameters)
        for data in spoilt(as_twin(operation), keys + fields_of(operation)) if operation.twin else ():
            answer = await cluster.bus.request(subjects.api(operation.twin), data, timeout_s=15)
            if answer.headers.get("Nats-Service-Error-Code") == "500":
                faults.append((operation.operation_id, data[:300]))
    assert not faults


async def test_no_request_over_http_makes_a_fault(door: Door) -> None:
    """Parameters and headers; bodies are those of the twins."""
    faults = []
    for operation in OPERATIONS:
        if operation.operation_id in COMPATIBLE or operation.operation_id == "streamTask":
            continue
        asked = example(operation)
        places = {where: dict(asked.get(where, {})) for where in ("path", "query", "headers")}
        body = json.dumps(asked["body"]).encode() if "body" in asked else b""
        for parameter in operation.parameters:
            where = {"header": "headers"}.get(parameter.where, parameter.where)
            right = str(places[where].get(parameter.name, ""))
            for text in (*filter(lambda each: isinstance(each, str), NASTY), *(right + each for each in BREAKS)):
                given = {**places, where: {**places[where], parameter.name: text}}
                path = operation.path.format(**given["path"])
                query = "&".join(f"{name}={quote(str(value))}" for name, value in given["query"].items())
                headers = {"content-type": "application/json", **given["headers"]}
                reply = await door.request(operation.method, f"{path}?{query}", body, headers)
                if reply.status == 500:
                    faults.append((operation.operation_id, parameter.name, text[:80]))
    assert not faults


@pytest.mark.parametrize("operation_id", COMPATIBLE)
def test_no_request_of_another_vendors_client_makes_a_fault(operation_id: str) -> None:
    """What is read of it is a task whose message can be written and is not refused later, or it is refused by name."""
    operation = next(each for each in OPERATIONS if each.operation_id == operation_id)
    body = {**example(operation)["body"], "model": POOLS[POOL_OF.get(operation_id, "chat")].model}
    refusals = set()
    for data in spoilt(body, fields_of(operation)):
        try:
            asked = COMPATIBLE[operation_id](data, {}, new_id=NEW_ID, pools=POOLS, replicas=REPLICAS)
            task = getattr(asked, "asked", asked).task
            check_request(task)
        except OrchError as error:
            refusals.add(error.code)
        else:
            msgspec.json.encode(task)
    assert refusals <= {ErrorCode.INVALID_PARAMS, ErrorCode.DEADLINE_UNMET}


DIGEST: Final = "sha256:" + "0" * 64
WITH_CREDENTIALS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "source": ("catalog/models", {"id": "m", "digest": DIGEST, "source_url": "@@"}),
    "sbom": ("catalog/models", {"id": "m", "digest": DIGEST, "source_url": "x", "sbom": {"uri": "@@"}}),
    "pool": ("pools", {"id": "m", "engine": "mock", "model": "@@"}),
    "flags": ("pools", {"id": "m", "engine": "mock", "model": "x", "provisioning": {"flags": ["--url=@@"]}}),
    "reload": ("pools/p1/reload", {"new_model_ref": "@@"}),
    "artifact": ("artifacts", {"kind": "plan", "content": {}, "tags": ["@@"]}),
    "task": ("tasks", msgspec.to_builtins(task_request(model_ref="@@"))),
}


@pytest.mark.parametrize("url", ["https://user:hunter2@host/model", "https://hunter2@host/model"])
@pytest.mark.parametrize("where", WITH_CREDENTIALS)
async def test_a_url_with_credentials_is_refused_and_told_to_nobody(
    door: Door, where: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, body = WITH_CREDENTIALS[where]
    with caplog.at_level("DEBUG"):
        reply = await door.post(f"/v1/{path}", json.dumps(body).replace("@@", url).encode())
    assert (reply.status, reply.error.code) == (400, ErrorCode.INVALID_PARAMS)
    assert "user, password or token" in reply.error.message
    assert b"hunter2" not in reply.body
    assert "hunter2" not in caplog.text


def patterns() -> Iterator[tuple[str, str]]:
    """Of everything that callers write: where it stands, and the pattern."""
    given = {f"{each.operation_id}.{one.name}": one.type for each in OPERATIONS for one in each.parameters}
    for name, kind in {**wire_types(), **given}.items():
        pending: list[Any] = [inspect.type_info(kind)]
        seen: set[int] = set()
        while pending:
            info = pending.pop()
            if id(info) in seen or not isinstance(info, inspect.Type | inspect.Field):
                continue
            seen.add(id(info))
            if isinstance(info, inspect.StrType) and info.pattern:
                yield name, info.pattern
            for part in info.__struct_fields__:
                inner = getattr(info, part)
                pending.extend(inner if isinstance(inner, tuple) else (inner,))


def test_no_pattern_takes_a_line_break_at_its_end() -> None:
    """Python's `$` matches before one."""
    assert not {(name, pattern) for name, pattern in patterns() if pattern.endswith("$")}
