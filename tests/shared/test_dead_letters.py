"""Dead letters: stored once, whole, and on the record, whatever the original was made of."""

import asyncio

import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Message, TooLarge
from llorch_shared.dead_letters import DeadLetters, reason_of
from llorch_shared.metrics import Metrics
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent
from llorch_shared.wire.dead import CUT_PAYLOAD_BYTES, DeadLetter, Reason, What, decode_letter
from llorch_shared.wire.version import NewerVersion, Unreadable
from support.bus_worlds import MemoryWorld, NatsWorld, World, eventually

SUBJECT = "llorch.adm.p1.interactive.default"


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.nats)])
async def world(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    one: World = NatsWorld(request.getfixturevalue("nats_server")) if request.param == "nats" else MemoryWorld()
    bus = await one.connect()
    await bus.ensure(streams.base())
    yield one
    for each in one.buses:
        await each.close()


async def letters(bus: Bus) -> list[DeadLetter]:
    messages = await bus.replay(streams.DEAD, subjects.ALL_DEAD_LETTERS)
    return [decode_letter(message.subject, message.data, message.headers) for message in messages]


def counted(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("dead_letters_total", {"kind": "admission", "reason": "undecodable"}) or 0


async def test_a_letter_is_stored_once_with_everything_about_its_original(world: World) -> None:
    bus, metrics = world.buses[0], Metrics()
    headers = {"Nats-Msg-Id": "m1", "Nats-Rollup": "all", "X-Correlation-Id": "c", "Odd": "a\nb\rc"}
    original = Message(subject=SUBJECT, data=b"\xff\x00garbage", headers=headers, seq=17, stored_ms=5)
    for number in (1, 2):
        dead = DeadLetters(bus, actor=f"scheduler/{number}", metrics=metrics)
        letter = dead.letter(What.ADMISSION, "p1", "ADM_p1_interactive", original, Unreadable("no\nJSON"))
        await dead.store(letter, original.stored_ms)
    (kept,) = await letters(bus)
    assert (kept.reason, kept.problem, kept.subject) == (Reason.UNDECODABLE, "no JSON", SUBJECT)
    assert (kept.stream, kept.seq, kept.actor) == ("ADM_p1_interactive", 17, "scheduler/1")
    assert kept.data == original.data
    assert kept.headers == {**headers, "Odd": "a b c"}
    assert kept.replay_headers() == {"X-Correlation-Id": "c", "Odd": "a b c"}, "orders to the server are not repeated"
    assert counted(metrics) == 1
    audits = await bus.replay(streams.AUD, subjects.audit(AuditEvent.DEAD_LETTERED, "p1"))
    (record,) = (AUDIT_DECODER.decode(message.data) for message in audits)
    assert (record.detail["letter"], record.detail["reason"]) == (1, "undecodable")


async def test_the_same_place_in_a_stream_made_anew_is_another_letter(world: World) -> None:
    bus = world.buses[0]
    dead = DeadLetters(bus, actor="scheduler/1")
    for stored_ms in (5, 6):
        original = Message(subject=SUBJECT, data=b"x", seq=1, stored_ms=stored_ms)
        await dead.store(dead.letter(What.ADMISSION, "p1", "ADM", original, Unreadable("x")), stored_ms)
    assert len(await letters(bus)) == 2


@pytest.mark.nats
async def test_an_original_that_leaves_no_room_is_kept_from_its_beginning(nats_server) -> None:  # type: ignore[no-untyped-def]
    world = NatsWorld(nats_server)
    bus = await world.connect()
    await bus.ensure(streams.base())
    dead = DeadLetters(bus, actor="scheduler/1")
    large = Message(subject=SUBJECT, data=bytes(1024 * 1024), seq=1)
    many = Message(subject=SUBJECT, data=b"", headers={f"H-{n}": "x" * 1000 for n in range(64)}, seq=2)
    for original in (large, many):
        await dead.store(dead.letter(What.ADMISSION, "p1", "ADM", original, TooLarge("large")), 0)
    first, second = await letters(bus)
    assert (first.cut_bytes, len(first.data)) == (1024 * 1024, CUT_PAYLOAD_BYTES)
    assert second.cut_bytes > 64_000
    assert 0 < len(second.headers) < 64
    await bus.close()


async def test_a_letter_waits_for_a_bus_that_is_away(world: World) -> None:
    dead = DeadLetters(world.buses[0], actor="scheduler/1")
    world.kill()
    await eventually(lambda: not world.buses[0].connected)
    original = Message(subject=SUBJECT, data=b"x", seq=1)
    storing = asyncio.create_task(dead.store(dead.letter(What.ADMISSION, "p1", "ADM", original, Unreadable("x")), 0))
    await asyncio.sleep(0)
    assert not storing.done()
    world.start()
    await asyncio.wait_for(storing, 20)
    assert len(await letters(world.buses[0])) == 1


def test_reasons_are_told_apart() -> None:
    told = [reason_of(error) for error in (NewerVersion("x"), Unreadable("x"), TooLarge("x"), KeyError("x"))]
    assert told == [Reason.UNKNOWN_VERSION, Reason.UNDECODABLE, Reason.TOO_LARGE, Reason.UNPROCESSABLE]


async def test_a_stored_message_is_removed_by_its_place(world: World) -> None:
    bus = world.buses[0]
    first = await bus.store("llorch.dead.admission.p1", b"1")
    second = await bus.store("llorch.dead.admission.p1", b"2")
    assert await bus.remove(streams.DEAD, first.seq)
    assert not await bus.remove(streams.DEAD, first.seq)
    assert not await bus.remove(streams.DEAD, 99)
    assert [message.seq for message in await bus.replay(streams.DEAD, ">")] == [second.seq]
