"""Placements that cannot be read: set aside, and the replica goes on with the next."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from llorch_poold.intake import Intake
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Delivery
from llorch_shared.metrics import Metrics
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent
from llorch_shared.wire.dead import Reason, What, decode_letter
from llorch_shared.wire.run import Placement, RunRecord
from llorch_shared.wire.task import Priority, TaskState
from llorch_shared.wire.version import VERSION_HEADER, VERSIONS, Kind
from support.bus_worlds import MemoryWorld, NatsWorld, World, becomes_true, eventually
from support.node_harness import task_request

SUBJECT = subjects.placement("mock", "mock-node-1-1")


class Taker:
    """Takes everything at once."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def free_slots(self) -> int:
        return 8

    async def wait_free_slot(self) -> None:
        await asyncio.sleep(0)

    def holds(self, placement: Placement) -> bool:
        return False

    def begin(self, placement: Placement, delivery: Delivery) -> None:
        self.begun.append(placement.run.task_id)


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.nats)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    one: World = NatsWorld(request.getfixturevalue("nats_server")) if request.param == "nats" else MemoryWorld()
    bus = await one.connect()
    await bus.ensure(streams.base())
    yield one
    for each in one.buses:
        await each.close()


def placement() -> Placement:
    request = task_request()
    run = RunRecord(
        task_id=request.task_id,
        state=TaskState.PLACED,
        pool_id="mock",
        replica_id="mock-node-1-1",
        lane="bus",
        correlation_id="c",
        tenant="default",
        priority=Priority.BATCH,
        admitted_ms=1,
        request=request,
    )
    return Placement(run=run, run_seq=1)


async def test_a_placement_that_cannot_be_read_is_a_letter_and_holds_up_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, taker, metrics = world.buses[0], Taker(), Metrics()
    good = [placement() for _ in range(4)]
    newer = msgspec.json.encode(placement())
    bad = [
        (b'{"run": "\xff"}', {}),
        (newer, {VERSION_HEADER: str(VERSIONS[Kind.PLACEMENT] + 1)}),
        (b'{"x": ' + b"[" * 100_000, {}),
    ]
    intake = Intake(bus, "mock", "mock-node-1-1", taker, metrics=metrics)
    running = asyncio.create_task(intake.run())
    await bus.store(SUBJECT, msgspec.json.encode(good[0]))
    for (data, headers), one in zip(bad, good[1:], strict=True):
        await bus.store(SUBJECT, data, headers=headers)
        await bus.store(SUBJECT, msgspec.json.encode(one))
    await eventually(lambda: len(taker.begun) == len(good))
    assert taker.begun == [one.run.task_id for one in good]

    async def acknowledged() -> bool:
        return (await bus.stream_state(streams.PLC)).messages == len(good)

    await becomes_true(acknowledged)
    messages = await bus.replay(streams.DEAD, subjects.ALL_DEAD_LETTERS)
    letters = [decode_letter(message.subject, message.data, message.headers) for message in messages]
    assert [letter.reason for letter in letters] == [Reason.UNDECODABLE, Reason.UNKNOWN_VERSION, Reason.UNDECODABLE]
    assert [letter.data for letter in letters] == [data for data, _ in bad]
    assert {(letter.what, letter.actor) for letter in letters} == {(What.PLACEMENT, "poold/mock-node-1-1")}
    audits = await bus.replay(streams.AUD, subjects.audit(AuditEvent.DEAD_LETTERED, "mock"))
    assert [AUDIT_DECODER.decode(message.data).detail["letter"] for message in audits] == [1, 2, 3]
    assert metrics.registry.get_sample_value("dead_letters_total", {"kind": "placement", "reason": "undecodable"}) == 2

    monkeypatch.setitem(VERSIONS, Kind.PLACEMENT, VERSIONS[Kind.PLACEMENT] + 1)
    await bus.store(letters[1].subject, letters[1].data, headers=letters[1].replay_headers())
    await eventually(lambda: len(taker.begun) == len(good) + 1)
    running.cancel()
    await asyncio.wait({running})
