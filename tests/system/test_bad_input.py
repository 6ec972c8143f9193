"""Bad input gets a typed envelope and a 4xx, and leaves no trace in any stream."""

import json
import uuid
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from support.client import task_request
from support.system import System

pytestmark = pytest.mark.system

JSON = {"content-type": "application/json"}


def request(**changes: Any) -> bytes:
    return json.dumps({**msgspec.to_builtins(task_request()), **changes}).encode()


CASES = {
    "wrong type": (request(ctx="many"), 400),
    "unknown field": (request(colour="blue"), 400),
    "negative ctx": (request(ctx=-1), 400),
    "ctx zero": (request(ctx=0), 400),
    "no tokens": (request(max_tokens=0), 400),
    "bad uuid": (request(task_id="not-a-uuid"), 400),
    "unknown engine": (request(engine="abacus"), 400),
    "engine without a pool": (request(engine="vllm"), 400),
    "unknown model": (request(model_ref="mock:unheard-of"), 400),
    "ctx over the pool": (request(ctx=32000), 400),
    "prompt over ctx": (request(ctx=16, max_tokens=4, prompt="word " * 50_000), 400),
    "no prompt": (request(prompt=None), 400),
    "prompt and inputs": (request(inputs=["a"]), 400),
    "deadline in the past": (request(deadline_ms=0), 400),
    "workload nobody serves": (request(workload="rerank", prompt=None, inputs=["a", "b"]), 400),
    "invalid UTF-8": (request().replace(b"Say something.", b"\xff\xfe"), 400),
    "malformed JSON": (b'{"task_id": ', 400),
    "not an object": (b"[]", 400),
    "nothing": (b"", 400),
    "ten megabytes": (request(prompt="x" * 10_000_000), 400),
    "twenty megabytes": (request(prompt="x" * 20_000_000), 413),
}


async def test_bad_input_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    async with System(tmp_path) as system:
        names = ("ADM_mock_interactive", "ADM_mock_batch", "RUN", "PLC", "TOK", "AUD")
        before = {name: (await system.bus.stream_state(name)).last_seq for name in names}
        for case, (body, status) in CASES.items():
            response = await system.client().http.post("/v1/tasks", content=body, headers=JSON)
            assert response.status_code == status, f"{case}: {response.status_code} {response.text[:200]}"
            envelope(response, case)
        assert {name: (await system.bus.stream_state(name)).last_seq for name in names} == before


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/tasks/not-a-uuid", 400),
        ("GET", f"/v1/tasks/{uuid.UUID(int=7)}", 404),
        ("GET", f"/v1/tasks/{uuid.UUID(int=7)}/stream", 404),
        ("POST", f"/v1/tasks/{uuid.UUID(int=7)}/cancel", 404),
        ("PUT", "/v1/tasks", 405),
        ("GET", "/v1/tasks?state=finished", 400),
        ("PATCH", f"/v1/tasks/{uuid.UUID(int=7)}", 405),
        ("GET", "/v1/pools/unheard-of/health", 404),
        ("GET", "/v1/pools/NOT A NAME/health", 400),
        ("GET", f"/v1/tasks/{uuid.UUID(int=7)}/stream?after=soon", 400),
    ],
)
async def test_every_error_has_the_envelope(shared_system: System, method: str, path: str, status: int) -> None:
    response = await shared_system.client().http.request(method, path)
    assert response.status_code == status, response.text
    envelope(response, f"{method} {path}")
    if status == 405:
        assert response.headers["allow"]


def envelope(response: httpx.Response, case: str) -> None:
    body = response.json()
    assert {"code", "message"} <= set(body), case
    assert body["message"], case
    assert uuid.UUID(response.headers["x-correlation-id"]), case


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="module")
async def shared_system(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    async with System(tmp_path_factory.mktemp("system")) as running:
        yield running
