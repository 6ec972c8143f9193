"""What the command line expects of a gateway, as Pact v3: contracts/pacts/cli-consumer-orchestratord.json.

Every promise is one request with the state of the system that it needs, and the least of an answer that the client
relies on. `write` makes the file by letting real clients talk to Pact's mock of the gateway; `test_pacts.py` compares
what they would write today with the file, and lets Pact ask a real gateway everything in it.

    PYTHONPATH=tests python -m contract.pacts      writes the file
"""

import json
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import msgspec
from pact import Pact, match

from llorch_ctl.exits import Problem
from llorch_ctl.gateway_client import GatewayClient
from llorch_shared.settings import Secret
from support.client import task_request

os.environ["PACT_DO_NOT_TRACK"] = "true"
"""The verifier would tell its makers that it ran."""

FOLDER: Final = Path(__file__).parents[2] / "contracts" / "pacts"
CONSUMER: Final = "cli-consumer"
PROVIDER: Final = "orchestratord"
FILE: Final = FOLDER / f"{CONSUMER}-{PROVIDER}.json"

TASK: Final = "6f1d3c1e-64a0-4e1a-9f53-{:012d}"
"""Ids are part of the file, so they are the same each time."""

READY: Final = "a pool serves mock:words"
WAITING: Final = "a task waits in the queue of mock:busy"
ENDED: Final = "a task of three tokens has ended"
SPENT: Final = "a session has 100 tokens left"
FULL: Final = "the queue of mock:busy is full"
CROWDED: Final = "newcomers come to the full queue of mock:dropping"
UNREADY: Final = "no node serves mock:nowhere"
EXHAUSTED: Final = "the only replica of mock:broken has failed"
BUS_AWAY: Final = "the bus is away"
HANGING: Final = "the engine of mock:words falls silent"
LOST: Final = "the engine of mock:words loses a task that must not go on"
DAMAGED: Final = "a task refers to a prompt that is damaged"

_SESSION: Final = {
    "session_id": TASK.format(13),
    "ttl_ms_remaining": match.integer(600_000),
    "turns": match.integer(0),
    "kv_bytes": match.integer(0),
    "kv_warmth": match.boolean(False),
    "tokens_budget_remaining": 100,
}
_CORRELATION: Final = match.regex("9d2c4f0e-5b1a-4c7d-8e9f-102030405060", regex=r"^[A-Za-z0-9._:-]{1,128}$")
_SECONDS: Final = match.regex("2", regex=r"^[1-9][0-9]*$")
_MILLISECONDS: Final = match.regex("2000", regex=r"^[0-9]+$")
_WORDS: Final = match.like("why, in words")
_TOKENS: Final = "".join(f'id: 1-{i}\nevent: token\ndata: {{"t":" w{i}","i":{i}}}\n\n' for i in range(3))
_STREAM: Final = (
    'retry: 1000\n\nevent: started\ndata: {"queue_position":0,"predicted_start_ms":0}\n\n'
    f"{_TOKENS}id: 1-3\nevent: end\n"
    'data: {"tokens_out":3,"decode_ms":1,"decode_time_ms":1,"finish_reason":"length"}\n\n'
)
_STREAM_PATTERN: Final = (
    r"^retry: \d+\n\nevent: started\ndata: \{[^\n]*\}\n\n"
    r"(event: metrics\ndata: \{[^\n]*\}\n\n)*"
    r'(id: 1-\d\nevent: token\ndata: \{"t":"[^\n]*","i":\d\}\n\n){3}'
    r'id: 1-3\nevent: end\ndata: \{"tokens_out":3,"decode_ms":\d+,"decode_time_ms":\d+,'
    r'"finish_reason":"length"[^\n]*\}\n\n$'
)


@dataclass(frozen=True)
class Promise:
    """`ask` is what a real client does; it raises Problem or httpx.HTTPStatusError when it is refused."""

    title: str
    state: str
    method: str
    path: str
    status: int
    ask: Callable[[str], Awaitable[object]]
    body: Any = None
    answer: Any = None
    """JSON, or text where `content_type` says so."""
    headers: dict[str, Any] = field(default_factory=dict)
    """Of the answer, beside X-Correlation-Id."""
    asked_with: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    pattern: str = ""
    """What the text of the answer looks like, where it is not JSON."""


def _submit(number: int, model: str, *, state: str, title: str, status: int, answer: Any, **more: Any) -> Promise:
    request = task_request(task_id=TASK.format(number), session_id=TASK.format(0), model_ref=model)
    sent = json.loads(msgspec.json.encode(request))
    raw = {**sent, **more.pop("raw", {})}

    async def ask(url: str) -> object:
        if raw != sent:
            return await _post(url, "/v1/tasks", raw, {})
        async with GatewayClient(url, Secret("")) as client:
            return await client.submit(request)

    return Promise(title, state, "POST", "/v1/tasks", status, ask, body=raw, answer=answer, **more)


def _chat(number: int, model: str, *, state: str, title: str, status: int, code: str, **more: Any) -> Promise:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, **more.pop("raw", {})}
    asked_with = {"X-Llorch-Task-Id": TASK.format(number), **more.pop("asked_with", {})}

    async def ask(url: str) -> object:
        return await _post(url, "/v1/chat/completions", body, asked_with)

    answer = {"error": {"code": code, "message": _WORDS, "type": _WORDS}}
    return Promise(
        title, state, "POST", "/v1/chat/completions", status, ask, body, answer, asked_with=asked_with, **more
    )


def _task(title: str, state: str, method: str, suffix: str, status: int, number: int, **more: Any) -> Promise:
    task = TASK.format(number)

    async def ask(url: str) -> object:
        async with GatewayClient(url, Secret("")) as client:
            if suffix == "/stream":
                return [event async for event in client.stream(task)]
            return await (client.cancel(task) if suffix == "/cancel" else client.show(task))

    return Promise(title, state, method, f"/v1/tasks/{task}{suffix}", status, ask, **more)


def _call(title: str, state: str, method: str, path: str, status: int, *, answer: Any = None) -> Promise:
    async def ask(url: str) -> object:
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            reply = await http.request(method, path)
            return reply.raise_for_status().content

    return Promise(title, state, method, path, status, ask, answer=answer)


def _error(code: str, **more: Any) -> dict[str, Any]:
    return {"code": code, "message": _WORDS, "engine": "mock", **more}


COME_BACK: Final = {"Retry-After": _SECONDS, "X-Backoff-Ms": _MILLISECONDS}
PROMISES: Final[tuple[Promise, ...]] = (
    _submit(
        1,
        "mock:words",
        title="a task",
        state=READY,
        status=202,
        answer={
            "task_id": TASK.format(1),
            "queue_position": match.integer(0),
            "predicted_start_ms": match.integer(0),
            "backoff_ms": match.integer(0),
            "correlation_id": _CORRELATION,
        },
    ),
    _task("a cancel", WAITING, "POST", "/cancel", 204, 2),
    _task(
        "a look at a task",
        ENDED,
        "GET",
        "",
        200,
        3,
        answer={
            "task_id": TASK.format(3),
            "state": "done",
            "tokens_out": 3,
            "finish_reason": "length",
            "pool_id": "mock",
        },
    ),
    _task(
        "the stream of a task",
        ENDED,
        "GET",
        "/stream",
        200,
        3,
        answer=_STREAM,
        pattern=_STREAM_PATTERN,
        asked_with={"Accept": "text/event-stream"},
        content_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    ),
    _call("a session", SPENT, "GET", f"/v1/sessions/{TASK.format(13)}", 200, answer=_SESSION),
    _call("the end of a session", SPENT, "DELETE", f"/v1/sessions/{TASK.format(13)}", 204),
    _submit(
        4,
        "mock:busy",
        title="a task for a full queue that rejects",
        state=FULL,
        status=429,
        answer=_error("ADMISSION_REJECT", retriable=True, retry_after_ms=match.integer(2000), policy_label="reject"),
        headers=COME_BACK,
    ),
    _chat(
        5,
        "mock:dropping",
        title="a completion that makes way in a full queue",
        state=CROWDED,
        status=429,
        code="QUEUE_FULL_DROP_LRU",
        asked_with={"X-Llorch-Priority": "batch"},
        headers=COME_BACK,
    ),
    _submit(
        6,
        "mock:words",
        title="a task without room for a prompt",
        state=READY,
        status=400,
        answer=_error("INVALID_PARAMS"),
        raw={"ctx": 0, "max_tokens": 0},
    ),
    _submit(
        7,
        "mock:nowhere",
        title="a task that no node serves",
        state=UNREADY,
        status=503,
        answer=_error("POOL_UNREADY", retriable=True, retry_after_ms=match.integer(1000), pool_id="nowhere"),
        headers={"Retry-After": _SECONDS},
    ),
    _submit(
        8,
        "mock:broken",
        title="a task whose replicas have all failed",
        state=EXHAUSTED,
        status=503,
        answer=_error("REPLICA_EXHAUSTED", retriable=True, retry_after_ms=match.integer(1000), pool_id="broken"),
        headers={"Retry-After": _SECONDS},
    ),
    _chat(9, "mock:words", title="a completion that falls silent", state=HANGING, status=500, code="DECODE_TIMEOUT"),
    _chat(
        10,
        "mock:words",
        title="a completion whose engine is lost",
        state=LOST,
        status=500,
        code="WORKER_RESET",
        asked_with={"X-Llorch-Failover": "fail"},
    ),
    _chat(11, "mock:words", title="the answer of a damaged task", state=DAMAGED, status=500, code="INTERNAL"),
    _task(
        "with the bus away, a look at a task",
        BUS_AWAY,
        "GET",
        "",
        503,
        12,
        answer={"code": "POOL_UNAVAILABLE", "message": _WORDS, "retriable": True},
        headers={"Retry-After": _SECONDS},
    ),
)
"""The file is sorted by title: the one that takes the bus away is last there, too."""


async def _post(url: str, path: str, body: Any, headers: dict[str, str]) -> object:
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        answer = await http.post(path, json=body, headers=headers)
        answer.raise_for_status()
        return answer.json()


def write(folder: Path) -> Path:
    """Let the clients meet the mock, and write what they expect. Returns the file."""
    for promise in PROMISES:
        pact = Pact(CONSUMER, PROVIDER).with_specification("V3")
        _describe(pact, promise)
        with pact.serve() as mock:
            anyio.run(_meet, promise, str(mock.url).replace("localhost", "127.0.0.1"))
        pact.write_file(folder)
    written = folder / FILE.name
    document = json.loads(written.read_text())
    document["metadata"] = {"pactSpecification": {"version": "3.0.0"}}
    written.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return written


async def _meet(promise: Promise, url: str) -> None:
    """Raises AssertionError when the client takes the answer for something else than the promise says."""
    refused = None
    try:
        await promise.ask(url)
    except (Problem, httpx.HTTPStatusError) as error:
        refused = error
    assert (refused is not None) is (promise.status >= 400), f"{promise.title}: {refused!r}"


def _describe(pact: Pact, promise: Promise) -> None:
    asked = pact.upon_receiving(promise.title).given(promise.state).with_request(promise.method, promise.path)
    for name, value in promise.asked_with.items():
        asked.with_header(name, value)
    if promise.body is not None:
        asked.with_body(promise.body, "application/json")
    answered = asked.will_respond_with(promise.status).with_header("X-Correlation-Id", _CORRELATION)
    for name, value in promise.headers.items():
        answered.with_header(name, value)
    if promise.answer is not None:
        answered.with_body(promise.answer, promise.content_type)
    if promise.pattern:
        answered.with_matching_rules({"body": {"$": {"matchers": [{"match": "regex", "regex": promise.pattern}]}}})


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    FILE.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as made:
        FILE.write_bytes(write(Path(made)).read_bytes())
    sys.stdout.write(f"{FILE}: {len(PROMISES)} promises\n")
