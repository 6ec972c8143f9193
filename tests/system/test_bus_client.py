"""Bus clients are equals: submit, read, cancel and look up with nothing but NATS."""

import asyncio
import json
import os
import re
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import nats
import pytest
from nats.aio.msg import Msg

from llorch_shared import subjects
from llorch_shared.client import connect
from llorch_shared.contracts import asyncapi
from llorch_shared.errors import ErrorBody
from llorch_shared.wire.artifacts import ArtifactRef
from llorch_shared.wire.desired import PoolDrain
from llorch_shared.wire.frames import End, Event, Token, split_events
from llorch_shared.wire.registry import Capabilities
from llorch_shared.wire.run import TaskView
from llorch_shared.wire.session import SessionInfo
from llorch_shared.wire.task import TaskAccepted, TaskState
from support.client import task_request
from support.system import System

pytestmark = pytest.mark.system

HEARD: set[str] = set()
NOT_OURS = ("_INBOX", "$JS.", "$SYS.", "$SRV.")
"""Answers on their way back, and what NATS says to itself."""
EXAMPLES = Path(__file__).parents[2] / "contracts" / "examples" / "bus"
STAND_IN = """
import asyncio, os, sys
import nats

async def main(verb, raw, subject, payload):
    assert (verb, raw) == ("req", "--raw")
    bus = await nats.connect(os.environ["NATS_URL"])
    print((await bus.request(subject, payload.encode(), timeout=30)).data.decode())
    await bus.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """One for all of them; what its bus carries meanwhile is in `HEARD`."""
    async with System(tmp_path_factory.mktemp("system")) as running:
        listener = await nats.connect(running.nats.url)

        async def hear(message: Msg) -> None:
            HEARD.add(message.subject)

        await listener.subscribe(">", cb=hear)
        await listener.flush()
        yield running
        await listener.close()


async def test_a_plain_publish_is_an_accepted_task(system: System) -> None:
    task = str(uuid.uuid4())
    connection = await nats.connect(system.nats.url)
    try:
        stream = await connection.subscribe(f"llorch.tok.*.{task}")
        request = {
            "task_id": task,
            "session_id": task,
            "workload": "completion",
            "model_ref": "mock:words",
            "engine": "mock",
            "ctx": 2048,
            "priority": "batch",
            "max_tokens": 10,
            "deadline_ms": 60000,
            "prompt": "straight on the bus",
        }
        ack = await connection.jetstream().publish("llorch.adm.mock.batch.default", msgspec.json.encode(request))
        assert ack.stream == "ADM_mock_batch"
        events: list[Event] = []
        while not events or events[-1].event not in ("end", "error"):
            events += split_events((await stream.next_msg(timeout=30)).data)
        assert [event.event for event in events if event.event != "metrics"] == ["started"] + ["token"] * 10 + ["end"]
        over_http = await system.client().read(task)
        assert over_http.indices == list(range(10))
    finally:
        await connection.close()


async def test_an_invalid_publish_ends_with_a_typed_error_and_blocks_nobody(system: System) -> None:
    bad = msgspec.to_builtins(task_request())
    bad["surprise"] = 1
    subject = "llorch.adm.mock.interactive.default"
    await system.bus.store(subject, b"not json at all")
    await system.bus.store(subject, msgspec.json.encode(bad))
    transcript = await system.client().read(bad["task_id"])
    assert transcript.error is not None
    assert transcript.error.code == "INVALID_PARAMS"
    assert "surprise" in transcript.error.message
    assert (await system.client().get(bad["task_id"])).state is TaskState.FAILED
    good = await system.client().submit(max_tokens=2)
    assert (await system.client().read(good.task_id)).end is not None

    async def drained() -> bool:
        return (await system.bus.stream_state("ADM_mock_interactive")).messages == 0

    await system.until(drained, "an empty queue", 10)


async def test_request_and_reply_are_the_same_functions_as_http(system: System) -> None:
    request = task_request(max_tokens=500)
    reply = await system.bus.request("llorch.api.tasks.submit", msgspec.json.encode(request), timeout_s=20)
    accepted = msgspec.json.decode(reply.data, type=TaskAccepted)
    assert accepted.task_id == request.task_id
    ref = msgspec.json.encode({"task_id": request.task_id})
    view = msgspec.json.decode(
        (await system.bus.request("llorch.api.tasks.get", ref, timeout_s=20)).data, type=TaskView
    )
    assert view.task_id == request.task_id
    cancelled = await system.bus.request("llorch.api.tasks.cancel", ref, timeout_s=30)
    assert msgspec.json.decode(cancelled.data, type=TaskView).state is TaskState.CANCELLED
    capabilities = await system.bus.request("llorch.api.capabilities", b"", timeout_s=20)
    engines = msgspec.json.decode(capabilities.data, type=Capabilities).engines
    assert [engine.engine for engine in engines] == ["mock"]
    refused = await system.bus.request("llorch.api.tasks.submit", b'{"task_id": 7}', timeout_s=20)
    assert msgspec.json.decode(refused.data, type=ErrorBody).code == "INVALID_PARAMS"
    assert refused.headers["Nats-Service-Error-Code"] == "400"


async def test_a_correlation_id_reaches_the_line_about_the_engine(system: System) -> None:
    mark = f"walk-{uuid.uuid4()}"
    body = msgspec.json.encode(task_request(max_tokens=2))
    response = await system.client().http.post(
        "/v1/tasks", content=body, headers={"content-type": "application/json", "x-correlation-id": mark}
    )
    assert response.headers["x-correlation-id"] == mark
    task = response.json()["task_id"]
    await system.client().read(task)

    async def told() -> bool:
        paths = [system.processes[name].log_path for name in ("gateway-1", "scheduler-1", "poold-1")]
        logs = [await asyncio.to_thread(path.read_text) for path in paths]
        return all(mark in log for log in logs)

    await system.until(told, "the correlation id in three logs", 15)


async def test_the_example_with_nothing_but_nats_py_prints_the_words_of_a_task(system: System) -> None:
    said, status = await _run(sys.executable, str(EXAMPLES / "task.py"), system.nats.url, "straight on the bus")
    assert status == 0, said
    words, end = said.strip().split("\n")
    assert len(words.split()) == 32
    assert json.loads(end)["tokens_out"] == 32


async def test_the_example_with_the_command_line_asks_what_the_bus_answers(system: System, tmp_path: Path) -> None:
    """The tool of NATS is not among the packages that tests may install: a stand-in does what its page says of `req`,
    so that the script's subjects and payloads are tried."""
    stand_in = tmp_path / "nats"
    stand_in.write_text(f"#!{sys.executable}\n{STAND_IN}")
    stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NATS_URL": system.nats.url}
    said, status = await _run("sh", str(EXAMPLES / "task.sh"), **environment)
    assert status == 0, said
    view = msgspec.json.decode(said.strip().split("\n")[-1], type=TaskView)
    assert (view.state, view.tokens_out) == (TaskState.DONE, 32)


async def _run(*command: str, **environment: str) -> tuple[str, int]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, **environment}
    )
    async with asyncio.timeout(60):
        said, _ = await process.communicate()
    assert process.returncode is not None
    return said.decode(), process.returncode


async def test_a_typed_client_reads_what_it_submitted(system: System) -> None:
    async with connect(system.nats.url) as client:
        request = task_request(max_tokens=12)
        await client.submit(request)
        events = [event async for event in client.stream(request.task_id)]
        assert [event.i for event in events if isinstance(event, Token)] == list(range(12))
        assert isinstance(events[-1], End)
        assert (await client.get(request.task_id)).state is TaskState.DONE


async def test_every_subject_that_was_used_is_in_the_contract(system: System) -> None:
    async with connect(system.nats.url) as client:
        request = task_request(max_tokens=500, session_id=str(uuid.uuid4()))
        await client.call("putSession", SessionInfo, session_id=request.session_id, tokens_budget=1_000)
        await client.submit(request)
        await client.cancel(request.task_id)
        await client.call("createArtifact", ArtifactRef, kind="plan", content={"steps": ["one"]})
        await client.call("drainPool", PoolDrain, pool_id="mock", deadline_ms=60_000)
        await client.command("undrainPool", pool_id="mock")
    used = {subject for subject in HEARD if not subject.startswith(NOT_OURS)}
    addresses = [channel["address"] for channel in asyncapi.document()["channels"].values() if channel["address"]]
    patterns = {address: re.compile(_as_pattern(address)) for address in addresses}
    unknown = {subject for subject in used if not any(each.fullmatch(subject) for each in patterns.values())}
    assert not unknown
    met = {address for address, pattern in patterns.items() if any(pattern.fullmatch(subject) for subject in used)}
    of_a_task = {subjects.ADMISSION, subjects.PLACEMENT_AHEAD, subjects.RUN, subjects.TOKENS, subjects.CANCEL}
    assert met >= of_a_task | {subjects.AUDIT, subjects.REGISTRY, subjects.SPEC, subjects.LOAD}
    assert subjects.api("tasks.submit") in met


def _as_pattern(address: str) -> str:
    """A key of a bucket and the name of chunks may hold several tokens, any other parameter is one."""
    parts = re.split(r"\{(\w+)\}", address)
    return "".join(
        re.escape(part) if index % 2 == 0 else ".+" if part in ("key", "chunks") else r"[^.]+"
        for index, part in enumerate(parts)
    )
