"""Hard preemption on a node: stop, give the task back, and go on later as if nothing had happened (ORCH-3086)."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_poold.mock_text import text_of
from llorch_shared import subjects
from llorch_shared.wire.audit import AuditEvent
from llorch_shared.wire.registry import PoolLoad
from llorch_shared.wire.run import PreemptRequest
from llorch_shared.wire.task import TaskState
from support.nats_server import NatsServer
from support.node_harness import DEADLINE_S, NodeHarness, Placed, mock_pool

pytestmark = pytest.mark.nats

PROMPT = "Say something."


def tokens_after_the_stop(task: Placed) -> list[Any]:
    """Token events behind the frame that says `preempted`, before another attempt announced itself."""
    names = [
        (event.event, msgspec.json.decode(event.data).get("preempted") if event.event == "metrics" else None)
        for event in task.events
    ]
    stop = names.index(("metrics", True))
    rest = names[stop + 1 :]
    until = rest.index(("metrics", False)) if ("metrics", False) in rest else len(rest)
    return [name for name, _ in rest[:until] if name == "token"]


def frames_of(task: Placed, kind: str) -> list[bytes]:
    return [event.data for event in task.events if event.event == kind]


def stops_of(task: Placed) -> list[dict[str, Any]]:
    return [metrics for metrics in task.data("metrics") if metrics.get("preempted")]


async def outcome_of(node: NodeHarness, task: Placed, *, stops: int = 1) -> None:
    """Until it has ended or was stopped so many times."""
    await node.until("an outcome", lambda: task.ended or len(stops_of(task)) == stops)


async def answered(node: NodeHarness) -> None:
    """Everything published to the node so far has been heard: its own connection answers in order."""
    await node.bus.flush()
    await node.node_bus.flush()


async def test_a_preempted_stream_goes_on_where_it_stopped(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=100)]) as node:
        ready = await node.ready()
        assert "interruptible_decode" in ready.features
        task = await node.place(max_tokens=200, seed=3)
        await node.until_tokens(task, 5)
        claimed, _ = await node.run_of(task.task_id)
        await node.preempt(task.task_id)
        given_back = await node.until_preempted(task)
        assert await node.busy_slots() == 0, "the slot is free when readers are told"
        seen = len(task.tokens)
        (told,) = task.data("metrics")
        assert told == {"attempt": 2, "preempted": True, "resume_from": seen}
        assert (given_back.state, given_back.attempt, given_back.preemptions) == (TaskState.PLACED, 2, 1)
        assert (given_back.replica_id, given_back.node_id, given_back.incarnation) == ("", "", "")
        assert (given_back.tokens_out, given_back.started_ms) == (seen, 0)
        assert given_back.request == task.run.request

        urgent = await node.place(max_tokens=3)
        await node.until_ended(urgent)
        assert len(task.tokens) == seen, "nothing of a stopped task follows"

        again = await node.resume(task, kv_warmth=False, on_time_probability=0.75)
        await node.until_ended(again)
        assert [token["i"] for token in again.tokens] == list(range(200))
        assert again.text == text_of(PROMPT, 3, 200)
        assert tokens_after_the_stop(again) == []
        assert len(again.data("started")) == 1
        announced = {"attempt": 2, "kv_migrated": False, "kv_warmth": False, "on_time_probability": 0.75}
        assert again.data("metrics")[1] == {**announced, "preempted": False}
        assert again.data("metrics")[-1] == {"attempt": 2, "kv_migrated": False, "kv_warmth": False, "tokens_out": seen}
        assert len(set(frames_of(again, "metrics"))) == 3, "what is sent again is the same to readers"
        assert again.events[-1].id == "2-200"
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.tokens_out, run.preemptions, run.attempt) == (TaskState.DONE, 200, 1, 2)
        assert claimed.incarnation == run.incarnation == ready.incarnation, "the engine lives"

        async with asyncio.timeout(DEADLINE_S):
            while len(audits := await node.audits(task.task_id)) < 4:
                await asyncio.sleep(0.02)
        assert [each.event for each in audits] == ["running", "preempted", "running", "done"]
        audit = next(each for each in audits if each.event is AuditEvent.PREEMPTED)
        assert (audit.attempt, audit.replica_id, audit.actor) == (1, "mock-node-1-1", "poold/node-1")
        assert audit.detail["resume_from"] == seen
        assert audit.detail["urgent_task_id"] == "an-urgent-task"
        assert isinstance(audit.detail["stop_ms"], int)
        assert audit.detail["stop_ms"] >= 0


async def test_a_task_may_be_preempted_again_and_on_another_replica(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=100, replicas=2)]) as node:
        await node.ready()
        await node.ready("mock-node-1-2")
        task = await node.place(max_tokens=200, seed=8)
        for number, replica in enumerate(("mock-node-1-2", "mock-node-1-1", "mock-node-1-2"), 1):
            await node.until_tokens(task, number * 10)
            await node.preempt(task.task_id)
            await outcome_of(node, task, stops=number)
            task = await node.resume(task, replica_id=replica)
        await node.until_ended(task)
        assert [token["i"] for token in task.tokens] == list(range(200))
        assert task.text == text_of(PROMPT, 8, 200)
        assert len(task.data("started")) == 1
        run, _ = await node.run_of(task.task_id)
        assert (run.attempt, run.preemptions, run.replica_id) == (4, 3, "mock-node-1-2")


async def test_a_task_stopped_while_it_repeats_itself_does_not_go_back(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)]) as node:
        await node.ready()
        await node.fault(kind="hang", after=15, times=1)
        task = await node.place(max_tokens=30, seed=8)
        await node.until_tokens(task, 15)
        await node.preempt(task.task_id)
        seen = (await node.until_preempted(task)).tokens_out
        await node.fault(kind="hang", after=5, times=1)
        task = await node.resume(task)
        async with asyncio.timeout(DEADLINE_S):
            while not await node.busy_slots():
                await asyncio.sleep(0.01)
        await node.preempt(task.task_id)
        await node.until("the second stop", lambda: task.data("metrics")[-1].get("attempt") == 3)
        assert task.data("metrics")[-1]["resume_from"] == seen, "readers keep what they have"
        task = await node.resume(task)
        await node.until_ended(task)
        assert task.text == text_of(PROMPT, 8, 30)
        assert [token["i"] for token in task.tokens] == list(range(30))


async def test_a_task_is_preempted_before_its_first_token(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        await node.ready()
        await node.fault(kind="prefill", ms=60_000, times=1)
        task = await node.place(max_tokens=10, determinism="best_effort")
        await node.until("the start", lambda: task.data("started"))
        await node.preempt(task.task_id)
        assert (await node.until_preempted(task)).tokens_out == 0
        task = await node.resume(task)
        await node.until_ended(task)
        assert task.data("end")[0]["tokens_out"] == 10
        assert len(task.data("started")) == 1


async def test_a_preemption_that_is_heard_before_the_claim_is_known_is_obeyed(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """The scheduler hears of a claim from the server, maybe earlier than the node hears that its claim was stored."""
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=20)]) as node:
        await node.ready()
        store = node.context.runs.swap
        asked: list[str] = []

        async def swap(record: Any, expect_seq: int) -> int | None:
            seq = await store(record, expect_seq)
            if record.state is TaskState.RUNNING and not asked:
                asked.append(record.task_id)
                request = PreemptRequest(task_id=record.task_id, run_seq=seq or 0)
                (run,) = node.node._runs_of(record.task_id)
                run.preempt(request)
            return seq

        node.context.runs.swap = swap  # type: ignore[method-assign]
        task = await node.place(max_tokens=10)
        assert (await node.until_preempted(task)).tokens_out == 0
        assert [event.event for event in task.events] == ["metrics"]
        task = await node.resume(task)
        await node.until_ended(task)
        assert len(task.tokens) == 10


async def test_a_best_effort_stream_runs_on(
    nats_server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="llorch_poold")
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=100)]) as node:
        await node.ready()
        task = await node.place(max_tokens=200, determinism="best_effort")
        await node.until_tokens(task, 3)
        await node.preempt(task.task_id)
        await node.until_ended(task)
        assert len(task.tokens) == 200
        assert task.data("metrics") == []
        assert "which no later attempt repeats" in caplog.text
        assert "task.preempt_refused" in {getattr(record, "action", "") for record in caplog.records}


async def test_what_the_node_cannot_preempt_it_ignores(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=100)]) as node:
        await node.ready()
        task = await node.place(max_tokens=30)
        await node.until_tokens(task, 3)
        await node.preempt("00000000-0000-0000-0000-000000000009", run_seq=1)
        await node.preempt(task.task_id, run_seq=task.seq)
        node.bus.publish(subjects.preempt("node-1"), b"stop!")
        await node.until_ended(task)
        assert len(task.tokens) == 30
        await node.preempt(task.task_id)
        await answered(node)
        after = await node.place(max_tokens=2)
        await node.until_ended(after)
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.attempt) == (TaskState.DONE, 1)


async def test_an_engine_that_has_not_shown_it_is_not_interrupted(nats_server: NatsServer, tmp_path: Path) -> None:
    pool = mock_pool(rate=100, env={"LLORCH_MOCK_STAMP": "1"})
    async with NodeHarness(nats_server, tmp_path, pools=[pool]) as node:
        ready = await node.ready()
        assert "interruptible_decode" not in ready.features
        task = await node.place(max_tokens=20)
        await node.until_tokens(task, 3)
        await node.preempt(task.task_id)
        await node.until_ended(task)
        assert len(task.tokens) == 20


async def test_a_cancel_after_a_preemption_began_still_ends_the_task(nats_server: NatsServer, tmp_path: Path) -> None:
    """The slot is not let go at once, so both wishes are there while it is released."""
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)], slot_free_timeout_ms=500) as node:
        await node.ready()
        await node.fault(kind="refuse_cancel", times=1)
        task = await node.place(max_tokens=1000)
        await node.until_tokens(task, 2)
        await node.preempt(task.task_id)
        await node.cancel(task.task_id)
        await node.until_ended(task)
        assert task.data("end")[0]["finish_reason"] == "cancelled"
        assert task.data("metrics") == []
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.attempt) == (TaskState.CANCELLED, 1)


@pytest.mark.parametrize("preempt_first", [True, False])
async def test_a_cancel_and_a_preemption_at_once_have_one_outcome(
    preempt_first: bool, nats_server: NatsServer, tmp_path: Path
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=200)]) as node:
        await node.ready()
        for _ in range(5):
            task = await node.place(max_tokens=2000)
            await node.until_tokens(task, 2)
            _, seq = await node.run_of(task.task_id)
            if preempt_first:
                await node.preempt(task.task_id, run_seq=seq)
                await node.cancel(task.task_id)
            else:
                await node.cancel(task.task_id)
                await node.preempt(task.task_id, run_seq=seq)
            await outcome_of(node, task)
            if not task.ended:
                task = await node.resume(task)
                await node.until_ended(task)
            assert task.data("end")[0]["finish_reason"] == "cancelled"
            assert [token["i"] for token in task.tokens] == list(range(len(task.tokens)))
            assert task.data("end")[0]["tokens_out"] == len(task.tokens)
            assert (await node.run_of(task.task_id))[0].state is TaskState.CANCELLED


async def test_a_preemption_around_the_end_never_takes_the_end_back(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=500)]) as node:
        await node.ready()
        ended = preempted = 0
        for number in range(24):
            task = await node.place(max_tokens=6, seed=number)
            if number == 23:
                await node.until_ended(task)
            await node.until_tokens(task, number % 6 + 1)
            await node.preempt(task.task_id)
            await outcome_of(node, task)
            if task.ended:
                ended += 1
                assert task.data("metrics") == []
            else:
                preempted += 1
                task = await node.resume(task)
                await node.until_ended(task)
            assert task.text == text_of(PROMPT, number, 6)
            names = [event.event for event in task.events if event.event != "metrics"]
            assert names == ["started", *["token"] * 6, "end"]
        assert ended
        assert ended + preempted == 24


async def test_an_engine_killed_while_it_is_preempted_loses_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=100)], slot_free_timeout_ms=5_000) as node:
        first = await node.ready()
        await node.fault(kind="refuse_cancel", times=1)
        task = await node.place(max_tokens=300, seed=4)
        await node.until_tokens(task, 4)
        await node.preempt(task.task_id)
        await answered(node)
        os.kill(node.pid(), signal.SIGKILL)
        given_back = await node.until_preempted(task)
        assert (given_back.state, given_back.attempt) == (TaskState.PLACED, 2)
        await node.ready(other_than=first.incarnation)
        task = await node.resume(task)
        await node.until_tokens(task, 60)
        await node.cancel(task.task_id)
        await node.until_ended(task)
        assert [token["i"] for token in task.tokens] == list(range(len(task.tokens)))
        assert text_of(PROMPT, 4, 300).startswith(task.text)


async def test_a_preemption_after_the_engine_died_changes_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=100)]) as node:
        first = await node.ready()
        task = await node.place(max_tokens=300)
        await node.until_tokens(task, 4)
        os.kill(node.pid(), signal.SIGKILL)
        await node.ready(other_than=first.incarnation)
        await node.preempt(task.task_id)
        await answered(node)
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.attempt) == (TaskState.RUNNING, 1), "the scheduler sees to it"
        assert task.data("metrics") == []


async def test_a_node_that_lost_the_task_says_nothing_about_its_preemption(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)]) as node:
        await node.ready()
        task = await node.place(max_tokens=1000)
        await node.until_tokens(task, 3)
        record, seq = await node.run_of(task.task_id)
        taken = msgspec.structs.replace(record, state=TaskState.PLACED, attempt=2, replica_id="mock-other-1")
        await node.bus.store(subjects.run(task.task_id), msgspec.json.encode(taken), expect_seq=seq)
        await node.preempt(task.task_id, run_seq=seq)
        after = await node.place(max_tokens=2)
        await node.until_ended(after)
        assert task.data("metrics") == []
        assert (await node.run_of(task.task_id))[0] == taken


async def test_a_resumed_engine_that_says_other_words_ends_the_stream(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=100)]) as node:
        await node.ready()
        task = await node.place(max_tokens=300)
        await node.until_tokens(task, 8)
        await node.preempt(task.task_id)
        await node.until_preempted(task)
        await node.fault(kind="drift", after=4, times=1)
        task = await node.resume(task)
        await node.until_ended(task)
        assert task.data("error")[0]["code"] == "WORKER_RESET"


async def test_a_stream_tells_what_is_known_about_its_task(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=100)]) as node:
        await node.ready()
        load = PoolLoad(
            pool_id="mock",
            at_ms=1,
            snapshot_version=1,
            queued={"interactive": 2, "batch": 3},
            queue_seq={},
            running=1,
            slots_total=1,
            slots_free=0,
            replicas_ready=1,
            service_ms=5,
        )
        node.bus.publish(subjects.load("mock"), msgspec.json.encode(load))
        await answered(node)
        task = await node.place(max_tokens=2)
        await node.until_ended(task)
        assert [event.event for event in task.events] == ["started", "metrics", "token", "token", "end"]
        assert task.data("metrics") == [{"queue_depth": 5}]


async def test_a_replica_tells_how_fast_it_is(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=100, quant="q4_k_m")]) as node:
        fresh = await node.ready()
        assert (fresh.perf_tokens_per_s, fresh.perf_first_token_ms, fresh.kv_bytes_per_token) == (0, 0, 0)
        assert fresh.quant == "q4_k_m"
        task = await node.place(max_tokens=200)
        await node.until_ended(task)
        told = await node.until(
            "the pace", lambda: (record := node.replicas["mock-node-1-1"]).perf_tokens_per_s and record
        )
        assert 10 < told.perf_tokens_per_s < 125, "about the engine's pace, less on a busy machine"
        assert told.perf_first_token_ms > 0
        assert len(node.history) < 30, "told with the renewals, not with the tokens"


async def test_the_end_of_a_resumed_task_that_is_cancelled_at_once_counts_the_whole_stream(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=100)]) as node:
        first = await node.ready()
        task = await node.place(max_tokens=300)
        lost = await node.place(max_tokens=300, prompt="And another.")
        await node.until_tokens(task, 4)
        await node.preempt(task.task_id)
        await node.until_preempted(task)
        await node.until_tokens(lost, 4)
        os.kill(node.pid(), signal.SIGKILL)
        await node.ready(other_than=first.incarnation)
        for stopped in (task, lost):
            await node.cancel(stopped.task_id, signal=False)
        task, lost = await node.resume(task), await node.place(lost.run.request, attempt=2)
        for resumed in (task, lost):
            await node.until_ended(resumed)
            assert resumed.data("end")[0]["tokens_out"] == len(resumed.tokens)
            assert resumed.data("end")[0]["finish_reason"] == "cancelled"
