"""Secrets and prompts are planted, the system is used well and badly, and everything it wrote is searched for them.

The JetStream store is left out: requests are kept there until their tasks end, and dead letters as they came.
"""

import asyncio
import contextlib
import uuid
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest

from llorch_shared import streams, subjects
from llorch_shared.wire.task import Priority
from support.client import JSON, TaskClient, task_request
from support.processes import children_of
from support.system import System, mock_pool
from support.tokens import bearer, write_tokens

pytestmark = [pytest.mark.nats, pytest.mark.system]

MARK = "pl4nted"
STATIC, PROMPT, KEY = f"{MARK}-static", f"{MARK}-prompt", f"{MARK}-key"
TENANT = f"{MARK}-tenant-token"
"""`write_tokens` gives `NAME-token` to the entry NAME."""


async def spoil(system: System) -> list[bytes]:
    """Requests that fail, each at another place; what was answered to them."""
    request = task_request(prompt=PROMPT)
    sent: list[tuple[str, str, bytes, dict[str, str]]] = [
        ("POST", "/v1/tasks", b'{"prompt": "' + PROMPT.encode(), {}),
        ("POST", "/v1/tasks", msgspec.json.encode({"promt": PROMPT, "api_key": KEY}), {}),
        ("POST", "/v1/tasks", changed(request, task_id=PROMPT), {}),
        ("POST", "/v1/tasks", changed(request, seed=PROMPT), {}),
        ("POST", "/v1/tasks", changed(request, ctx=32_000), {}),
        ("POST", "/v1/tasks", changed(request, deadline_ms=0), {}),
        ("POST", "/v1/tasks", changed(request, model_ref="mock:none"), {}),
        ("POST", "/v1/tasks", changed(request, priority="batch"), {}),
        ("POST", "/v1/tasks", msgspec.json.encode(request), bearer(f"{STATIC}-wrong")),
        ("POST", "/v1/tasks", msgspec.json.encode(request), {"authorization": f"Basic {KEY}"}),
        ("GET", f"/v1/capabilities?token={KEY}", b"", {"x-api-key": KEY}),
        ("GET", f"/v1/tasks/{uuid.uuid4()}/stream?token={KEY}", b"", {"x-api-key": KEY}),
        ("DELETE", f"/v1/tasks/{uuid.uuid4()}", PROMPT.encode(), {}),
    ]
    answers = []
    async with httpx.AsyncClient(base_url=system.url(), timeout=15) as http:
        for method, path, body, headers in sent:
            told = await http.request(
                method, path, content=body, headers={**JSON, **bearer(TENANT), "accept": "*/*", **headers}
            )
            assert told.status_code >= 400 or "capabilities" in path, (method, path, told.text)
            assert told.status_code < 500, told.text
            answers.append(told.content + str(told.headers).encode())
    return answers


def changed(request: Any, **changes: Any) -> bytes:
    return msgspec.json.encode({**msgspec.to_builtins(request), **changes})


async def use(system: System, client: TaskClient) -> None:
    """Tasks that end well, cancelled, failed by their engine, and with their engine killed."""
    request = task_request(max_tokens=5, prompt=PROMPT)
    await client.submit(request)
    (await client.read(request.task_id)).check()
    request = task_request(max_tokens=1_500, prompt=PROMPT)
    await client.submit(request)
    await client.read(request.task_id, tokens_max=2)
    assert await client.cancel(request.task_id) in (202, 204)
    await system.fault("mock:words", {"kind": "fail", "times": 1})
    request = task_request(max_tokens=5, prompt=PROMPT)
    await client.submit(request)
    await client.read(request.task_id)
    request = task_request(max_tokens=300, prompt=PROMPT)
    await client.submit(request)
    transcript = await client.read(request.task_id, tokens_max=2)
    system.kill9_engine()
    await client.read(request.task_id, into=transcript)


async def poison(system: System) -> None:
    """What nobody can read, straight on the bus, until it is set aside."""
    subject = subjects.admission("mock", Priority.INTERACTIVE, "default")
    await system.bus.store(subject, b'{"prompt": "' + PROMPT.encode())

    async def set_aside() -> bool:
        return (await system.bus.stream_state(streams.DEAD)).messages > 0

    await system.until(set_aside, "the dead letter", 15)


def command_lines(pids: set[int]) -> dict[str, str]:
    found = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            found[f"argv of {pid}"] = " ".join(psutil.Process(pid).cmdline())
    return found


def files_of(system: System) -> dict[str, str]:
    store = system.nats.folder
    return {
        str(path): path.read_bytes().decode("latin-1")
        for path in system.folder.rglob("*")
        if path.is_file() and (store not in path.parents or path.suffix in (".log", ".conf"))
    }


async def metrics_of(system: System) -> dict[str, str]:
    found = {}
    for name in system.processes:
        async with httpx.AsyncClient(base_url=system.url(name), headers=bearer(STATIC), timeout=15) as http:
            found[f"metrics of {name}"] = (await http.get("/metrics")).raise_for_status().text
    return found


async def test_nothing_that_the_system_writes_shows_a_token_a_prompt_or_a_key(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    write_tokens(tokens, 'priorities = ["interactive"]', **{f"{MARK}-tenant": "blue"})
    pool = mock_pool(replicas=1, slots=2, rate=100, env={"UPSTREAM_API_KEY": KEY})
    settings = {"gateway": {"tokens_file": str(tokens), "auth_optional": False}, "log_level": "debug"}
    async with System(tmp_path / "system", pools=[pool], token=STATIC, settings=settings) as system:
        answers = await spoil(system)
        async with TaskClient(system.url(), token=TENANT) as client:
            await use(system, client)
        await poison(system)
        processes = {system.pid_of(name) for name in ("nats", *system.processes)}
        written = command_lines(processes | {child for pid in processes for child in children_of(pid)})
        written |= await metrics_of(system)
        written |= {f"answer {number}": answer.decode("latin-1") for number, answer in enumerate(answers)}
        for stream in (streams.AUD, streams.TOK, streams.REG):
            for message in await system.bus.replay(stream, ">"):
                written[message.subject] = f"{message.headers} {message.data.decode('latin-1')}"
        await asyncio.to_thread(system.processes["gateway-1"].stop)
        written |= files_of(system)
    assert sum(text.count("mock") for text in written.values()) > 100, "it was searched where something is written"
    shown = {
        where: text[max(0, text.find(secret) - 200) : text.find(secret) + 40]
        for where, text in written.items()
        for secret in (STATIC, TENANT, PROMPT, KEY)
        if secret in text
    }
    assert not shown
