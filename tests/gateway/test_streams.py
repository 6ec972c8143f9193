"""Token streams over the real ASGI application: late, twice, resumed, elsewhere, slow, cut."""

import asyncio
from typing import Any

import pytest

from llorch_gateway import gateway
from llorch_gateway.tasks import Tasks
from llorch_shared import streams, subjects
from llorch_shared.bus.memory import MemoryBus
from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.wire.frames import Metrics, encode_metrics
from llorch_shared.wire.task import TaskState
from support.client import task_request
from support.gateways import STARTED, Cluster, Door, end, run_record, settle, tokens


async def test_a_stream_opened_after_the_submit_carries_the_nodes_bytes(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    reply = door.stream(task)
    await reply.until(lambda seen: seen.body == b"retry: 1000\n\n")
    await cluster.publish(door.lane, task, STARTED, tokens(0, 2), tokens(3, 3), end(4))
    await reply.end()
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-store"
    assert reply.body == b"retry: 1000\n\n" + STARTED + tokens(0, 3) + end(4)


async def test_frames_before_the_first_reader_wait_for_it_without_a_read_of_the_store(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_replay(*_args: object, **_more: object) -> None:
        raise AssertionError("the stored stream was read")

    monkeypatch.setattr(MemoryBus, "page", no_replay)
    task = await door.submit()
    await cluster.publish(door.lane, task, STARTED, tokens(0, 1), end(2))
    reply = await door.stream(task).end()
    assert reply.names == ["started", "token 1-0", "token 1-1", "end 1-2"]


async def test_a_second_reader_and_a_late_one_get_the_same_bytes(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    first = door.stream(task)
    await cluster.publish(door.lane, task, STARTED, tokens(0, 3))
    await first.until_event("token 1-3")
    second = door.stream(task)
    await second.until_event("token 1-3")
    await cluster.publish(door.lane, task, tokens(4, 4), end(5))
    await cluster.record(run_record(task, TaskState.DONE, lane=door.lane, tokens_out=5, finish_reason="stop"))
    bodies = {(await reply.end()).body for reply in (first, second, door.stream(task))}
    assert bodies == {b"retry: 1000\n\n" + STARTED + tokens(0, 4) + end(5)}


async def test_what_is_no_frame_breaks_no_stream(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    await cluster.publish(door.lane, task, STARTED, b"no frame", tokens(0, 1), b"id: x", end(2))
    other = await cluster.gateway()
    for reply in (await door.stream(task).end(), await other.stream(task).end()):
        assert reply.names == ["started", "token 1-0", "token 1-1", "end 1-2"]


@pytest.mark.parametrize("header", [True, False])
async def test_a_resumed_stream_goes_on_after_its_cursor_on_any_gateway(
    cluster: Cluster, door: Door, header: bool
) -> None:
    other = await cluster.gateway()
    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    await cluster.publish(door.lane, task, STARTED, tokens(0, 5))
    reply = other.stream(task, after="1-2") if header else other.open("GET", f"/v1/tasks/{task}/stream?after=2")
    await reply.until_event("token 1-5")
    await cluster.publish(door.lane, task, tokens(6, 6), end(7))
    await reply.end()
    assert reply.names == [*[f"token 1-{index}" for index in range(3, 7)], "end 1-7"]


async def test_a_reader_at_the_end_is_told_not_to_come_back(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    await cluster.publish(door.lane, task, STARTED, tokens(0, 1), end(2))
    await cluster.record(run_record(task, TaskState.DONE, lane=door.lane, tokens_out=2, finish_reason="stop"))
    reply = await door.stream(task, after="1-2").end()
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["x-correlation-id"]
    last = await door.stream(task, after="1-1").end()
    assert last.names == ["end 1-2"]


async def test_an_unknown_task_has_no_stream(door: Door) -> None:
    reply = await door.stream(task_request().task_id).end()
    assert (reply.status, reply.error.code) == (404, ErrorCode.INVALID_PARAMS)


@pytest.mark.parametrize("cursor", ["x", "-1", "1-", "1-x", "1-2-3", "99999999999"])
async def test_a_cursor_of_another_form_is_refused(door: Door, cursor: str) -> None:
    task = await door.submit()
    reply = await door.stream(task, after=cursor).end()
    assert (reply.status, reply.error.code) == (400, ErrorCode.INVALID_PARAMS)


async def test_the_end_that_got_lost_is_made_from_the_record(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    reply = door.stream(task)
    await cluster.publish(door.lane, task, STARTED, tokens(0, 1))
    await reply.until_event("token 1-1")
    await cluster.record(
        run_record(task, TaskState.DONE, lane=door.lane, tokens_out=2, decode_ms=9, finish_reason="length")
    )
    await reply.end()
    assert reply.names[-1] == "end 1-2"
    assert b'"finish_reason":"length"' in reply.events[-1].data


async def test_a_failure_that_got_lost_is_told_from_the_record(cluster: Cluster, door: Door) -> None:
    task = task_request().task_id
    error = ErrorBody(code=ErrorCode.WORKER_RESET, message="the node was lost", engine="mock")
    await cluster.record(run_record(task, TaskState.FAILED, attempt=3, tokens_out=0, error=error))
    reply = await door.stream(task).end()
    assert reply.names == ["error 3-0"]
    assert b'"code":"WORKER_RESET"' in reply.body


async def test_tokens_that_nobody_keeps_any_more_are_an_error_and_not_a_short_stream(
    cluster: Cluster, door: Door
) -> None:
    task = task_request().task_id
    await cluster.record(run_record(task, TaskState.DONE, tokens_out=4, finish_reason="stop", ended_ms=1))
    reply = await door.stream(task).end()
    assert reply.names == ["error"]
    assert b'"code":"INTERNAL"' in reply.body


async def test_a_slow_reader_loses_metrics_and_no_token(cluster: Cluster) -> None:
    door = await cluster.gateway(sse_buffer_bytes=16 * 1024)
    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    slow = door.stream(task, slow=True)
    fast = door.stream(task)
    await fast.until(lambda seen: bool(seen.body))
    await cluster.publish(door.lane, task, STARTED)
    for number in range(20):
        await cluster.publish(door.lane, task, encode_metrics(Metrics(queue_depth=number)))
        await cluster.publish(door.lane, task, tokens(100 * number, 100 * number + 99))
    await cluster.publish(door.lane, task, end(2000))
    await fast.end()
    slow.flowing.set()
    await slow.end()
    wanted = [f"token 1-{index}" for index in range(2000)]
    assert [name for name in fast.names if name.startswith("token")] == wanted
    assert [name for name in slow.names if name.startswith("token")] == wanted
    assert slow.names[-1] == "end 1-2000"


async def test_a_silent_stream_gets_heartbeats(cluster: Cluster) -> None:
    door = await cluster.gateway(sse_heartbeat_ms=1)
    task = await door.submit()
    reply = door.stream(task)
    await reply.until(lambda seen: seen.body == b"retry: 1000\n\n:\n\n")
    await reply.leave()


async def test_a_reader_that_leaves_frees_its_seat_at_once(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    reply = door.stream(task)
    await reply.until(lambda seen: bool(seen.body))
    assert len(door.gateway.backend.router.seats) == 1
    await reply.leave()
    assert not door.gateway.backend.router.seats
    assert not list(door.gateway.backend.router.channels_of(task))
    assert b"sse_streams_open 0.0" in (await door.get("/metrics")).body


async def test_a_foreign_stream_leaves_no_subscription_behind(cluster: Cluster, door: Door) -> None:
    task = task_request().task_id
    await cluster.record(run_record(task, TaskState.RUNNING, lane="bus"))
    before = len(cluster.server.interests)
    replies = [door.stream(task) for _ in range(3)]
    for reply in replies:
        await reply.until(lambda seen: bool(seen.body))
    assert len(cluster.server.interests) == before + 1
    await cluster.publish("bus", task, STARTED, tokens(0, 1), end(2))
    for reply in replies:
        assert (await reply.end()).names == ["started", "token 1-0", "token 1-1", "end 1-2"]
    assert len(cluster.server.interests) == before


async def test_more_streams_than_the_bound_are_refused(cluster: Cluster) -> None:
    door = await cluster.gateway(streams_max=1)
    task = await door.submit()
    reply = door.stream(task)
    await reply.until(lambda seen: bool(seen.body))
    refused = await door.stream(task).end()
    assert (refused.status, refused.error.code) == (503, ErrorCode.POOL_UNAVAILABLE)
    assert refused.headers["retry-after"] == "1"
    await reply.leave()


async def test_stopping_ends_every_stream_with_a_word_and_the_client_goes_on_elsewhere(
    cluster: Cluster, door: Door
) -> None:
    other = await cluster.gateway()
    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    reply = door.stream(task)
    await cluster.publish(door.lane, task, STARTED, tokens(0, 2))
    await reply.until_event("token 1-2")
    await door.gateway.stop_serving()
    await reply.end()
    assert reply.body.endswith(b"retry: 500\n\n")
    assert (await door.post("/v1/tasks", b"{}")).status == 503
    assert (await door.get("/healthz")).status == 200
    resumed = other.stream(task, after="1-2")
    await cluster.publish(door.lane, task, tokens(3, 3), end(4))
    assert (await resumed.end()).names == ["token 1-3", "end 1-4"]


async def test_a_cancel_that_waits_for_its_receipt_is_answered_before_the_gateway_goes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "ANSWERS_STOP_S", 0.05)
    door = await cluster.gateway(cancel_wait_ms=60_000)
    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    reply = door.open("POST", f"/v1/tasks/{task}/cancel")
    await settle()
    async with asyncio.timeout(15):
        await door.gateway.stop_serving()
        await reply.end()
    assert (reply.status, reply.error.code) == (503, ErrorCode.POOL_UNAVAILABLE)
    assert "stopping" in reply.error.message
    assert await cluster.bus.last(streams.RUN, subjects.cancel(task)) is not None, "the wish is kept"


async def test_a_reader_whose_stream_is_not_open_yet_is_answered_before_the_gateway_goes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the bus is away: nobody can say yet where the task is."""

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(gateway, "ANSWERS_STOP_S", 0.05)
    door = await cluster.gateway()
    monkeypatch.setattr(Tasks, "find", never)
    reply = door.stream(task_request().task_id)
    await settle()
    async with asyncio.timeout(15):
        await door.gateway.stop_serving()
        await reply.end()
    assert (reply.status, reply.error.code) == (503, ErrorCode.POOL_UNAVAILABLE)
    assert "stopping" in reply.error.message


async def test_a_reader_that_takes_nothing_does_not_hold_up_the_stop(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    reply = door.stream(task, slow=True)
    await settle()
    async with asyncio.timeout(15):
        await door.gateway.stop_serving()
    assert reply.ended


async def test_a_reader_that_takes_nothing_for_too_long_loses_its_seat_and_may_resume(cluster: Cluster) -> None:
    door = await cluster.gateway(tick=False, sse_stall_ms=30_000)
    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    stopped, other = door.stream(task, slow=True), door.stream(task)
    await other.until(lambda seen: bool(seen.body))
    await cluster.publish(door.lane, task, STARTED, tokens(0, 1))
    now = asyncio.get_running_loop().time()
    door.gateway.backend.router.tick(now + 29)
    await settle()
    assert len(door.gateway.backend.router.seats) == 2
    door.gateway.backend.router.tick(now + 31)
    await settle()
    assert len(door.gateway.backend.router.seats) == 1
    stopped.flowing.set()
    assert (await stopped.end()).names == []
    resumed = door.stream(task)
    await cluster.publish(door.lane, task, end(2))
    for reply in (other, resumed):
        assert (await reply.end()).names == ["started", "token 1-0", "token 1-1", "end 1-2"]


async def test_a_late_reader_is_read_to_in_small_pages_however_large_the_stored_messages_are(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[int] = []
    read = MemoryBus.page

    async def counted(bus: MemoryBus, *args: Any, **more: Any) -> Any:
        page = await read(bus, *args, **more)
        pages.append(sum(len(message.data) for message in page.messages))
        return page

    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    large = [tokens(500 * number, 500 * number + 499) for number in range(60)]
    await cluster.publish(door.lane, task, STARTED, *large, end(30_000))
    monkeypatch.setattr(MemoryBus, "page", counted)
    other = await cluster.gateway()
    late = await other.stream(task).end()
    assert [name for name in late.names if name.startswith("token")] == [f"token 1-{index}" for index in range(30_000)]
    assert max(pages) < len(large[-1]) + 128 * 1024
    assert sum(pages) > 1_000_000


async def test_a_late_reader_is_read_from_where_its_stream_begins_in_this_life_of_the_log(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[int] = []
    read = MemoryBus.page

    async def noted(bus: MemoryBus, *args: Any, **more: Any) -> Any:
        began.append(more["from_seq"])
        return await read(bus, *args, **more)

    monkeypatch.setattr(MemoryBus, "page", noted)
    await cluster.publish(door.lane, await door.submit(), STARTED, tokens(0, 5), end(6))
    log = await cluster.bus.stream_state(streams.TOK)
    other = await cluster.gateway()
    for mark, first in ((f"{log.life}#{log.last_seq}", log.last_seq + 1), ("another life#7", 1), ("", 1)):
        task = await door.submit()
        await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane, token_log=mark))
        await cluster.publish(door.lane, task, STARTED, tokens(0, 1), end(2))
        assert (await other.stream(task).end()).names == ["started", "token 1-0", "token 1-1", "end 1-2"]
        assert began[0] == first
        began.clear()
    assert isinstance(other.bus, MemoryBus)
    other.bus.break_connection()
    assert other.gateway.backend.log_life.now == ""
    other.bus.restore_connection()
    async with asyncio.timeout(15):
        while other.gateway.backend.log_life.now != log.life:
            await settle()


async def test_a_draining_gateway_serves_all_and_says_that_it_is_not_ready(cluster: Cluster) -> None:
    door = await cluster.gateway(drain_ms=60_000)
    task = await door.submit()
    await cluster.record(run_record(task, TaskState.RUNNING, lane=door.lane))
    before = door.stream(task)
    draining = asyncio.create_task(door.gateway.drain())
    await settle()
    ready = await door.get("/readyz")
    assert (ready.status, ready.json()["reasons"]) == (503, ["stopping"])
    assert ready.headers["connection"] == "close"
    another = await door.submit()
    after = door.stream(another)
    for one, reply in ((task, before), (another, after)):
        await cluster.publish(door.lane, one, STARTED, tokens(0, 1), end(2))
        assert (await reply.end()).names == ["started", "token 1-0", "token 1-1", "end 1-2"]
    assert "connection" not in before.headers
    assert after.headers["connection"] == "close"
    draining.cancel()


async def test_a_lost_bus_connection_costs_a_reader_nothing(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    reply = door.stream(task)
    await cluster.publish(door.lane, task, STARTED, tokens(0, 1))
    await reply.until_event("token 1-1")
    assert isinstance(door.bus, MemoryBus)
    door.bus.break_connection()
    await cluster.publish(door.lane, task, tokens(2, 4))
    door.bus.restore_connection()
    await reply.until_event("token 1-4")
    await cluster.publish(door.lane, task, end(5))
    assert (await reply.end()).names == ["started", *[f"token 1-{index}" for index in range(5)], "end 1-5"]


async def test_a_restarted_bus_whose_frames_come_again_costs_a_reader_nothing(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    reply = door.stream(task)
    await cluster.publish(door.lane, task, STARTED, tokens(0, 1))
    await reply.until_event("token 1-1")
    cluster.server.kill()
    cluster.server.start()
    async with asyncio.timeout(15):
        while (await cluster.bus.stream_state(streams.TOK)).messages or not door.bus.connected:
            await asyncio.sleep(0.01)
    await cluster.publish(door.lane, task, tokens(4, 4), STARTED, tokens(0, 1), tokens(2, 3), tokens(4, 4), end(5))
    assert (await reply.end()).names == ["started", *[f"token 1-{index}" for index in range(5)], "end 1-5"]


async def test_another_attempt_goes_on_where_the_first_one_ended(cluster: Cluster, door: Door) -> None:
    task = await door.submit()
    reply = door.stream(task)
    moved = encode_metrics(Metrics(attempt=2, kv_migrated=False))
    await cluster.publish(
        door.lane, task, STARTED, tokens(0, 2), moved, tokens(3, 4, 2), tokens(3, 3, 1), end(5, attempt=2)
    )
    await reply.end()
    assert reply.names == [
        "started",
        *[f"token 1-{index}" for index in range(3)],
        "metrics",
        "token 2-3",
        "token 2-4",
        "end 2-5",
    ]


async def test_a_stream_that_breaks_off_ends_without_a_second_answer(
    cluster: Cluster, door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_self: object, _first: bytes) -> None:
        raise RuntimeError("the pump broke")

    monkeypatch.setattr("llorch_gateway.relay.stream.Stream.run", broken)
    task = await door.submit()
    reply = await door.stream(task).end()
    assert (reply.status, reply.body) == (200, b"")
    assert "a stream broke off" in caplog.text
    assert not door.gateway.backend.router.seats
