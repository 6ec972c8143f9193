"""Compare-and-set through outages, and ends that an earlier life did not audit."""

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from llorch_poold.audit_repair import repair_audit
from llorch_poold.run_store import NotStorable, RunStore
from llorch_shared import streams, subjects
from llorch_shared.audit import Audit
from llorch_shared.bus import nats
from llorch_shared.bus.nats import NatsBus
from llorch_shared.bus.port import Message, Stored, TooLarge, Unanswered, WrongSequence
from llorch_shared.settings import NatsSettings
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import Priority, TaskState
from support.nats_server import NatsServer

TASK = "6f1e0c9e-5d1b-4c57-9c2d-00000000000"


def run(state: TaskState = TaskState.RUNNING, number: int = 1, **fields: Any) -> RunRecord:
    values: dict[str, Any] = {
        "task_id": f"{TASK}{number}",
        "state": state,
        "pool_id": "p",
        "lane": "gw-1",
        "correlation_id": "c",
        "tenant": "default",
        "priority": Priority.BATCH,
        "admitted_ms": 1,
        "node_id": "node-1",
        "replica_id": "r",
        "incarnation": "i",
        **fields,
    }
    return RunRecord(**values)


class FlakyBus:
    """A stream of one subject whose answers get lost as told."""

    def __init__(self, *answers: Exception | None, stored: bytes = b"", seq: int = 4) -> None:
        self.answers = list(answers)
        self.data = stored
        self.seq = seq

    async def store(self, subject: str, data: bytes, *, expect_seq: int, **_: Any) -> Stored:
        answer = self.answers.pop(0) if self.answers else None
        lost = isinstance(answer, Unanswered)
        if answer is not None and not lost:
            raise answer
        if expect_seq != self.seq:
            raise WrongSequence
        if not lost or "stored" in str(answer):
            self.data, self.seq = data, self.seq + 1
        if lost:
            assert answer is not None
            raise answer
        return Stored("RUN", self.seq)

    async def last(self, stream: str, subject: str) -> Message:
        return Message(subject=subject, data=self.data, seq=self.seq)


async def test_an_answer_that_got_lost_is_found_in_the_record() -> None:
    bus = FlakyBus(Unanswered("stored, but the ack got lost"))
    assert await RunStore(bus).swap(run(), 4) == 5  # type: ignore[arg-type]


async def test_a_write_that_got_lost_is_written_again() -> None:
    bus = FlakyBus(Unanswered("lost"), Unanswered("lost"))
    assert await RunStore(bus).swap(run(), 4) == 5  # type: ignore[arg-type]


async def test_somebody_elses_write_is_a_lost_race() -> None:
    other = msgspec.json.encode(run(attempt=2))
    assert await RunStore(FlakyBus(stored=other, seq=9)).swap(run(), 4) is None  # type: ignore[arg-type]
    unsure = FlakyBus(Unanswered("lost"), WrongSequence(), stored=other, seq=9)
    assert await RunStore(unsure).swap(run(), 4) is None  # type: ignore[arg-type]


async def test_a_record_the_server_will_never_take_is_an_error() -> None:
    with pytest.raises(NotStorable):
        await RunStore(FlakyBus(TooLarge("1 MiB"))).swap(run(), 4)  # type: ignore[arg-type]


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[NatsBus]:
    connected = await nats.connect(NatsSettings(url=nats_server.url), name="poold")
    await connected.ensure(streams.base())
    yield connected
    await connected.close()


@pytest.mark.nats
async def test_ends_that_were_not_audited_are_audited_once(bus: NatsBus) -> None:
    now = time.time_ns() // 1_000_000
    records = [
        run(TaskState.DONE, 1, ended_ms=now),
        run(TaskState.RUNNING, 2),
        run(TaskState.CANCELLED, 3, ended_ms=now, node_id="node-2"),
        run(TaskState.FAILED, 4, ended_ms=now),
        run(TaskState.DONE, 5, ended_ms=now - 3_600_000),
        run(TaskState.CANCELLED, 6, ended_ms=now, incarnation=""),
    ]
    for record in records:
        await bus.store(subjects.run(record.task_id), msgspec.json.encode(record))
    await bus.store(subjects.audit("failed", f"{TASK}4"), b"{}")
    audit = Audit(bus, actor="test", gather_s=0)
    audit.start()
    assert await repair_audit(bus, audit, node_id="node-1", now_ms=now) == 1
    await audit.close()
    assert await bus.last(streams.AUD, subjects.audit("done", f"{TASK}1")) is not None
    again = Audit(bus, actor="test")
    assert await repair_audit(bus, again, node_id="node-1", now_ms=now) == 0
