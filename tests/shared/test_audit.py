"""Audit records reach their stream in order, once the bus lets them."""

import asyncio

import msgspec
import pytest

from llorch_shared import streams
from llorch_shared.audit import Audit
from llorch_shared.bus.memory import MemoryBus, MemoryServer
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent, AuditRecord

TASK = "00000000-0000-4000-8000-000000000001"


def record(number: int, **more: str) -> AuditRecord:
    return AuditRecord(event=AuditEvent.PLACED, task_id=TASK, at_ms=number, actor="test", **more)  # type: ignore[arg-type]


@pytest.fixture
async def server() -> MemoryServer:
    return MemoryServer()


@pytest.fixture
async def bus(server: MemoryServer) -> MemoryBus:
    bus = MemoryBus(server)
    await bus.ensure(streams.base())
    return bus


async def kept(bus: MemoryBus) -> list[AuditRecord]:
    return [AUDIT_DECODER.decode(m.data) for m in await bus.replay(streams.AUD, "llorch.aud.>")]


async def stored(bus: MemoryBus) -> list[int]:
    return [each.at_ms for each in await kept(bus) if each.event is not AuditEvent.WRITER_CLOSED]


async def test_records_are_stored_in_order(bus: MemoryBus) -> None:
    audit = Audit(bus, actor="test", gather_s=0)
    audit.start()
    for number in range(1234):
        await audit.record(record(number))
    await audit.close()
    assert await stored(bus) == list(range(1234))


async def test_what_is_gathered_is_stored_at_once_at_the_end(bus: MemoryBus) -> None:
    audit = Audit(bus, actor="test", gather_s=3600)
    audit.start()
    for number in range(3):
        await audit.record(record(number))
    await asyncio.sleep(0)
    await audit.close()
    assert await stored(bus) == [0, 1, 2]


async def test_records_wait_for_a_bus_that_is_away(server: MemoryServer, bus: MemoryBus) -> None:
    audit = Audit(bus, actor="test", gather_s=0)
    audit.start()
    bus.break_connection()
    for number in range(10):
        await audit.record(record(number))
    bus.restore_connection()
    await audit.close()
    assert await stored(bus) == list(range(10))


async def test_a_full_queue_holds_its_writer_back(bus: MemoryBus) -> None:
    audit = Audit(bus, actor="test", queue_max=2, gather_s=0)
    await audit.record(record(0))
    await audit.record(record(1))
    waiting = asyncio.create_task(audit.record(record(2)))
    await asyncio.sleep(0)
    assert not waiting.done()
    audit.start()
    await waiting
    await audit.close()
    assert await stored(bus) == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 3])
async def test_records_whose_ack_got_lost_are_stored_once(server: MemoryServer, bus: MemoryBus, count: int) -> None:
    server.answers_lost = 1
    audit = Audit(bus, actor="test", gather_s=0)
    for number in range(count):
        await audit.record(record(number))
    audit.start()
    await audit.close()
    assert await stored(bus) == list(range(count))


async def test_one_record_over_the_limit_does_not_hold_up_the_others(
    bus: MemoryBus, caplog: pytest.LogCaptureFixture
) -> None:
    audit = Audit(bus, actor="test", gather_s=0)
    for number in range(3):
        await audit.record(record(number, identity="x" * (2 * 1024 * 1024) if number == 1 else ""))
    audit.start()
    await audit.close()
    assert await stored(bus) == [0, 2]
    assert "over the server's limit" in caplog.text


async def test_closing_twice_or_before_the_start_is_fine(bus: MemoryBus) -> None:
    audit = Audit(bus, actor="test")
    await audit.close()
    audit.start()
    await audit.close()
    await audit.close()


@pytest.mark.parametrize("lost", [0, 1])
async def test_that_a_task_was_admitted_is_on_the_record_once(server: MemoryServer, bus: MemoryBus, lost: int) -> None:
    writers = [Audit(bus, actor="test", gather_s=0) for _ in range(3)]
    server.answers_lost = lost
    for number, audit in enumerate(writers):
        audit.start()
        for task in range(5):
            admitted = AuditRecord(event=AuditEvent.ADMITTED, task_id=f"t{task}", at_ms=1, actor=f"gateway/{number}")
            await audit.record(admitted)
            await audit.record(admitted)
            await audit.record(msgspec.structs.replace(record(10 * number + task), task_id=f"w{number}"))
    for audit in writers:
        await audit.close()
    again = Audit(bus, actor="test", gather_s=0)
    again.start()
    await again.record(AuditRecord(event=AuditEvent.ADMITTED, task_id="t0", at_ms=2, actor="scheduler/1"))
    await again.close()
    records = await kept(bus)
    assert [each.task_id for each in records if each.event is AuditEvent.ADMITTED] == [f"t{task}" for task in range(5)]
    for number in range(3):
        others = [each.at_ms for each in records if each.event is AuditEvent.PLACED and each.at_ms // 10 == number]
        assert others == [10 * number + task for task in range(5)], "the order of the others stays"
