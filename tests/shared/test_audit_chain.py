"""A writer's records are one chain, whatever happens to the answers of the bus."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from llorch_ctl.core.audit_chains import Chains
from llorch_ctl.core.findings import Findings
from llorch_shared import audit_writer, streams, subjects
from llorch_shared.audit import Audit
from llorch_shared.audit_chain import Chain, alone, entry, is_sound
from llorch_shared.bus.memory import MemoryBus, MemoryServer
from llorch_shared.bus.port import Duplicate, Message, Stored, Unanswered
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent, AuditRecord


def record(task: str, event: AuditEvent = AuditEvent.PLACED, at_ms: int = 1) -> AuditRecord:
    return AuditRecord(event=event, task_id=task, at_ms=at_ms, actor="scheduler/1", detail={"reason": 'ü "quoted"'})


def test_a_record_tells_its_writer_its_number_and_the_record_before() -> None:
    chain = Chain("scheduler/1")
    messages = chain.link([entry(record("a")), entry(record("b"))])
    chain.stored()
    first, second = (AUDIT_DECODER.decode(data) for _, data in messages)
    assert first.writer == second.writer == f"scheduler/1/{chain.life}"
    assert (first.number, second.number, first.prev, second.prev) == (1, 2, "", first.hash)
    assert (chain.number, chain.hash) == (2, second.hash)
    assert msgspec.structs.replace(first, writer="", number=0, prev="", hash="") == record("a")
    assert all(is_sound(subject, data) for subject, data in messages)
    assert not is_sound(messages[0][0], messages[1][1])


def test_what_was_linked_and_not_stored_has_no_number() -> None:
    chain = Chain("scheduler/1")
    chain.link([entry(record("a")), entry(record("b"))])
    ((_, data),) = chain.link([entry(record("c"))])
    assert AUDIT_DECODER.decode(data).number == 1


def test_two_lives_of_one_actor_are_two_writers() -> None:
    assert Chain("orchctl").writer != Chain("orchctl").writer


def test_who_acts_once_leaves_a_whole_life() -> None:
    first, closing = (AUDIT_DECODER.decode(data) for _, data in alone(record("a")))
    assert (closing.event, closing.detail, closing.prev) == (AuditEvent.WRITER_CLOSED, {"records": 1}, first.hash)


class LosingBus(MemoryBus):
    """Answers are lost, before or after the store, and message ids forgotten, as the dice say."""

    dice: random.Random

    async def store(self, subject: str, data: bytes, **how: Any) -> Stored:
        self._before()
        stored = await super().store(subject, data, **how)
        self._after()
        return stored

    async def store_batch(self, messages: Sequence[tuple[str, bytes]], **how: Any) -> None:
        self._before()
        await super().store_batch(messages, **how)
        self._after()

    async def last(self, stream: str, subject: str) -> Message | None:
        if self.dice.random() < 0.1:
            raise Unanswered("lost")
        return await super().last(stream, subject)

    def _before(self) -> None:
        if self.dice.random() < 0.2:
            raise Unanswered("lost before it was stored")

    def _after(self) -> None:
        if self.dice.random() < 0.3:
            raise Unanswered("stored, the answer lost")


@pytest.mark.parametrize("seed", range(30))
async def test_lost_answers_leave_whole_chains(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_writer, "RETRY_FIRST_S", 0.0)
    server, dice = MemoryServer(), random.Random(seed)
    buses = [LosingBus(server) for _ in range(3)]
    for bus in buses:
        bus.dice = dice
    await buses[0].ensure(streams.base())
    told: list[set[str]] = []

    async def write(number: int) -> None:
        audit = Audit(buses[number], actor=f"gateway/{number}", gather_s=0)
        audit.start()
        told.append({f"{number}-{each}" for each in range(40)})
        for each in range(40):
            await audit.record(record(f"{number}-{each}"))
            if dice.random() < 0.5:
                await audit.record(record(f"t{each}", AuditEvent.ADMITTED))
            if dice.random() < 0.3:
                await audit.record(record("pool", AuditEvent.BREAKER))
            await asyncio.sleep(0)
        await audit.close()

    await asyncio.gather(*(write(number) for number in range(3)))
    found = Findings()
    chains = Chains(found, cut=False)
    messages = await MemoryBus.replay(buses[0], streams.AUD, subjects.ALL_AUDITS)
    for message in messages:
        chains.read(message.seq, message.subject, message.data)
    chains.finish()
    assert found.kept == []
    assert (chains.writers, chains.closed, chains.unchained) == (3, 3, 0)
    placed = [AUDIT_DECODER.decode(m.data).task_id for m in messages if m.subject.startswith("llorch.aud.placed")]
    assert sorted(placed) == sorted(set.union(*told)), "each once"


async def test_a_batch_that_was_stored_beyond_the_dedupe_window_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_writer, "RETRY_FIRST_S", 0.0)
    server = MemoryServer()
    bus, other = MemoryBus(server), MemoryBus(server)
    await bus.ensure(streams.base())
    server.answers_lost = 1
    audit = Audit(bus, actor="gateway/1", gather_s=0)
    for task in ("a", "b"):
        await audit.record(record(task))
    monkeypatch.setattr("llorch_shared.bus.memory_streams.DEDUPE_DEFAULT_S", 0.0)
    stored = bus.store_batch

    async def store_and_be_overtaken(messages: Sequence[tuple[str, bytes]], **how: Any) -> None:
        try:
            await stored(messages, **how)
        finally:
            await other.store(messages[-1][0], b"of another writer")

    monkeypatch.setattr(bus, "store_batch", store_and_be_overtaken)
    audit.start()
    await audit.close()
    kept = [m for m in await bus.replay(streams.AUD, subjects.ALL_AUDITS) if m.data != b"of another writer"]
    assert [AUDIT_DECODER.decode(m.data).number for m in kept] == [1, 2, 3]


async def test_a_life_that_wrote_nothing_leaves_nothing() -> None:
    bus = MemoryBus(MemoryServer())
    await bus.ensure(streams.base())
    audit = Audit(bus, actor="gateway/1")
    audit.start()
    await audit.close()
    assert (await bus.stream_state(streams.AUD)).messages == 0


async def test_a_record_that_is_too_large_takes_no_number() -> None:
    bus = MemoryBus(MemoryServer())
    await bus.ensure(streams.base())
    audit = Audit(bus, actor="gateway/1", gather_s=0)
    for task, size in (("a", 1), ("b", 2 * 1024 * 1024), ("c", 1)):
        await audit.record(msgspec.structs.replace(record(task), identity="x" * size))
    audit.start()
    await audit.close()
    kept = [AUDIT_DECODER.decode(m.data) for m in await bus.replay(streams.AUD, subjects.ALL_AUDITS)]
    assert [(each.number, each.task_id) for each in kept[:2]] == [(1, "a"), (2, "c")]


async def test_what_another_process_has_put_on_record_is_not_stored_again() -> None:
    bus = MemoryBus(MemoryServer())
    await bus.ensure(streams.base())
    await bus.store_batch(alone(record("a")), msg_id="dead:1")
    with pytest.raises(Duplicate):
        await bus.store_batch(alone(record("a")), msg_id="dead:1")
