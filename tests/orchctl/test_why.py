"""`orchctl why`: the story of a task from the streams of a real bus."""

import json
import os
import sys
from collections.abc import Mapping

import anyio
import msgspec
import pytest

from llorch_ctl.exits import Exit
from llorch_shared import streams, subjects
from llorch_shared.bus.nats import connect
from llorch_shared.bus.port import Bus, Message
from llorch_shared.settings import NatsSettings
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.run import Located, RunRecord
from llorch_shared.wire.task import Priority, TaskState
from support.client import task_request
from support.nats_server import NatsServer
from support.orchctl import Orchctl, on_bus

pytestmark = pytest.mark.nats


def record(task: str, event: AuditEvent, at_ms: int, **detail: object) -> AuditRecord:
    plain = {"event": event, "task_id": task, "at_ms": at_ms, "actor": "scheduler/a", "pool_id": "p1", "detail": detail}
    return msgspec.convert(plain, AuditRecord)


def keep(server: NatsServer, *records: AuditRecord, run: RunRecord | None = None) -> None:
    async def store(bus: Bus) -> None:
        for one in records:
            await bus.store(subjects.audit(one.event, one.task_id), msgspec.json.encode(one))
        if run is not None:
            await bus.store(subjects.run(run.task_id), msgspec.json.encode(run))

    on_bus(server, store)


def test_a_task_that_ran_is_explained_from_audit_and_run_record(orchctl: Orchctl, nats_server: NatsServer) -> None:
    request = task_request(prompt="a secret of mine")
    task, other = request.task_id, task_request().task_id
    run = RunRecord(
        task_id=task,
        state=TaskState.RUNNING,
        pool_id="p1",
        lane="bus",
        correlation_id="c",
        tenant="acme",
        priority=Priority.BATCH,
        admitted_ms=1_000,
        started_ms=1_900,
        request=request,
    )
    keep(
        nats_server,
        record(task, AuditEvent.ADMITTED, 1_000, queue_position=2, predicted_start_ms=1_000),
        record(other, AuditEvent.ADMITTED, 1_000, queue_position=9),
        record(task, AuditEvent.PLACED, 1_800, candidates_considered=1, decision_reason="only_candidate"),
        record(task, AuditEvent.RUNNING, 2_000),
        run=run,
    )
    code, out, _ = orchctl("why", task)
    assert code == Exit.OK
    assert f"task {task}: running" in out
    assert "told position 2, start in 1000 ms" in out
    assert "1 replica was looked at, none removed; decided by only_candidate" in out
    assert "It was told to start after 1000 ms and did after 1000 (0 % off)." in out
    assert "position 9" not in out
    code, out, _ = orchctl("why", task.upper(), "--json")
    told = json.loads(out)
    assert [line["event"] for line in told["story"]["lines"]] == ["admitted", "placed", "running"]
    assert told["story"]["forecast"]["real_start_ms"] == 1_000
    assert told["run"]["state"] == "running"
    assert "secret" not in out


async def test_a_task_that_waits_is_told_with_its_place_in_the_line_now(nats_server: NatsServer) -> None:
    task = task_request().task_id
    bus = await connect(NatsSettings(url=nats_server.url), name="test")
    await bus.ensure(streams.base())
    admitted = record(task, AuditEvent.ADMITTED, 1_000, queue_position=2, predicted_start_ms=1_000)
    await bus.store(subjects.audit(admitted.event, task), msgspec.json.encode(admitted))

    async def locate(message: Message) -> tuple[bytes, Mapping[str, str]]:
        return msgspec.json.encode(Located(found=True, queue_position=4, predicted_start_ms=2_100)), {}

    await bus.serve(subjects.locate(subjects.shard_of("p1")), locate)
    command = [sys.executable, "-m", "llorch_ctl", "why", task]
    environment = {**os.environ, "NATS_URL": nats_server.url}
    done = await anyio.run_process(command, env=environment)
    assert "It waits at position 4, to start in about 2100 ms." in done.stdout.decode()
    await bus.close()


def test_an_unknown_task_is_an_error_that_says_how_long_things_are_kept(
    orchctl: Orchctl, nats_server: NatsServer
) -> None:
    keep(nats_server)
    code, _, err = orchctl("why", task_request().task_id)
    assert code == Exit.FAILED
    assert "nothing is known of task" in err
    assert "30 days" in err


def test_what_is_no_id_is_wrong_usage(orchctl: Orchctl) -> None:
    assert orchctl("why", "17")[0] == Exit.USAGE
