"""Sessions with budgets on a real system: what is spent is what the token log holds, whoever dies."""

import asyncio
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from llorch_shared import streams, subjects
from llorch_shared.wire.frames import Kind, peek
from llorch_shared.wire.session import SESSION_DECODER, SessionPolicy, SessionRecord, SessionsSpec
from support.client import Refusal, Transcript, follow, task_request
from support.system import System, mock_pool
from system.test_audit_verify import verify

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]

TASKS = 10
MAX_TOKENS = 60
HOUR_MS = 3_600_000


async def put(system: System, session_id: str, gateway: int = 1, **wanted: Any) -> httpx.Response:
    return await system.client(gateway).http.put(f"/v1/sessions/{session_id}", json=wanted)


async def is_put(system: System, session_id: str, gateway: int, **wanted: Any) -> bool:
    return (await put(system, session_id, gateway, **wanted)).status_code == 200


async def told(system: System, session_id: str, gateway: int = 2) -> dict[str, Any]:
    reply = await system.client(gateway).http.get(f"/v1/sessions/{session_id}")
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


async def account(system: System, session_id: str) -> SessionRecord:
    message = await system.bus.last(streams.SES, subjects.session("default", session_id))
    assert message is not None
    return SESSION_DECODER.decode(message.data)


async def has_settled(system: System, session_id: str, count: int) -> bool:
    record = await account(system, session_id)
    return len(record.settled) == count and not record.open


async def logged_tokens(system: System, task_id: str) -> int:
    """Tokens of a stream, by the log."""
    messages = await system.bus.replay(streams.TOK, subjects.tokens_of_task(task_id))
    headers = [peek(message.data) for message in messages]
    return max((header.last for header in headers if header.kind is Kind.TOKENS), default=-1) + 1


async def generates(system: System, task_ids: list[str], found: list[str]) -> bool:
    """Whether one of these tasks is in the middle of its stream; adds its node to `found`."""
    for task_id in task_ids:
        view = await system.client(2).get(task_id)
        if view.node_id and not view.ended_ms and await logged_tokens(system, task_id):
            found.append(view.node_id)
            return True
    return False


async def test_what_is_spent_is_what_the_token_log_holds_whoever_dies(tmp_path: Path) -> None:
    pool = mock_pool(replicas=1, slots=5, rate=20)
    async with System(tmp_path, pools=[pool], gateways=2, nodes=2) as system:
        session_id = str(uuid.uuid4())
        budget = TASKS * MAX_TOKENS + 5
        policy = SessionsSpec(default=SessionPolicy(turns_max=TASKS + 5))
        await system.bus.store(subjects.spec(subjects.SESSION_POLICY_KEY), msgspec.json.encode(policy))
        for gateway in (1, 2):  # the second learns it by itself, too, but when is not told to anybody
            permitted = partial(is_put, system, session_id, gateway, tokens_budget=budget, turns_max=TASKS + 5)
            await system.until(permitted, "the policy in effect", 20)
            assert (await told(system, session_id, gateway))["tokens_budget_remaining"] == budget
        requests = [
            task_request(session_id=session_id, max_tokens=MAX_TOKENS, prompt=f"task {number}", deadline_ms=HOUR_MS)
            for number in range(TASKS)
        ]
        left = await asyncio.gather(
            *(system.client(1 + number % 2).submit(request) for number, request in enumerate(requests))
        )
        assert min(each.tokens_budget_remaining for each in left) == 5, "both gateways reserve from one account"
        with pytest.raises(Refusal) as refused:
            await system.client(2).submit(session_id=session_id, max_tokens=6)
        assert (refused.value.status, refused.value.body.policy_label) == (429, "session-budget")
        ids = [request.task_id for request in requests]
        busy: list[str] = []
        await system.until(partial(generates, system, ids, busy), "a token", 30)
        node = busy[0].replace("node", "poold")
        system.kill9("gateway-1")
        system.kill9(node)
        transcripts = [Transcript(task_id) for task_id in ids]
        cancelled = system.client(2).cancel(ids[0])
        await asyncio.gather(
            cancelled,
            *(follow([system.client(2)], each.task_id, into=each, deadline_s=90) for each in transcripts),
        )
        await system.until(partial(has_settled, system, session_id, TASKS), "every task settled", 30)
        views = [await system.client(2).get(task_id) for task_id in ids]
        record, info = await account(system, session_id), await told(system, session_id)
        assert sorted(record.settled) == sorted(ids)
        assert record.spent.tokens == sum(view.tokens_out for view in views)
        assert record.spent.tokens == sum([await logged_tokens(system, task_id) for task_id in ids])
        read = sum(len(transcript.tokens) for transcript in transcripts[1:])
        assert record.spent.tokens == read + views[0].tokens_out
        assert record.spent.time_ms == sum(view.decode_ms for view in views)
        assert record.spent.nano == record.spent.tokens * 2_000
        assert info["tokens_budget_remaining"] == budget - record.spent.tokens
        assert (info["turns"], info["tasks_open"], info["kv_warmth"]) == (TASKS, 0, True)
        await asyncio.gather(system.restart("gateway-1"), system.restart(node))
        await a_stream_stops_when_its_time_is_used_up(system)
        code, found = await verify(system)
        assert (code, found["first"]) == (0, [])
        sessions = {each["session"]: each for each in found["sessions"]}
        assert sessions[session_id]["tokens"] == record.spent.tokens
        assert sessions[session_id]["tasks"] == TASKS


async def a_stream_stops_when_its_time_is_used_up(system: System) -> None:
    session_id = str(uuid.uuid4())
    assert (await put(system, session_id, time_budget_ms=2_000)).status_code == 200
    body = task_request(session_id=session_id, max_tokens=1_000, deadline_ms=HOUR_MS)
    reply = await system.client().http.post(
        "/v1/tasks", content=msgspec.json.encode(body), headers={"content-type": "application/json"}
    )
    assert reply.status_code == 202, reply.text
    assert reply.headers["x-budget-time-remaining-ms"] == "0"
    transcript = await system.client().read(body.task_id)
    assert transcript.end is not None
    assert transcript.end.finish_reason == "budget"
    assert 0 < transcript.end.tokens_out < 1_000
    assert 0 < transcript.end.decode_ms <= 2_000
    assert transcript.metrics[0].time_budget_remaining_ms == 0
    assert transcript.metrics[-1].time_budget_remaining_ms == 2_000 - transcript.end.decode_ms
    await system.until(partial(has_settled, system, session_id, 1), "its time is paid for", 20)
    assert (await told(system, session_id))["time_spent_ms"] == transcript.end.decode_ms
    assert (await system.client().http.delete(f"/v1/sessions/{session_id}")).status_code == 204
    assert (await system.client(2).http.get(f"/v1/sessions/{session_id}")).status_code == 404
    with pytest.raises(Refusal) as refused:
        await system.client(2).submit(session_id=session_id)
    assert (refused.value.status, refused.value.body.policy_label) == (400, "session-ended")
