"""A later attempt goes on with a stream as its task says, on a node with mock engines."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_poold.core.seed import seed_of
from llorch_poold.mock_text import text_of
from llorch_shared import streams, subjects
from llorch_shared.bus.port import BusError
from llorch_shared.decode_times import decode_times
from llorch_shared.wire.frames import Token, split_events
from llorch_shared.wire.task import TaskState
from support.nats_server import NatsServer
from support.node_harness import DEADLINE_S, NodeHarness, Placed, mock_pool

pytestmark = pytest.mark.nats

PROMPT = "Say something."
ANNOUNCED = {"attempt": 2, "kv_warmth": False, "kv_migrated": False}


def words(text: str) -> list[str]:
    return [f" {word}" for word in text.split()]


def texts(task: Placed) -> list[str]:
    return [token["t"] for token in task.tokens]


async def cut(node: NodeHarness, tokens: int = 5, **changes: Any) -> Placed:
    """A task whose connection to the engine broke after some tokens, before anybody goes on with it."""
    await node.ready()
    await node.fault(kind="reset", after=tokens, times=1)
    task = await node.place(**{"max_tokens": 40, "determinism": "best_effort", **changes})
    await node.until_tokens(task, tokens)
    await until_lost(node)
    return task


async def until_lost(node: NodeHarness) -> None:
    async with asyncio.timeout(15):
        while any(replica.slots.runs for replica in node.node.reconciler.replicas.values()):
            await asyncio.sleep(0.005)


async def again(node: NodeHarness, task: Placed) -> Placed:
    run, _ = await node.run_of(task.task_id)
    if run.state is TaskState.PLACED:
        return await node.until_ended(await node.resume(task))
    return await node.until_ended(await node.place(task.run.request, attempt=run.attempt + 1))


async def test_a_sampled_stream_goes_on_from_its_prompt_and_its_text(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)]) as node:
        ready = await node.ready()
        task = await node.place(max_tokens=40, determinism="best_effort", seed=3)
        await node.until_tokens(task, 5)
        os.kill(node.pid(), signal.SIGKILL)
        await node.ready(other_than=ready.incarnation)
        seen = len(task.tokens)
        first = text_of(PROMPT, 3, seen)
        assert task.text == first
        task = await again(node, task)
        assert texts(task) == words(first) + words(text_of(PROMPT + first, 3, 40 - seen))
        assert [token["i"] for token in task.tokens] == list(range(40))
        assert task.data("metrics")[-1] == {**ANNOUNCED, "resume_from": seen}
        assert ANNOUNCED in task.data("metrics")
        assert len(task.data("started")) == 1
        (end,) = task.data("end")
        assert (end["tokens_out"], end["tokens_in"], end["finish_reason"]) == (40, 2, "length")
        assert "restarted_at" not in end
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.attempt, run.tokens_out, run.tokens_in) == (TaskState.DONE, 2, 40, 2)
        assert run.determinism_class == ready.determinism_class != ""


async def test_what_an_attempt_decoded_that_died_is_charged_by_the_next(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)]) as node:
        task = await cut(node, 30, max_tokens=32, seed=3)
        log = await node.bus.replay(streams.TOK, subjects.tokens(task.run.lane, task.task_id))
        died_ms = decode_times(log)[1]
        assert died_ms > 0
        await node.until_ended(await node.resume(task, lost=(1,), decode_ms=1_000))
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.lost) == (TaskState.DONE, ())
        assert run.decode_ms >= 1_000 + died_ms


async def test_a_sampled_stream_begins_anew_behind_what_was_sent(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)]) as node:
        task = await cut(node, seed=3, failover="restart")
        seen = len(task.tokens)
        task = await again(node, task)
        assert texts(task) == words(text_of(PROMPT, 3, seen)) + words(text_of(PROMPT, 3, 40))
        assert [token["i"] for token in task.tokens] == list(range(seen + 40))
        restart = next(number for number, event in enumerate(task.events) if b"restarted_at" in event.data)
        before = [event.event for event in task.events[:restart]]
        assert before.count("token") == seen, "it stands between the tokens"
        assert task.data("metrics")[-1] == {**ANNOUNCED, "restarted_at": seen}
        (end,) = task.data("end")
        assert (end["tokens_out"], end["restarted_at"], end["tokens_in"]) == (seen + 40, seen, 2)
        run, _ = await node.run_of(task.task_id)
        assert (run.state, run.tokens_out, run.restarted_at) == (TaskState.DONE, seen + 40, seen)


async def test_a_stream_is_cut_again_and_again(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=200)]) as node:
        goes_on, anew = await cut(node, 5, seed=3), await cut(node, 5, seed=3, failover="restart")
        for after in (8, 11):
            for task in (goes_on, anew):
                await node.fault(kind="reset", after=after, times=1)
                run, _ = await node.run_of(task.task_id)
                seen = len(task.tokens)
                await node.until_tokens(await node.place(run.request, attempt=run.attempt + 1), seen + after)
                await until_lost(node)
        goes_on, anew = await again(node, goes_on), await again(node, anew)
        said = ""
        for count in (5, 8, 11, 16):
            said += text_of(PROMPT + said, 3, count)
        assert goes_on.text == said
        assert anew.text == "".join(text_of(PROMPT, 3, count) for count in (5, 8, 11, 40))
        for task, tokens in ((goes_on, 40), (anew, 64)):
            assert [token["i"] for token in task.tokens] == list(range(tokens))
        assert [each["restarted_at"] for each in anew.data("metrics") if "restarted_at" in each] == [5, 13, 24]
        assert anew.data("end")[0]["restarted_at"] == 24
        assert [each["resume_from"] for each in goes_on.data("metrics") if "resume_from" in each] == [5, 13, 24]


async def test_a_stream_that_must_not_go_on_ends_with_its_reason(nats_server: NatsServer, tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"failover": "fail"}, "failover_fail"),
        ({"failover": "fail", "determinism": "strict"}, "failover_fail"),
        ({"output_mode": "json"}, "failover_refused"),
    ]
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=200)]) as node:
        for changes, detail in cases:
            task = await again(node, await cut(node, 5, **changes))
            (error,) = task.data("error")
            assert (error["code"], error["detail"]) == ("WORKER_RESET", detail)
            assert len(task.tokens) == 5
            run, _ = await node.run_of(task.task_id)
            assert (run.state, run.tokens_out) == (TaskState.FAILED, 5)
            assert await node.busy_slots() == 0


async def test_what_was_sent_whole_asks_the_engine_for_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=200)]) as node:
        for failover in ("resume", "restart"):
            task = await cut(node, 20, max_tokens=20, seed=3, failover=failover)
            await node.fault(kind="error")
            task = await again(node, task)
            assert task.text == text_of(PROMPT, 3, 20)
            (end,) = task.data("end")
            assert (end["tokens_out"], end["tokens_in"], end["finish_reason"]) == (20, 2, "length")


async def test_an_engine_that_ends_by_itself_ends_a_cut_stream(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)]) as node:
        task = await cut(node, prompt="Say ten [tokens=30]", max_tokens=100)
        task = await again(node, task)
        (end,) = task.data("end")
        assert (end["tokens_out"], end["finish_reason"], len(task.tokens)) == (30, "stop", 30)


async def lose_the_log(node: NodeHarness, server: NatsServer) -> None:
    """nats-server forgets its memory; this node keeps what it has kept."""
    server.kill()
    await asyncio.to_thread(server.start)
    async with asyncio.timeout(DEADLINE_S):
        while not (node.bus.connected and node.node_bus.connected and await streams_stand(node)):
            await asyncio.sleep(0.01)


async def streams_stand(node: NodeHarness) -> bool:
    """Again, those in memory, too."""
    try:
        for stream in (streams.PLC, streams.TOK):
            await node.bus.stream_state(stream)
    except BusError:
        return False
    return True


async def test_nobody_goes_on_from_what_the_server_has_forgotten(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=200)]) as node:
        tasks = [await cut(node, 5, failover=failover) for failover in ("resume", "restart")]
        for task in tasks:
            node.context.retention.forget(task.task_id)
        await lose_the_log(node, nats_server)
        for task in tasks:
            task = await again(node, task)
            (error,) = task.data("error")
            assert (error["code"], error["detail"]) == ("WORKER_RESET", "tokens_lost")
            assert len(task.tokens) == 5


async def test_a_cancelled_stream_says_that_it_began_anew(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)]) as node:
        task = await cut(node, failover="restart", max_tokens=1000)
        task = await node.place(task.run.request, attempt=2)
        await node.until_tokens(task, 8)
        await node.cancel(task.task_id)
        await node.until_ended(task)
        (end,) = task.data("end")
        assert (end["finish_reason"], end["restarted_at"], end["tokens_out"]) == ("cancelled", 5, len(task.tokens))


async def test_a_node_that_has_its_own_frames_needs_no_log(nats_server: NatsServer, tmp_path: Path) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)]) as node:
        task = await cut(node, seed=3)
        seen = len(task.tokens)
        await lose_the_log(node, nats_server)
        task = await again(node, task)
        first = text_of(PROMPT, 3, seen)
        stored = await stored_tokens(node, task)
        assert stored == words(first) + words(text_of(PROMPT + first, 3, 40 - seen)), "a late reader finds it whole"


async def stored_tokens(node: NodeHarness, task: Placed) -> list[str]:
    """As a reader takes them from the log."""
    found: dict[int, str] = {}
    for message in await node.bus.replay(streams.TOK, subjects.tokens_of_task(task.task_id)):
        for event in split_events(message.data):
            if event.event == "token":
                token = msgspec.json.decode(event.data, type=Token)
                assert found.setdefault(token.i, token.t) == token.t
    return [found[index] for index in range(len(found))]


async def test_a_strict_stream_whose_log_is_lost_goes_on_where_it_says_the_same(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(rate=50)]) as node:
        task = await cut(node, determinism="strict")
        node.context.retention.forget(task.task_id)
        await lose_the_log(node, nats_server)
        task = await again(node, task)
        seed = seed_of(task.task_id, None)
        assert await stored_tokens(node, task) == words(text_of(PROMPT, seed, 40))
