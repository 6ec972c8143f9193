"""`orchctl audit verify` against a bus: empty, clean, with violations, and away."""

import json
from collections.abc import Sequence

import msgspec
import pytest

from llorch_ctl.exits import Exit
from llorch_shared import streams, subjects
from llorch_shared.audit import Audit
from llorch_shared.audit_chain import alone
from llorch_shared.bus.port import Bus
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import Priority, TaskState
from support.nats_server import NatsServer, free_port
from support.orchctl import Orchctl, on_bus

pytestmark = pytest.mark.nats

OLD_MS = 1_700_000_000_000
DETAIL: dict[str, str | int | float | bool | list[str]] = {"tokens_in": 3, "tokens_out": 10}


def task(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def said(event: AuditEvent, number: int, run_seq: int = 0) -> AuditRecord:
    return AuditRecord(
        event=event,
        task_id=task(number),
        at_ms=OLD_MS,
        actor="poold/n",
        tenant="acme",
        pool_id="p",
        attempt=1 if run_seq else 0,
        run_seq=run_seq,
        detail=DETAIL if event is AuditEvent.DONE else {},
    )


def done(number: int) -> RunRecord:
    return RunRecord(
        task_id=task(number),
        state=TaskState.DONE,
        pool_id="p",
        lane="bus",
        correlation_id="c",
        tenant="acme",
        priority=Priority.BATCH,
        admitted_ms=OLD_MS,
        ended_ms=OLD_MS,
        tokens_in=3,
        tokens_out=10,
    )


async def work(bus: Bus, count: int, *, untold: Sequence[int] = ()) -> None:
    """As many tasks done and on record, but for the ends of some."""
    audit = Audit(bus, actor="poold/n", gather_s=0)
    audit.start()
    for number in range(count):
        stored = await bus.store(subjects.run(task(number)), msgspec.json.encode(done(number)))
        await audit.record(said(AuditEvent.ADMITTED, number))
        if number not in untold:
            await audit.record(said(AuditEvent.DONE, number, stored.seq))
    await audit.close()


def test_an_empty_stream_is_said_to_be_empty(orchctl: Orchctl, nats_server: NatsServer) -> None:
    on_bus(nats_server, lambda bus: bus.stream_state(streams.AUD))
    assert orchctl("audit", "verify") == (Exit.OK, "no audit records\n", "")
    assert json.loads(orchctl("audit", "verify", "--json")[1])["clean"]


def test_a_clean_system_is_told_in_tables(orchctl: Orchctl, nats_server: NatsServer) -> None:
    on_bus(nats_server, lambda bus: work(bus, 1500))
    code, out, err = orchctl("audit", "verify", "--progress")
    assert code == Exit.OK, out
    assert out.endswith("clean\n")
    assert "1500 done" in out
    assert "audit records: 3001 of 3001" in err
    assert "run records: 1500 of 1500" in err
    found = json.loads(orchctl("audit", "verify", "--json", "--since-min", "5")[1])
    assert (found["clean"], found["records"], found["compared"]) == (True, 3001, 1500)
    assert found["usage"] == [{"tenant": "acme", "pool": "p", "tasks": 1500, "tokens_in": 4500, "tokens_out": 15000}]
    assert (found["writers"], found["writers_closed"]) == (1, 1)


def test_violations_come_with_their_place_and_what_to_do(orchctl: Orchctl, nats_server: NatsServer) -> None:
    async def tamper(bus: Bus) -> None:
        await work(bus, 5, untold=[3])
        await bus.store("llorch.aud.done.t", b'{"event":"\x1b[31m')
        await bus.store_batch(alone(msgspec.structs.replace(said(AuditEvent.RUNNING, 1, 99), actor="nobody")))
        kept = await bus.replay(streams.AUD, subjects.ALL_AUDITS)
        await bus.store(kept[0].subject, kept[0].data.replace(b"acme", b"zeta"))

    on_bus(nats_server, tamper)
    code, out, _ = orchctl("audit", "verify")
    assert code == Exit.FAILED
    assert "5 violations" in out
    assert "to do: " in out
    assert "\x1b[31m" not in out
    found = json.loads(orchctl("audit", "verify", "--json")[1])
    told = {(each["fault"], each.get("seq"), each.get("task_id", "")) for each in found["first"]}
    assert told == {
        ("unreadable", 11, ""),
        ("altered", 14, ""),
        ("end_missing", 7, task(3)),
        ("illegal_move", 12, task(1)),
        ("differs", 12, task(1)),
    }


def test_an_accepted_task_that_nobody_knows_is_lost_or_cannot_be_told(
    orchctl: Orchctl, nats_server: NatsServer
) -> None:
    on_bus(nats_server, lambda bus: bus.store_batch(alone(said(AuditEvent.ADMITTED, 1))))
    code, out, _ = orchctl("audit", "verify")
    assert code == Exit.OK
    assert "no scheduler answers" in out


def test_a_run_record_that_is_gone_is_found(orchctl: Orchctl, nats_server: NatsServer) -> None:
    async def remove(bus: Bus) -> None:
        await work(bus, 3)
        await bus.remove(streams.RUN, 2)

    on_bus(nats_server, remove)
    code, out, _ = orchctl("audit", "verify", "--json")
    assert code == Exit.FAILED
    assert [(each["fault"], each["task_id"]) for each in json.loads(out)["first"]] == [("run_gone", task(1))]


def test_run_records_that_are_kept_no_longer_are_no_violation(orchctl: Orchctl, nats_server: NatsServer) -> None:
    async def age(bus: Bus) -> None:
        await work(bus, 3)
        for seq in (1, 2):
            await bus.remove(streams.RUN, seq)

    on_bus(nats_server, age)
    code, out, _ = orchctl("audit", "verify", "--json")
    assert (code, json.loads(out)["compared"]) == (Exit.OK, 1)


def test_without_a_bus_nobody_answers(orchctl: Orchctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", f"nats://127.0.0.1:{free_port()}")
    assert orchctl("audit", "verify")[0] == Exit.UNREACHABLE
