"""The client on the bus, with a gateway and the rest of the system played by the test."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.memory import MemoryBus
from llorch_shared.bus.port import Message, NoResponder, NoStream, Page
from llorch_shared.client import Client, Refusal
from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.objects import Objects
from llorch_shared.stream_reading import StreamEvent
from llorch_shared.wire import frames
from llorch_shared.wire.frames import End, Started, Token
from llorch_shared.wire.registry import PoolHealth
from llorch_shared.wire.task import INLINE_BYTES_MAX, PAYLOAD_DECODER, REQUEST_DECODER, TaskState
from support.client import task_request
from support.gateways import STARTED, Cluster, cluster_of, end, run_record, tokens

WITHIN_S = 15


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with cluster_of() as one:
        await one.gateway()
        yield one


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    bus = MemoryBus(cluster.server, name="client")
    yield Client(bus)
    await bus.close()


class WithoutJetStream(MemoryBus):
    """A tenant's account has subjects, and no streams."""

    async def page(self, stream: str, subject_filter: str, **_: Any) -> Page:
        raise NoStream(stream)

    async def last(self, stream: str, subject: str) -> Message | None:
        raise NoStream(stream)


@pytest.fixture
async def tenant(cluster: Cluster) -> AsyncIterator[Client]:
    bus = WithoutJetStream(cluster.server, name="tenant")
    yield Client(bus)
    await bus.close()


async def collected(client: Client, task: str, after: str = "") -> list[StreamEvent]:
    async with asyncio.timeout(WITHIN_S):
        return [event async for event in client.stream(task, after=after)]


def indices(events: list[StreamEvent]) -> list[int]:
    return [event.i for event in events if isinstance(event, Token)]


async def test_a_task_is_submitted_looked_up_and_read_to_its_end(cluster: Cluster, client: Client) -> None:
    request = task_request()
    assert (await client.submit(request)).task_id == request.task_id
    assert (await client.get(request.task_id)).state is TaskState.QUEUED
    reading = asyncio.create_task(collected(client, request.task_id))
    await cluster.publish("gw-1", request.task_id, STARTED, tokens(0, 4), end(5))
    events = await reading
    assert isinstance(events[0], Started)
    assert indices(events) == [0, 1, 2, 3, 4]
    assert isinstance(events[-1], End)


async def test_a_late_reader_gets_what_is_stored_after_its_cursor(cluster: Cluster, client: Client) -> None:
    task = task_request().task_id
    await cluster.publish("gw-1", task, STARTED, tokens(0, 2), tokens(3, 4), end(5))
    assert indices(await collected(client, task)) == [0, 1, 2, 3, 4]
    assert indices(await collected(client, task, after="1-2")) == [3, 4]


async def test_who_has_no_streams_asks_the_gateways_for_what_it_missed(
    cluster: Cluster, tenant: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llorch_gateway.stored_events_api.PAGE_BYTES", 100)
    request = task_request()
    await tenant.submit(request)
    task = request.task_id
    await cluster.record(run_record(task, TaskState.RUNNING))
    await cluster.publish("bus", task, STARTED, *(tokens(index, index) for index in range(5)))
    reading = asyncio.create_task(collected(tenant, task))
    later = asyncio.create_task(collected(tenant, task, after="1-2"))
    async with asyncio.timeout(WITHIN_S):
        while sum(each.pattern == subjects.tokens_of_task(task) for each in cluster.server.interests) < 2:
            await asyncio.sleep(0.01)
    await cluster.publish("bus", task, tokens(5, 5), end(6))
    await cluster.record(run_record(task, TaskState.DONE, tokens_out=6, finish_reason="stop"))
    assert indices(await reading) == [0, 1, 2, 3, 4, 5]
    assert indices(await later) == [3, 4, 5]
    assert indices(await collected(tenant, task)) == [0, 1, 2, 3, 4, 5]


async def test_of_a_task_that_nobody_knows_the_gateways_say_so(tenant: Client) -> None:
    with pytest.raises(Refusal) as refused:
        await collected(tenant, task_request().task_id)
    assert refused.value.status == 404


@pytest.mark.parametrize("kind", [MemoryBus, WithoutJetStream])
async def test_a_log_that_is_another_one_after_a_break_is_read_from_its_beginning(
    cluster: Cluster, kind: type[MemoryBus]
) -> None:
    request, bus = task_request(), kind(cluster.server, name="reader")
    client, task = Client(bus), request.task_id
    await client.submit(request)
    await cluster.record(run_record(task, TaskState.RUNNING))
    await cluster.publish("bus", task_request().task_id, *(STARTED for _ in range(20)))
    await cluster.publish("bus", task, STARTED, tokens(0, 1))
    events = client.stream(task)
    async with asyncio.timeout(WITHIN_S):
        seen = [await anext(events) for _ in range(3)]
        cluster.server.kill()
        cluster.server.start()
        await cluster.bus.ensure(streams.base())
        await cluster.publish("bus", task, STARTED, tokens(0, 1), tokens(2, 3), end(4))
        seen += [event async for event in events]
    assert indices(seen) == [0, 1, 2, 3]
    assert isinstance(seen[-1], End)
    await bus.close()


async def test_frames_that_come_twice_and_of_another_attempt_are_one_stream(cluster: Cluster, client: Client) -> None:
    task = task_request().task_id
    goes_on = frames.encode_metrics(frames.Metrics(attempt=2, kv_migrated=False, tokens_out=3))
    await cluster.publish(
        "gw-1", task, STARTED, tokens(0, 2), tokens(0, 2), goes_on, tokens(3, 3, 2), end(4, attempt=2)
    )
    assert indices(await collected(client, task)) == [0, 1, 2, 3]


async def test_an_end_that_nobody_heard_is_told_by_the_record(cluster: Cluster, client: Client) -> None:
    task = task_request().task_id
    await cluster.publish("gw-1", task, STARTED, tokens(0, 1))
    await cluster.record(run_record(task, TaskState.DONE, tokens_out=2, finish_reason="stop"))
    events = await collected(client, task)
    assert indices(events) == [0, 1]
    assert isinstance(events[-1], End)
    assert events[-1].finish_reason == "stop"


@pytest.mark.parametrize("kept", [(), (STARTED, tokens(0, 1))])
async def test_a_stream_whose_tokens_nobody_keeps_any_more_ends_with_an_error(
    cluster: Cluster, client: Client, monkeypatch: pytest.MonkeyPatch, kept: tuple[bytes, ...]
) -> None:
    monkeypatch.setattr("llorch_shared.stream_reading.GONE_AFTER_S", 0.1)
    monkeypatch.setattr("llorch_shared.stream_reading.QUIET_S", 0.05)
    task = task_request().task_id
    await cluster.publish("gw-1", task, *kept)
    await cluster.record(run_record(task, TaskState.DONE, tokens_out=5, finish_reason="stop"))
    events = await collected(client, task)
    assert len(indices(events)) == (2 if kept else 0)
    assert isinstance(events[-1], ErrorBody)


async def test_an_error_is_the_last_event(cluster: Cluster, client: Client) -> None:
    task = task_request().task_id
    told = frames.encode_error(1, 1, ErrorBody(code=ErrorCode.DECODE_TIMEOUT, message="silent"))
    await cluster.publish("gw-1", task, STARTED, tokens(0, 0), told)
    events = await collected(client, task)
    assert isinstance(events[-1], ErrorBody)
    assert events[-1].code is ErrorCode.DECODE_TIMEOUT


async def test_a_refusal_has_its_status_and_code(client: Client) -> None:
    with pytest.raises(Refusal) as refused:
        await client.get(task_request().task_id)
    assert (refused.value.status, refused.value.body.code) == (404, ErrorCode.INVALID_PARAMS)
    with pytest.raises(Refusal) as refused:
        await client.submit(task_request(model_ref="mock:nobody"))
    assert refused.value.status == 400


async def test_any_operation_is_asked_by_its_name(client: Client) -> None:
    health = await client.call("getPoolHealth", PoolHealth, pool_id="p1")
    assert health == await client.health("p1")
    await client.command("deletePool", pool_id="p1")
    with pytest.raises(KeyError):
        await client.call("getMetrics", str)


async def test_a_prompt_that_no_message_holds_goes_into_the_object_store(cluster: Cluster, client: Client) -> None:
    request = task_request(prompt="x" * (INLINE_BYTES_MAX + 1))
    await client.submit(request)
    (message,) = await cluster.admissions()
    ref = REQUEST_DECODER.decode(message.data).payload_ref
    assert ref is not None
    payload = PAYLOAD_DECODER.decode(await Objects(cluster.bus).get(ref.digest))
    assert payload.prompt == request.prompt


async def test_without_a_gateway_it_says_that_nobody_answers(cluster: Cluster) -> None:
    await cluster.gateways[0][0].stop_serving()
    bus = MemoryBus(cluster.server, name="client")
    with pytest.raises(NoResponder):
        await Client(bus).capabilities()
    await bus.close()
