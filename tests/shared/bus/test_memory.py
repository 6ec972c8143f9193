"""What tests of services may do with the in-memory bus, beyond the port."""

import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.memory import MemoryBus, MemoryServer
from llorch_shared.bus.memory_streams import matches, transform
from llorch_shared.bus.port import Denied, Message, Unanswered
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority
from support.bus_worlds import eventually

POOL = PoolSpec(id="p", engine=Engine.MOCK, model="m")
ADM = streams.admission_stream("p", Priority.BATCH)
ADMISSION = subjects.admission("p", "batch", "t")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def opened(server: MemoryServer, **more: object) -> MemoryBus:
    bus = MemoryBus(server, **more)  # type: ignore[arg-type]
    await bus.ensure(streams.base())
    await bus.ensure(streams.admission(POOL))
    return bus


async def test_keys_expire_by_the_tests_own_clock() -> None:
    clock = Clock()
    server = MemoryServer(clock)
    bus = await opened(server)
    seen: list[Message] = []
    await bus.subscribe(subjects.ALL_REGISTRY_LIVE, seen.append)
    await bus.store(subjects.registry("node.a"), b"x", ttl_s=3)
    clock.now_s += 2.9
    server.tick()
    assert (await bus.last(streams.REG, subjects.registry("node.a"))) is not None
    clock.now_s += 0.2
    server.tick()
    await eventually(lambda: [message.deleted for message in seen] == [False, True])
    clock.now_s += 2
    server.tick()
    assert await bus.last(streams.REG, subjects.registry("node.a")) is None


async def test_an_unacknowledged_message_comes_back_after_its_time() -> None:
    clock = Clock()
    server = MemoryServer(clock)
    bus = await opened(server)
    consumer = await bus.consumer(ADM, streams.SCHEDULER_DURABLE)
    await bus.store(ADMISSION, b"x")
    assert len(await consumer.fetch(1, 0)) == 1
    clock.now_s += 3599
    assert len(await consumer.fetch(1, 0)) == 0
    clock.now_s += 2
    assert len(await consumer.fetch(1, 0)) == 1


async def test_ids_are_remembered_for_the_window_of_the_stream() -> None:
    clock = Clock()
    bus = await opened(MemoryServer(clock))
    await bus.store(ADMISSION, b"x", msg_id="a")
    clock.now_s += streams.DEDUPE_WINDOW_S - 1
    assert (await bus.store(ADMISSION, b"x", msg_id="a")).duplicate
    clock.now_s += 2
    assert not (await bus.store(ADMISSION, b"x", msg_id="a")).duplicate


async def test_a_store_whose_ack_got_lost_is_a_duplicate_when_repeated() -> None:
    server = MemoryServer()
    bus = await opened(server)
    server.answers_lost = 1
    with pytest.raises(Unanswered):
        await bus.store(ADMISSION, b"x", msg_id="a")
    assert (await bus.store(ADMISSION, b"x", msg_id="a")).duplicate


async def test_what_a_user_may_not_publish_is_denied_and_shows() -> None:
    server = MemoryServer()
    await opened(server)
    bus = MemoryBus(server, denied=["llorch.run.>"])
    with pytest.raises(Denied):
        await bus.store(subjects.run("t"), b"x")
    assert "llorch.run.t" in bus.problem


async def test_one_connection_may_break_alone() -> None:
    server = MemoryServer()
    bus, other = await opened(server), await opened(server)
    seen: list[bytes] = []
    await bus.subscribe("signal", lambda message: seen.append(message.data))
    bus.break_connection()
    assert (bus.problem, other.problem) == ("disconnected", "")
    other.publish("signal", b"missed")
    await other.flush()
    bus.restore_connection()
    other.publish("signal", b"seen")
    await eventually(lambda: seen == [b"seen"])


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("*.b", "a.b", True),
        ("a.b.c", "a.b", False),
    ],
)
def test_wildcards(pattern: str, subject: str, expected: bool) -> None:
    assert matches(pattern, subject) is expected


def test_the_subject_of_what_is_republished() -> None:
    assert transform("llorch.run.*", "llorch.live.run.{{wildcard(1)}}", "llorch.run.t") == "llorch.live.run.t"
    assert transform("$KV.REG.>", "llorch.reg.live.>", "$KV.REG.node.a") == "llorch.reg.live.node.a"
