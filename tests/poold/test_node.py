"""A node on a real bus with mock engines: claim, run, cancel, break, drain."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_poold import bring_up, ownership
from llorch_poold.core import trust_look
from llorch_poold.gpu.probe import GpuReport
from llorch_poold.mock_text import text_of
from llorch_poold.outlet import fence_clock
from llorch_poold.preparation import Prepared
from llorch_poold.provisioning import NotProvisioned, Provisioning
from llorch_poold.run_store import RunStore
from llorch_shared import streams, subjects
from llorch_shared.wire.registry import Gpu, ReplicaState
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskState
from support.link import Link
from support.nats_server import NatsServer, free_port
from support.node_harness import DEADLINE_S, NodeHarness, mock_pool, task_request

pytestmark = pytest.mark.nats


def sample(node: NodeHarness, metric: str) -> float:
    """Sum over all label values."""
    return sum(
        each.value for family in node.metrics.registry.collect() for each in family.samples if each.name == metric
    )


async def until_given_back(node: NodeHarness, task_id: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while (await node.run_of(task_id))[0].state is not TaskState.RUNNING or _cores(node):
            await asyncio.sleep(0.01)


async def until_placed(node: NodeHarness, task_id: str) -> None:
    """The node itself has put it back."""
    async with asyncio.timeout(DEADLINE_S):
        while (await node.run_of(task_id))[0].replica_id:
            await asyncio.sleep(0.01)


async def until_true(question: Callable[[], bool]) -> None:
    """Asked without the bus, which is silent."""
    async with asyncio.timeout(DEADLINE_S):
        while not question():
            await asyncio.sleep(0.01)


async def until_free(node: NodeHarness) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await node.busy_slots():
            await asyncio.sleep(0.01)


async def test_a_placed_task_runs_to_its_end(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        ready = await node.ready()
        task = await node.place(max_tokens=12, seed=7)
        await node.until_ended(task)
        assert [token["i"] for token in task.tokens] == list(range(12))
        assert task.text == text_of("Say something.", 7, 12)
        assert [event.event for event in task.events] == ["started", *["token"] * 12, "end"]
        (started,), (end,) = task.data("started"), task.data("end")
        assert (started["device"], started["replica_id"], started["seed"]) == ("cpu", "mock-node-1-1", 7)
        assert started["engine_version"] == "mock-stub-v0"
        assert (end["tokens_out"], end["finish_reason"], end["tokens_in"]) == (12, "length", 2)
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.tokens_out, run.incarnation) == (TaskState.DONE, 12, ready.incarnation)
        assert run.request is None
        assert (sample(node, "tokens_out_total"), sample(node, "tokens_in_total")) == (12, 2)
        assert sample(node, "tasks_started_total") == 1
        await node.until_audited(task.task_id, "running", "done")


async def test_more_placements_than_slots_wait_their_turn(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(slots=2, rate=100)]) as node:
        await node.ready()
        first = [await node.place(max_tokens=300, prompt=f"task {number}") for number in range(2)]
        async with asyncio.timeout(DEADLINE_S):
            while await node.busy_slots() < 2:
                await asyncio.sleep(0.005)
        later = [await node.place(max_tokens=10, prompt=f"task {number}", ahead=False) for number in range(2, 7)]
        for task in (*first, *later):
            await node.until_ended(task)
        assert [task.data("end")[0]["tokens_out"] for task in (*first, *later)] == [300] * 2 + [10] * 5
        assert len({task.text for task in (*first, *later)}) == 7


async def test_a_placement_that_somebody_else_took_is_dropped_silently(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        await node.ready()
        request = task_request(max_tokens=3)
        task = await node.place(request)
        await node.until_ended(task)
        stale = msgspec.json.encode({"run": msgspec.to_builtins(task.run), "run_seq": task.seq})
        await node.bus.store(subjects.placement("mock", "mock-node-1-1"), stale)
        await node.bus.store(subjects.placement("mock", "mock-node-1-1"), b"no placement")
        after = await node.place(max_tokens=2)
        await node.until_ended(after)
        assert len(task.data("end")) == 1
        assert (await node.run_of(task.task_id))[0].state is TaskState.DONE


async def test_a_running_task_is_cancelled_with_a_receipt(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)]) as node:
        await node.ready()
        task = await node.place(max_tokens=1000)
        await node.until_tokens(task, 3)
        await node.cancel(task.task_id)
        await node.until_ended(task)
        assert await node.busy_slots() == 0, "the slot is free when the terminal frame is there"
        (end,) = task.data("end")
        assert (end["finish_reason"], end["tokens_out"]) == ("cancelled", len(task.tokens))
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.finish_reason) == (TaskState.CANCELLED, "cancelled")
        assert run.cancel_ms == end["cancel_ms"] >= 0, "from the stored wish to the free slot"
        assert sample(node, "cancel_latency_ms_count") == 1
        await node.until_audited(task.task_id, "running", "cancelled")
        assert (await node.audits(task.task_id))[-1].detail["cancel_ms"] == run.cancel_ms
        assert task.events[-1].event == "end"
        assert sample(node, "tasks_canceled_total") == 1
        await node.cancel(task.task_id)
        again = await node.place(max_tokens=2)
        await node.until_ended(again)
        assert len(task.data("end")) == 1


async def test_a_cancel_during_the_prompt_frees_the_slot(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        await node.ready()
        await node.fault(kind="prefill", ms=60_000, times=1)
        task = await node.place(max_tokens=10)
        await node.until("the start", lambda: task.data("started"))
        await node.cancel(task.task_id)
        await node.until_ended(task)
        assert task.data("end")[0]["tokens_out"] == 0
        assert await node.busy_slots() == 0


async def test_long_prompts_are_given_to_the_engine_one_at_a_time(nats_server: NatsServer, tmp_path: Path) -> None:
    """Those that wait have never been sent, so a cancel of them has nothing to wait for."""
    reads = {"mode": "external", "env": {"LLORCH_MOCK_PREFILL_RATE": "20", "LLORCH_MOCK_BATCH": "1"}}
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(slots=3, provisioning=reads)]) as node:
        await node.ready()
        tasks = [await node.place(prompt="word " * 2000, max_tokens=5) for _ in range(3)]
        await node.until("the one that is read", lambda: any(task.data("started") for task in tasks))
        (read,) = [task for task in tasks if task.data("started")]
        waiting, next_one = [task for task in tasks if task is not read]
        for task in (waiting, next_one):
            await node.until_audited(task.task_id, "running")
        assert await node.busy_slots() == 1
        await node.cancel(waiting.task_id)
        await node.until_ended(waiting)
        assert await node.busy_slots() == 1, "the engine reads another one's prompt"
        assert waiting.data("started") == []
        await node.cancel(read.task_id)
        await node.until_ended(read)
        await node.until("the next prompt", lambda: next_one.data("started"))
        await node.cancel(next_one.task_id)
        await node.until_ended(next_one)
        assert await node.busy_slots() == 0
        assert {task.data("end")[0]["finish_reason"] for task in tasks} == {"cancelled"}
        await node.until_ended(await node.place(max_tokens=2))


async def test_a_wish_stored_before_the_claim_is_obeyed(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=20)]) as node:
        await node.ready()
        request = task_request(max_tokens=1000)
        await node.cancel(request.task_id, signal=False)
        task = await node.place(request)
        await node.until_ended(task)
        assert task.data("end")[0]["finish_reason"] == "cancelled"
        assert task.data("end")[0]["cancel_ms"] >= 0
        assert task.tokens == []


async def test_a_wish_nobody_can_read_is_a_wish_and_harms_no_neighbour(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=20, slots=2)]) as node:
        await node.ready()
        pid = node.pid()
        neighbour = await node.place(max_tokens=10)
        request = task_request(max_tokens=1000)
        await node.bus.store(subjects.cancel(request.task_id), b"now!")
        task = await node.place(request)
        await node.until_ended(task)
        assert task.data("end")[0]["finish_reason"] == "cancelled"
        await node.until_ended(neighbour)
        assert (await node.run_of(neighbour.task_id))[0].attempt == 1
        assert node.pid() == pid, "the engine lives"


async def test_an_engine_that_does_not_let_go_is_killed(nats_server: NatsServer, tmp_path: Path) -> None:
    pools = [mock_pool(rate=50, slots=2)]
    async with NodeHarness(nats_server, tmp_path, pools=pools, slot_free_timeout_ms=2_000) as node:
        first = await node.ready()
        pid = node.pid()
        await node.fault(kind="refuse_cancel", times=1)
        task = await node.place(max_tokens=100_000 // 2)
        await node.until_tokens(task, 1)
        neighbour = await node.place(max_tokens=1000)
        await node.until_tokens(neighbour, 1)
        await node.cancel(task.task_id)
        await node.until_ended(task)
        assert not Path(f"/proc/{pid}").exists(), "the receipt means that no engine works for the task"
        assert task.data("end")[0]["finish_reason"] == "cancelled"
        assert task.data("end")[0]["cancel_ms"] >= 2_000
        again = await node.ready(other_than=first.incarnation)
        assert again.restart_count == 1
        assert await node.busy_slots() == 0
        assert not neighbour.ended, "it is the scheduler's again"
        assert neighbour.task_id not in again.active
        assert (await node.run_of(neighbour.task_id))[0].state is TaskState.RUNNING
        await node.until_ended(await node.place(max_tokens=3))


async def test_a_cancel_is_obeyed_while_the_engine_of_its_task_is_gone(nats_server: NatsServer, tmp_path: Path) -> None:
    """Between two attempts the task is the scheduler's; the next claim finds the wish all the same."""
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=20)]) as node:
        first = await node.ready()
        task = await node.place(max_tokens=1000)
        await node.until_tokens(task, 2)
        os.kill(node.pid(), signal.SIGKILL)
        await node.ready(other_than=first.incarnation)
        await node.cancel(task.task_id)
        assert not task.ended
        again = await node.place(task.run.request, attempt=2)
        await node.until_ended(again)
        (end,) = again.data("end")
        assert (end["finish_reason"], end["tokens_out"]) == ("cancelled", len(again.tokens))
        assert await node.busy_slots() == 0


async def test_a_killed_engine_comes_back_in_another_life(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)]) as node:
        first = await node.ready()
        task = await node.place(max_tokens=40, seed=3)
        await node.until_tokens(task, 5)
        os.kill(node.pid(), signal.SIGKILL)
        second = await node.ready(other_than=first.incarnation)
        assert not task.ended, "the node leaves the verdict to the scheduler"
        assert task.task_id not in second.active
        assert (await node.run_of(task.task_id))[0].state is TaskState.RUNNING
        seen = len(task.tokens)
        again = await node.place(task.run.request, attempt=2)
        await node.until_ended(again)
        assert [token["i"] for token in again.tokens] == list(range(40)), "the prefix is not sent twice"
        assert again.text == text_of("Say something.", 3, 40)
        assert {"attempt": 2, "kv_migrated": False, "kv_warmth": False} in again.data("metrics")
        assert len(again.data("started")) == 1
        assert again.events[-1].id == "2-40"
        assert [event.id for event in again.events if event.event == "token"][seen].startswith("2-")


async def test_an_engine_that_says_something_else_the_second_time_ends_the_stream(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)]) as node:
        first = await node.ready()
        task = await node.place(max_tokens=40, seed=3)
        await node.until_tokens(task, 3)
        os.kill(node.pid(), signal.SIGKILL)
        await node.ready(other_than=first.incarnation)
        assert task.run.request is not None
        again = await node.place(msgspec.structs.replace(task.run.request, seed=4), attempt=2)
        await node.until_ended(again)
        assert again.data("error")[0]["code"] == "WORKER_RESET"


@pytest.mark.parametrize("fault", [{"kind": "reset", "after": 4}, {"kind": "utf8", "after": 4}, {"kind": "page"}])
async def test_a_broken_stream_is_given_back_and_not_ended(
    fault: dict[str, Any], nats_server: NatsServer, tmp_path: Path
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=200)]) as node:
        ready = await node.ready()
        await node.fault(**fault, times=1)
        task = await node.place(max_tokens=20)
        await until_placed(node, task.task_id)
        again = await node.resume(task)
        assert (again.run.attempt, again.run.preemptions) == (2, 0)
        await node.until_ended(again)
        assert [token["i"] for token in again.tokens] == list(range(20))
        assert (await node.ready()).incarnation == ready.incarnation
        await node.until_audited(task.task_id, "running", "requeued", "running", "done")


async def test_a_stream_that_breaks_again_waits_for_the_scheduler(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=200)]) as node:
        await node.ready()
        await node.fault(kind="reset", after=4, times=1)
        task = await node.place(max_tokens=20, attempt=2)
        await until_given_back(node, task.task_id)
        await until_free(node)
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.attempt) == (TaskState.RUNNING, 2)


async def test_a_busy_engine_is_asked_again(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        await node.ready()
        await node.fault(kind="busy", times=2)
        task = await node.place(max_tokens=4)
        await node.until_ended(task)
        assert task.data("end")[0]["tokens_out"] == 4


async def test_a_silent_engine_is_a_decode_timeout(nats_server: NatsServer, tmp_path: Path) -> None:
    pool = mock_pool(timeouts={"idle_ms": 2_000})
    async with NodeHarness(nats_server, tmp_path, pools=[pool]) as node:
        await node.ready()
        await node.fault(kind="hang", after=3, times=1)
        task = await node.place(max_tokens=20)
        await node.until_ended(task)
        assert task.data("error")[0]["code"] == "DECODE_TIMEOUT"
        assert len(task.tokens) == 3
        assert await node.busy_slots() == 0


async def test_an_engine_that_never_says_a_byte_is_a_decode_timeout(nats_server: NatsServer, tmp_path: Path) -> None:
    pool = mock_pool(timeouts={"idle_ms": 2_000})
    async with NodeHarness(nats_server, tmp_path, pools=[pool]) as node:
        ready = await node.ready()
        await node.fault(kind="hang", times=1)
        task = await node.place(max_tokens=20)
        await node.until_ended(task)
        assert [event.event for event in task.events] == ["error"]
        error = task.data("error")[0]
        assert (error["code"], error["retriable"]) == ("DECODE_TIMEOUT", True)
        assert await node.busy_slots() == 0
        await node.until_ended(await node.place(max_tokens=2))
        assert (await node.ready()).incarnation == ready.incarnation, "an engine that lets go lives on"


async def test_an_engine_that_stands_still_is_replaced(nats_server: NatsServer, tmp_path: Path) -> None:
    pool = mock_pool(rate=50, timeouts={"idle_ms": 2_000})
    async with NodeHarness(nats_server, tmp_path, pools=[pool], slot_free_timeout_ms=2_000) as node:
        first = await node.ready()
        pid = node.pid()
        task = await node.place(max_tokens=1000)
        await node.until_tokens(task, 2)
        os.kill(pid, signal.SIGSTOP)
        await node.until_ended(task)
        assert task.data("error")[0]["code"] == "DECODE_TIMEOUT"
        assert not Path(f"/proc/{pid}").exists()
        await node.ready(other_than=first.incarnation)
        after = await node.place(max_tokens=2)
        await node.until_ended(after)
        assert after.data("end")[0]["tokens_out"] == 2


async def test_a_task_over_its_wall_time_is_a_decode_timeout(nats_server: NatsServer, tmp_path: Path) -> None:
    pool = mock_pool(rate=50, timeouts={"wall_ms": 200})
    async with NodeHarness(nats_server, tmp_path, pools=[pool]) as node:
        await node.ready()
        task = await node.place(max_tokens=1000)
        await node.until_ended(task)
        assert task.data("error")[0]["code"] == "DECODE_TIMEOUT"
        assert (await node.run_of(task.task_id))[0].state is TaskState.FAILED


@pytest.mark.parametrize("words", [3000, 30])
async def test_a_prompt_over_the_context_fails_the_task(words: int, nats_server: NatsServer, tmp_path: Path) -> None:
    """Over the pool's context the engine refuses; over the task's own the node does."""
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        await node.ready()
        task = await node.place(max_tokens=5, prompt="word " * words, ctx=2048 if words == 3000 else 20)
        await node.until_ended(task)
        assert task.data("error")[0]["code"] == "INVALID_PARAMS"
        assert not task.data("error")[0].get("retriable", False)
        after = await node.place(max_tokens=2)
        await node.until_ended(after)


async def test_a_bus_restart_costs_a_reader_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=40)]) as node:
        await node.ready()
        ended = await node.place(max_tokens=5)
        await node.until_ended(ended)
        task = await node.place(max_tokens=60, seed=1)
        await node.until_tokens(task, 5)
        nats_server.kill()
        task.messages.clear()
        ended.messages.clear()
        await asyncio.to_thread(nats_server.start)
        await node.until_ended(task)
        await node.until_ended(ended)
        assert sorted({token["i"] for token in task.tokens}) == list(range(60))
        assert len(task.data("started")) == 1
        assert (await node.run_of(task.task_id))[0].state is TaskState.DONE
        await node.ready()


async def test_a_node_that_was_cut_off_lets_go_of_a_task_that_another_took_over(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    link = Link(free_port(), nats_server.port)
    await link.start()
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=20)], node_url=link.url) as node:
        await node.ready()
        task = await node.place(max_tokens=1000)
        await node.until_tokens(task, 2)
        run, seq = await node.run_of(task.task_id)
        link.cut()
        again = msgspec.structs.replace(run, attempt=2, state=TaskState.PLACED, replica_id="mock-node-2-1", node_id="")
        await node.bus.store(subjects.run(task.task_id), msgspec.json.encode(again), expect_seq=seq)
        link.mend()
        await until_free(node)
        await until_true(lambda: not _cores(node))
        assert (await node.run_of(task.task_id))[0] == again
        assert not task.ended
        await node.until_ended(await node.place(max_tokens=3))
    await link.close()


async def test_a_node_whose_keys_may_have_expired_is_silent_and_lets_go_before_it_speaks_again(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    link = Link(free_port(), nats_server.port)
    await link.start()
    pools = [mock_pool(rate=40, slots=2)]
    async with NodeHarness(nats_server, tmp_path, pools=pools, node_url=link.url) as node:
        await node.ready()
        taken, kept = await node.place(max_tokens=1000), await node.place(max_tokens=150, seed=1)
        await node.until_tokens(taken, 2)
        await node.until_tokens(kept, 2)
        link.stall()
        await node.until("the replica's key to expire", lambda: not node.replicas)
        assert fence_clock() >= node.context.fence.until, "silent before anybody may take its tasks"
        (core,) = [each for each in _cores(node) if each.run.task_id == taken.task_id]
        said = core.tokens_out
        run, seq = await node.run_of(taken.task_id)
        again = msgspec.structs.replace(run, attempt=2, state=TaskState.PLACED, replica_id="mock-node-2-1", node_id="")
        await node.bus.store(subjects.run(taken.task_id), msgspec.json.encode(again), expect_seq=seq)
        await until_true(lambda: core.tokens_out >= said + 5)
        link.mend()
        await node.until_ended(kept)
        await node.until_ended(await node.place(max_tokens=3))
        await until_free(node)
        assert max(token["i"] for token in taken.tokens) < said, "nothing of what came after was ever said"
        assert sorted({token["i"] for token in kept.tokens}) == list(range(150))
        assert core.outcome is not None
        assert sample(node, "node_fenced") == 0
    await link.close()


async def test_a_node_that_is_cut_off_for_long_ends_its_engine_calls(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "LOOK_FIRST_S", 0.2)
    link = Link(free_port(), nats_server.port)
    await link.start()
    pools = [mock_pool(rate=40, slots=2)]
    async with NodeHarness(nats_server, tmp_path, pools=pools, node_url=link.url, cut_off_grace_ms=0) as node:
        await node.ready()
        taken, kept = await node.place(max_tokens=1000), await node.place(max_tokens=1000, seed=1)
        await node.until_tokens(taken, 2)
        await node.until_tokens(kept, 2)
        link.cut()
        await node.until("the replica's key to expire", lambda: not node.replicas)
        run, seq = await node.run_of(taken.task_id)
        again = msgspec.structs.replace(run, attempt=2, state=TaskState.PLACED, replica_id="mock-node-2-1", node_id="")
        await node.bus.store(subjects.run(taken.task_id), msgspec.json.encode(again), expect_seq=seq)
        async with asyncio.timeout(DEADLINE_S):
            while await node.busy_slots():
                await asyncio.sleep(0.05)
        sent = max(core.tokens_out for core in _cores(node) if core.run.task_id == kept.task_id)
        link.mend()
        await until_placed(node, kept.task_id)
        assert (await node.run_of(taken.task_id))[0] == again
        told = {token["i"] for token in kept.tokens}
        assert told == set(range(sent)), "what readers lacked was said before the task was given back"
        back, _ = await node.run_of(kept.task_id)
        assert (back.attempt, back.preemptions) == (2, 0)
        await until_free(node)
        await node.cancel(kept.task_id)
        await node.until_ended(await node.resume(kept))
    await link.close()


async def test_a_node_that_slept_since_its_claim_asks_no_engine_for_what_another_took(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        await node.ready()
        claim, claimed = node.context.runs.swap, asyncio.Event()

        async def claim_and_sleep(self: RunStore, record: RunRecord, seq: int) -> int | None:
            stored = await claim(record, seq)
            if not claimed.is_set():
                assert stored is not None
                claimed.set()
                moved = {"attempt": 2, "state": TaskState.PLACED, "replica_id": "mock-node-2-1", "node_id": ""}
                again = msgspec.json.encode(msgspec.structs.replace(record, **moved))
                await node.bus.store(subjects.run(record.task_id), again, expect_seq=stored)
                time.sleep(streams.REGISTRY_TTL_S)
            return stored

        monkeypatch.setattr(RunStore, "swap", claim_and_sleep)
        task = await node.place(max_tokens=3)
        await asyncio.wait_for(claimed.wait(), DEADLINE_S)
        await until_true(lambda: not _cores(node))
        other = await node.until_ended(await node.place(max_tokens=3))
        assert sample(node, "tasks_started_total") == 1, "of the other task alone"
        assert (len(task.tokens), len(other.tokens)) == (0, 3)


async def test_a_task_that_ends_while_the_bus_is_away_is_stored_later(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=100)]) as node:
        await node.ready()
        task = await node.place(max_tokens=20)
        await node.until_tokens(task, 2)
        nats_server.kill()
        await until_true(lambda: any(core.outcome is not None for core in _cores(node)))
        await asyncio.to_thread(nats_server.start)
        await node.until_ended(task)
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.tokens_out) == (TaskState.DONE, 20)


def _cores(node: NodeHarness) -> list[Any]:
    return [run._core for replica in node.node.reconciler.replicas.values() for run in replica.slots.runs.values()]


async def test_a_drain_finishes_what_runs_and_leaves_no_process(nats_server: NatsServer, tmp_path: Path) -> None:
    pools = [mock_pool(rate=50, replicas=2)]
    async with NodeHarness(nats_server, tmp_path, pools=pools, drain_timeout_ms=30_000) as node:
        await node.ready()
        await node.ready("mock-node-1-2")
        pids = [node.pid(), node.pid("mock-node-1-2")]
        task = await node.place(max_tokens=30)
        await node.until_tokens(task, 2)
        await node.drain()
        await node.until_ended(task)
        assert task.data("end")[0]["tokens_out"] == 30
        drained = 'drain_events_total{pool_id="mock",reason="node_stops"} 2.0'
        assert drained in node.metrics.render().decode()
        for pid in pids:
            assert not Path(f"/proc/{pid}").exists()


async def test_a_drain_gives_back_what_does_not_end_in_time(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=20)], drain_timeout_ms=100) as node:
        before = await node.ready()
        task = await node.place(max_tokens=1000)
        await node.until_tokens(task, 2)
        await node.drain()
        assert not task.ended
        last = node.history[-1]
        assert (last.state, last.active) == (ReplicaState.DRAINING, ())
        assert last.incarnation != before.incarnation
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.replica_id, run.attempt) == (TaskState.PLACED, "", 2)
        assert run.preemptions == 1, "an orderly end of an engine is no attempt that was lost"
        assert run.tokens_out >= 2


async def test_a_drain_gives_back_what_no_other_attempt_could_repeat_as_lost(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=20)], drain_timeout_ms=100) as node:
        before = await node.ready()
        task = await node.place(max_tokens=1000, determinism="best_effort")
        await node.until_tokens(task, 2)
        await node.drain()
        assert not task.ended
        assert node.history[-1].incarnation != before.incarnation
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.attempt, run.preemptions) == (TaskState.RUNNING, 1, 0)


async def test_a_task_whose_end_waits_for_the_bus_says_it_although_its_replica_is_gone(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=100)], drain_timeout_ms=100) as node:
        await node.ready()
        task = await node.place(max_tokens=20)
        await node.until_tokens(task, 2)
        assert nats_server.process is not None
        os.kill(nats_server.process.pid, signal.SIGSTOP)
        try:
            await until_true(lambda: any(core.outcome is not None for core in _cores(node)))
            for replica in node.node.reconciler.replicas.values():
                replica.drain("its specification changed")
            await until_true(lambda: bool(node.context.settling))
        finally:
            os.kill(nats_server.process.pid, signal.SIGCONT)
        await node.until_ended(task)
        assert (await node.run_of(task.task_id))[0].state is TaskState.DONE
        await until_true(lambda: not node.context.settling)


async def test_a_changed_pool_is_served_by_a_new_engine(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        first = await node.ready()
        pid = node.pid()
        await node.put_pool(mock_pool(slots=3))
        second = await node.ready(other_than=first.incarnation)
        assert (first.slots_total, second.slots_total) == (1, 3)
        assert not Path(f"/proc/{pid}").exists()
        await node.put_pool(mock_pool(slots=3, queue={"capacity": 9}))
        await node.put_pool(mock_pool(slots=3, queue={"capacity": 9}, replicas=2))
        await node.ready("mock-node-1-2")
        assert (await node.ready()).incarnation == second.incarnation
        await node.put_pool(mock_pool(slots=3, replicas=0))
        await node.until("no replica", lambda: not node.replicas)


async def test_a_node_without_a_gpu_says_so(nats_server: NatsServer, tmp_path: Path) -> None:
    pools = [mock_pool("on-gpu", devices="all"), mock_pool("on-cpu")]
    async with NodeHarness(nats_server, tmp_path, pools=pools, profile="gpu") as node:
        gpu = await node.state(ReplicaState.FAILED, "on-gpu-node-1-1")
        cpu = await node.state(ReplicaState.FAILED, "on-cpu-node-1-1")
        assert "no NVIDIA driver is installed" in gpu.last_error
        assert "ORCH-1102" in gpu.last_error
        assert "refused" in cpu.last_error
        assert node.node_record is not None
        assert node.node_record.gpu_problem == "no NVIDIA driver is installed"


async def test_a_gpu_pool_runs_on_its_mask(nats_server: NatsServer, tmp_path: Path) -> None:
    gpu = Gpu(index=0, uuid="GPU-a", name="x", vram_total_mb=24_000, vram_free_mb=20_000)
    report = GpuReport(gpus=(gpu,), driver="570.1")
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(devices=[0])], profile="gpu", report=report) as node:
        record = await node.ready()
        assert (record.device, record.free_vram_mb) == ("cuda:0", 20_000)
        task = await node.place(max_tokens=2)
        await node.until_ended(task)
        assert task.data("started")[0]["device"] == "cuda:0"


async def test_an_engine_that_cannot_start_opens_the_breaker(nats_server: NatsServer, tmp_path: Path) -> None:
    pool = mock_pool(provisioning={"flags": ["--no-such-flag"]})
    async with NodeHarness(nats_server, tmp_path, pools=[pool], breaker_restarts=2) as node:
        failed = await node.state(ReplicaState.FAILED)
        assert failed.restart_count == 2
        assert "gave up after 2 restarts" in failed.last_error
        assert "unrecognized arguments" in failed.last_error
        assert ReplicaState.BACKOFF in {record.state for record in node.history}
        await node.put_pool(mock_pool())
        await node.ready()


async def test_a_gpu_that_fails_takes_its_replica_out_with_the_cause(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llorch_poold.gpu.watch.PROBE_EVERY_S", 0.05)
    gpu = Gpu(index=0, uuid="GPU-a", name="x", vram_total_mb=24_000, vram_free_mb=20_000)
    report = GpuReport(gpus=(gpu,), driver="570.1")
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(devices=[0])], profile="gpu", report=report) as node:
        await node.ready()
        pid = node.pid()
        faulty = msgspec.structs.replace(gpu, fault="Xid 79")
        node.probe.report = GpuReport(gpus=(faulty,), driver="570.1", problem="every GPU has a fault: Xid 79")
        failed = await node.state(ReplicaState.FAILED)
        assert "Xid 79" in failed.last_error
        assert not Path(f"/proc/{pid}").exists()
        node.probe.report = report
        await node.ready()


async def test_engines_of_several_pools_share_the_ports_from_the_base_on(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    pools = [mock_pool("one", replicas=2), mock_pool("two")]
    async with NodeHarness(nats_server, tmp_path, pools=pools, engine_port_base=28_400) as node:
        names = ("one-node-1-1", "one-node-1-2", "two-node-1-1")
        for name in names:
            await node.ready(name)
        ports = {node.port(name) for name in names}
        assert len(ports) == 3
        assert all(28_400 <= port < 29_400 for port in ports)


async def test_the_line_about_the_engine_call_carries_the_callers_id(
    nats_server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="llorch_poold")
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        await node.ready()
        task = await node.place(max_tokens=50)
        await node.until_ended(task)
        lines = [record.__dict__ for record in caplog.records if record.__dict__.get("task_id") == task.task_id]
        assert [line["action"] for line in lines] == ["engine.submit", "task.done"], "never one line per token"
        for line in lines:
            assert (line["correlation_id"], line["replica_id"]) == ("corr-1", "mock-node-1-1")
        assert lines[-1]["tokens_out"] == 50


async def test_a_task_that_asks_for_another_sampler_profile_fails(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        await node.ready()
        task = await node.place(max_tokens=5, sampler_profile_version="v9")
        await node.until_ended(task)
        assert task.data("error")[0]["code"] == "INVALID_PARAMS"
        assert [event.event for event in task.events] == ["error"]


async def test_a_model_that_is_not_trusted_is_not_loaded_until_it_is(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted = asyncio.Event()

    async def prepare(*_: Any) -> Prepared:
        if not trusted.is_set():
            raise NotProvisioned("nobody has signed it", final=True, code="UNTRUSTED_ARTIFACT")
        return Prepared()

    async def permitted(*_: Any) -> bool:
        await trusted.wait()
        return True

    monkeypatch.setattr(bring_up, "prepare", prepare)
    monkeypatch.setattr(trust_look, "FIRST_S", 0.01)
    monkeypatch.setattr(Provisioning, "permitted", permitted)
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool()]) as node:
        refused = await node.state(ReplicaState.FAILED)
        assert (refused.refused, refused.last_error) == ("UNTRUSTED_ARTIFACT", "nobody has signed it")
        trusted.set()
        assert (await node.ready()).refused == ""
