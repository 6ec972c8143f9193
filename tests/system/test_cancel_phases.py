"""A cancel has its receipt in every phase of a task: the terminal frame, the record and 204 come when no engine works
for it any more, and all of them say how long that took."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_shared import streams, subjects
from llorch_shared.wire.audit import AUDIT_DECODER
from llorch_shared.wire.run import CancelRequest, TaskView, WaitsFor
from llorch_shared.wire.task import TaskState
from support.system import System, mock_pool

pytestmark = pytest.mark.system

LONG = "word " * 4000
"""Forty seconds of reading for each of them: nobody gets to a first token in a test."""
LONG_SLOTS = 64
ENDLESS = {"max_tokens": 2000, "deadline_ms": 24 * 3_600_000}
"""Whatever a slow machine makes of its end."""


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="module")
async def phases(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """Pools in which a task stays in one phase for as long as a test needs. An engine that died stays away."""
    reads = {"LLORCH_MOCK_PREFILL_RATE": "100", "LLORCH_MOCK_BATCH": "4"}
    pools = [
        mock_pool("decode", model="mock:decode", replicas=1, slots=2, rate=20),
        mock_pool("prefill", model="mock:prefill", replicas=1, slots=LONG_SLOTS, rate=200, env=reads),
        mock_pool("lost", model="mock:lost", replicas=1, slots=1, rate=20),
    ]
    settings = {"gateway": {"cancel_wait_ms": 15_000}, "poold": {"backoff_initial_ms": 600_000}}
    folder = tmp_path_factory.mktemp("phases")
    async with System(folder, pools=pools, gateways=2, settings=settings) as system:
        yield system


async def submitted(system: System, model: str, **changes: Any) -> str:
    return (await system.client(1).submit(model_ref=model, **{**ENDLESS, **changes})).task_id


async def receipt(system: System, task: str, *, model: str = "", reason: str = "client") -> TaskView:
    """What must be true of a cancelled task, whatever it was doing: asked for at the other gateway."""
    assert await system.client(2).cancel(task) == 204
    return await ended(system, task, model=model, reason=reason)


async def ended(system: System, task: str, *, model: str = "", reason: str = "client") -> TaskView:
    if model:
        assert await system.busy_slots(model) == 0
    view = await system.client(2).get(task)
    assert (view.state, view.finish_reason, view.error) == (TaskState.CANCELLED, "cancelled", None)
    assert view.cancel_ms is not None
    whole = await system.client(1).read(task)
    assert whole.end is not None
    assert (whole.end.finish_reason, whole.end.cancel_ms) == ("cancelled", view.cancel_ms)
    assert whole.end.tokens_out == view.tokens_out

    async def audited() -> bool:
        told = await system.bus.replay(streams.AUD, subjects.audit("cancelled", task))
        return [AUDIT_DECODER.decode(message.data).detail.get("cancel_ms") for message in told] == [view.cancel_ms]

    await system.until(audited, "one end on the audit record", 15)
    wish = await system.bus.last(streams.RUN, subjects.cancel(task))
    assert wish is not None
    assert 0 <= view.cancel_ms <= max(0, view.ended_ms - wish.stored_ms), "by the clock of the bus"
    assert msgspec.json.decode(wish.data, type=CancelRequest).reason == reason
    return view


async def next_task_runs(system: System, model: str) -> None:
    after = await system.client(1).read(await submitted(system, model, max_tokens=3))
    assert after.error is None
    assert after.indices == [0, 1, 2]


async def test_decode(phases: System) -> None:
    task = await submitted(phases, "mock:decode")
    reader = asyncio.create_task(phases.client(1).read(task))
    await phases.client(1).read(task, tokens_max=3)
    view = await receipt(phases, task, model="mock:decode")
    assert view.tokens_out >= 3
    whole = await reader
    assert whole.end is not None
    assert len(whole.tokens) <= view.tokens_out, "the reader of the first gateway got nothing after the receipt"
    await next_task_runs(phases, "mock:decode")


async def test_queued(phases: System) -> None:
    running = [await submitted(phases, "mock:decode") for _ in range(2)]
    for task in running:
        await phases.client(1).read(task, tokens_max=1)
    queued = await submitted(phases, "mock:decode")
    assert (await phases.client(2).get(queued)).waits_for is WaitsFor.SLOT
    assert (await receipt(phases, queued)).tokens_out == 0
    for task in running:
        assert await phases.client(1).cancel(task) == 204
    assert await phases.busy_slots("mock:decode") == 0


async def test_long_prompts_of_a_full_engine(phases: System) -> None:
    tasks = [await submitted(phases, "mock:prefill", prompt=LONG, ctx=8192) for _ in range(LONG_SLOTS)]

    async def all_running() -> bool:
        views = [await phases.client(2).get(task) for task in tasks]
        return all(view.state is TaskState.RUNNING for view in views) and await phases.busy_slots("mock:prefill") > 0

    await phases.until(all_running, "prompts in all slots, one of which is read", 30)
    answers = await asyncio.gather(*(phases.client(2).cancel(task) for task in tasks))
    assert set(answers) == {204}
    assert await phases.busy_slots("mock:prefill") == 0
    views = [await ended(phases, task, model="mock:prefill") for task in tasks[:3]]
    views += [await phases.client(2).get(task) for task in tasks[3:]]
    assert {(view.state, view.tokens_out) for view in views} == {(TaskState.CANCELLED, 0)}
    await next_task_runs(phases, "mock:prefill")


async def test_model_loading(phases: System, tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"
    pool = mock_pool("load", model="mock:load", replicas=1, slots=1, env={"LLORCH_MOCK_LOAD_UNTIL": str(loaded)})
    await phases.put_pool(pool)

    async def loading() -> bool:
        healths = [await phases.health("load", gateway) for gateway in phases.gateways]
        return all(health is not None and len(health.replicas) == 1 for health in healths)

    await phases.until(loading, "a replica that loads", 30)
    tasks = [await submitted(phases, "mock:load") for _ in range(2)]

    async def told() -> bool:
        return (await phases.client(2).get(tasks[0])).waits_for is WaitsFor.MODEL

    await phases.until(told, "a task that waits for the model", 15)
    view = await receipt(phases, tasks[0])
    assert (view.attempt, view.started_ms, view.tokens_out) == (1, 0, 0)
    loaded.touch()
    await phases.replicas_ready("load", 1)
    await phases.client(1).read(tasks[1], tokens_max=1)
    await receipt(phases, tasks[1], model="mock:load")
    await next_task_runs(phases, "mock:load")


async def test_between_attempts(phases: System) -> None:
    task = await submitted(phases, "mock:lost")
    transcript = await phases.client(1).read(task, tokens_max=3)
    for url in await phases.engine_urls("mock:lost"):
        await phases.kill_engine_at(url)

    async def waits_again() -> bool:
        view = await phases.client(2).get(task)
        return (view.state, view.attempt, view.replica_id) == (TaskState.PLACED, 2, None)

    await phases.until(waits_again, "a task between two attempts", 30)
    view = await receipt(phases, task)
    assert view.tokens_out >= len(transcript.tokens)
    await phases.client(2).read(task, into=transcript)
    assert transcript.indices == list(range(len(transcript.tokens)))


async def test_over_nats(phases: System) -> None:
    """A request to any gateway, or nothing but the stored wish and the wake-up."""
    asked, wished = [await submitted(phases, "mock:decode") for _ in range(2)]
    for task in (asked, wished):
        await phases.client(1).read(task, tokens_max=1)
    reply = await phases.bus.request(
        subjects.api("tasks.cancel"), msgspec.json.encode({"task_id": asked}), timeout_s=20
    )
    assert msgspec.json.decode(reply.data, type=TaskView).state is TaskState.CANCELLED
    wish = msgspec.json.encode(CancelRequest(task_id=wished, reason="operator"))
    end = asyncio.create_task(phases.client(1).read(wished))
    await phases.bus.store(subjects.cancel(wished), wish)
    phases.bus.publish(subjects.cancel_signal(wished), wish)
    assert (await end).end is not None
    await ended(phases, asked, model="mock:decode")
    await ended(phases, wished, model="mock:decode", reason="operator")
    await next_task_runs(phases, "mock:decode")


async def test_the_histogram_has_every_receipt(phases: System) -> None:
    before = await phases.metric("poold-1", "cancel_latency_ms_count")
    queued_before = await phases.metric("scheduler-1", "cancel_latency_ms_count")
    tasks = [await submitted(phases, "mock:decode") for _ in range(3)]
    for task in tasks[:2]:
        await phases.client(1).read(task, tokens_max=1)
    for task in reversed(tasks):
        assert await phases.client(2).cancel(task) == 204

    async def counted() -> bool:
        node = await phases.metric("poold-1", "cancel_latency_ms_count") - before
        scheduler = await phases.metric("scheduler-1", "cancel_latency_ms_count") - queued_before
        return node >= 2 and scheduler >= 1

    await phases.until(counted, "two receipts of the node and one of the scheduler", 15)


async def test_by_disconnect(tmp_path: Path) -> None:
    """Who leaves for good is as good as a cancel; who reads elsewhere, or nobody ever read, is not."""
    settings = {"gateway": {"cancel_on_disconnect": True, "cancel_grace_ms": 200}}
    pool = mock_pool(replicas=1, slots=4, rate=40)
    async with System(tmp_path, pools=[pool], gateways=2, settings=settings) as system:
        unread = await submitted(system, "mock:words", max_tokens=40)
        moved = await submitted(system, "mock:words", max_tokens=400)
        left = await submitted(system, "mock:words")
        asked = asyncio.Event()
        await system.bus.subscribe(subjects.readers(moved), lambda _message: asked.set())
        async with contextlib.aclosing(system.client(1).events(moved)) as first:
            await anext(first)
            second = asyncio.create_task(system.client(2).read(moved))
            await system.until(lambda: has_reader(system, "gateway-2"), "a reader at the other gateway", 15)
        await system.client(1).read(left, tokens_max=2)
        async with asyncio.timeout(15):
            await asked.wait()

        async def cancelled() -> bool:
            return (await system.client(2).get(left)).state is TaskState.CANCELLED

        await system.until(cancelled, "the cancel of a stream that nobody reads", 15)
        await ended(system, left, reason="disconnect", model="")
        whole = await second
        whole.check()
        assert whole.end is not None
        assert (whole.end.finish_reason, len(whole.tokens)) == ("length", 400)

        async def done() -> bool:
            return (await system.client(2).get(unread)).state is TaskState.DONE

        await system.until(done, "the end of a task that nobody read", 30)
        assert await system.busy_slots("mock:words") == 0


async def has_reader(system: System, gateway: str) -> bool:
    return await system.metric(gateway, "sse_streams_open") >= 1
