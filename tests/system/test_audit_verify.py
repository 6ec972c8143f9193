"""`orchctl audit verify` on a real system: clean after kills, and what does not belong there is found."""

import asyncio
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llorch_ctl.exits import Exit
from llorch_shared import streams, subjects
from llorch_shared.audit_chain import Chain, alone, entry
from llorch_shared.states import FINAL
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent, AuditRecord
from llorch_shared.wire.run import decode_run
from llorch_shared.wire.task import TaskState
from support.client import task_request
from support.system import System, mock_pool

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

TASKS = 30
CANCELLED = 6


async def verify(system: System, *flags: str) -> tuple[int, dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "llorch_ctl", "audit", "verify", "--json", *flags),
        env={**os.environ, "NATS_URL": system.nats.url},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(out)


async def all_ended(system: System) -> bool:
    runs = [decode_run(m.data, m.headers) for m in await system.bus.replay(streams.RUN, subjects.ALL_RUNS)]
    return sum(run.state in FINAL for run in runs) == TASKS


async def all_audited(system: System) -> bool:
    records = [AUDIT_DECODER.decode(m.data) for m in await system.bus.replay(streams.AUD, subjects.ALL_AUDITS)]
    return len({each.task_id for each in records if each.event in {AuditEvent(str(state)) for state in FINAL}}) == TASKS


async def written_by(system: System, actor: str) -> bool:
    records = await system.bus.replay(streams.AUD, subjects.ALL_AUDITS)
    return any(b'"writer":"%b/' % actor.encode() in m.data for m in records)


async def test_a_system_with_killed_processes_is_clean_and_what_is_forged_is_found(tmp_path: Path) -> None:
    async with System(tmp_path, pools=[mock_pool(replicas=2, slots=2, rate=100)]) as system:
        requests = [task_request(max_tokens=40, prompt=f"task {number}") for number in range(TASKS)]
        for request in requests[:20]:
            await system.client().submit(request)
        for actor in ("scheduler", "poold"):
            await system.until(partial(written_by, system, actor), f"a record of {actor}", 20)
        system.kill9("scheduler-1")
        cancels = (system.client().cancel(request.task_id) for request in requests[14 : 14 + CANCELLED])
        await asyncio.gather(system.restart("scheduler-1"), *cancels)
        for request in requests[20:]:
            await system.client().submit(request)
        system.kill9("poold-1")
        code, found = await verify(system)
        assert (code, found["first"]) == (Exit.OK, []), "while tasks are under way, too"
        assert found["under_way"]
        await system.restart("poold-1")
        await system.until(lambda: all_ended(system), "all ends", 60)
        await system.until(lambda: all_audited(system), "all ends on record", 20)
        code, found = await verify(system)
        assert (code, found["first"]) == (Exit.OK, [])
        assert (found["tasks"], found["under_way"], found["compared"], found["unchained"]) == (TASKS, 0, TASKS, 0)
        views = [await system.client().get(request.task_id) for request in requests]
        assert found["ends"].get("cancelled", 0) == sum(view.state is TaskState.CANCELLED for view in views)
        (usage,) = found["usage"]
        assert usage["tokens_out"] == sum(view.tokens_out for view in views)
        for name in ("gateway-1", "scheduler-1", "poold-1"):
            await asyncio.to_thread(system.processes[name].stop)
        code, stopped = await verify(system)
        assert (code, stopped["first"]) == (Exit.OK, [])
        assert stopped["writers"] - stopped["writers_closed"] == 2, "the lives that were killed have no closing record"
        await what_is_forged_is_found(system, requests[0].task_id)


async def what_is_forged_is_found(system: System, task_id: str) -> None:
    newest = (await system.bus.replay(streams.AUD, "llorch.aud.done.*"))[-1]
    opened = entry(forged(task_id, AuditEvent.BREAKER))
    chain = Chain("scheduler/forged")
    await system.bus.store_batch(chain.link([opened]))
    chain.stored()
    chain.hash = "0" * 32
    await system.bus.store_batch(chain.link([opened]))
    await system.bus.store(newest.subject, newest.data)
    code, found = await verify(system)
    assert (code, [each["fault"] for each in found["first"]]) == (
        Exit.FAILED,
        ["broken_link", "doubled", "ended_twice"],
    )
    await system.bus.store_batch(alone(forged(task_id, AuditEvent.CANCELLED)))
    for flags in ((), ("--since-min", "1")):
        code, found = await verify(system, *flags)
        assert (code, found["first"][-1]["task_id"]) == (Exit.FAILED, task_id)


def forged(task_id: str, event: AuditEvent) -> AuditRecord:
    return AuditRecord(event=event, task_id=task_id, at_ms=time.time_ns() // 1_000_000, actor="nobody")
