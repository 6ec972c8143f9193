"""Sampled streams whose engine or node is killed in the middle, over the whole system: they go on as they asked."""

import asyncio
from pathlib import Path

import pytest

from llorch_poold.mock_text import text_of
from llorch_shared.errors import ErrorCode
from llorch_shared.wire.task import Determinism, Failover, OutputMode, TaskRequest, TaskState
from support.client import Transcript, follow, task_request
from support.system import System, mock_pool

TOKENS = 60
CUT = 10
SEED = 5

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


def sampled(number: int, failover: Failover, mode: OutputMode = OutputMode.TEXT) -> TaskRequest:
    return task_request(
        prompt=f"task {number}",
        max_tokens=TOKENS,
        seed=SEED,
        determinism=Determinism.BEST_EFFORT,
        failover=failover,
        output_mode=mode,
    )


def gone_on(prompt: str, cuts: list[int]) -> list[str]:
    """The words of a stream that went on at these indices; more than one where the machine is so busy that a node is
    taken for lost."""
    said: list[str] = []
    for until in (*cuts, TOKENS):
        rest = text_of(prompt + "".join(said), SEED, TOKENS - len(said)).split()
        said += [f" {word}" for word in rest[: until - len(said)]]
    return said


@pytest.mark.parametrize("victim", ["engine", "poold-1"])
async def test_sampled_streams_go_on_begin_anew_or_end_as_they_asked(victim: str, tmp_path: Path) -> None:
    nodes = 2 if victim == "poold-1" else 1
    pool = mock_pool(replicas=1, slots=4, rate=200)
    async with System(tmp_path, pools=[pool], gateways=2, nodes=nodes) as system:
        await system.replicas_ready("mock", nodes)
        await system.fault(pool.model, {"kind": "hang", "after": CUT})
        requests = [
            sampled(0, Failover.RESUME),
            sampled(1, Failover.RESTART),
            sampled(2, Failover.FAIL),
            sampled(3, Failover.RESUME, OutputMode.JSON),
        ]
        for request in requests:
            await system.client(1).submit(request)
        begun = [Transcript(request.task_id) for request in requests]
        await asyncio.gather(*(system.client(1).read(one.task_id, into=one, tokens_max=CUT) for one in begun))
        hit = {one.task_id for one in begun if one.started[0].node_id == "node-1"}
        assert hit, "their engine says nothing more"
        if nodes == 1:
            system.kill9_engine()
        else:
            system.kill9("poold-1")
        first, anew, failed, bound = await asyncio.gather(
            *(follow(system.clients, one.task_id, into=one, deadline_s=60) for one in begun)
        )
        for one in begun:
            one.check()
            if one.task_id not in hit:
                assert one.text == text_of(f"task {begun.index(one)}", SEED, TOKENS)
        if first.task_id in hit:
            cuts = [each.resume_from for each in first.metrics if each.resume_from is not None]
            assert cuts[0] == CUT
            assert [token.t for token in first.tokens] == gone_on("task 0", cuts)
        if anew.task_id in hit:
            view = await system.client(2).get(anew.task_id)
            cuts = [each.restarted_at for each in anew.metrics if each.restarted_at is not None]
            assert cuts[0] == CUT
            assert (view.state, view.restarted_at, view.tokens_out) == (TaskState.DONE, cuts[-1], cuts[-1] + TOKENS)
            late = await system.client(2).read(anew.task_id)
            late.check()
            assert late.text == anew.text == text_of("task 1", SEED, TOKENS)
        for one, detail in ((failed, "failover_fail"), (bound, "failover_refused")):
            if one.task_id in hit:
                assert one.error is not None
                assert (one.error.code, one.error.detail) == (ErrorCode.WORKER_RESET, detail)
                assert len(one.tokens) == CUT
