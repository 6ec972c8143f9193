"""What goes wrong on a real nats-server, one situation each. The numbers of BUS.md's traps are not repeated here."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import nats
import nkeys
import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.nats import connect
from llorch_shared.bus.nats_consumer import NatsConsumer
from llorch_shared.bus.port import Bus, BusError, Denied, Full, Message, NoStream, Unanswered, WrongSequence
from llorch_shared.bus.topology import Stream, Topology
from llorch_shared.metrics import Metrics
from llorch_shared.settings import NatsSettings, Secret
from llorch_shared.wire.audit import AuditEvent
from llorch_shared.wire.policy import QueueSpec
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority
from support.bus_worlds import NatsWorld, eventually, take
from support.nats_server import NatsServer

pytestmark = pytest.mark.nats

POOL = PoolSpec(id="p", engine=Engine.MOCK, model="m", queue=QueueSpec(capacity=100_000))
ADM = streams.admission_stream("p", Priority.BATCH)
ADMISSION = subjects.admission("p", "batch", "t")
BASE = streams.base(token_bytes_max=16 * 1024 * 1024)

USERS = """
authorization {
  users = [
    { user: admin, password: adminpass }
    { user: gateway, password: gatewaypass, permissions: {
        publish: ["llorch.adm.>", "$JS.API.STREAM.INFO.>", "$JS.API.CONSUMER.INFO.>"]
        subscribe: ["_INBOX_gateway.>", "llorch.tok.>"] } }
  ]
}
"""


@pytest.fixture
async def world(nats_server: NatsServer) -> AsyncIterator[NatsWorld]:
    one = NatsWorld(nats_server)
    yield one
    for bus in one.buses:
        await bus.close()


@pytest.fixture
async def bus(world: NatsWorld) -> Bus:
    bus = await world.connect()
    await bus.ensure(BASE)
    await bus.ensure(streams.admission(POOL))
    return bus


@pytest.fixture
def guarded_server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "nats", extra=USERS)
    server.start()
    yield server
    server.stop()


async def restart(world: NatsWorld, *buses: Bus) -> None:
    """kill -9, start, and wait until every bus has its streams back."""
    waiting: list[asyncio.Event] = []
    for bus in buses:
        back = asyncio.Event()
        waiting.append(back)

        async def returned(back: asyncio.Event = back) -> None:
            back.set()

        bus.on_reconnect(returned)
    world.kill()
    await asyncio.to_thread(world.start)
    async with asyncio.timeout(30):
        for back in waiting:
            await back.wait()


async def test_a_server_killed_under_fifty_writers_loses_and_doubles_nothing(world: NatsWorld, bus: Bus) -> None:
    second = await world.connect("second")
    stored: set[str] = set()
    stopping = False

    async def write(writer: int) -> None:
        number = 0
        while not stopping:
            msg_id = f"{writer}-{number}"
            while msg_id not in stored:
                with contextlib.suppress(Unanswered, NoStream):
                    await (bus, second)[writer % 2].store(ADMISSION, msg_id.encode(), msg_id=msg_id, timeout_s=2)
                    stored.add(msg_id)
            number += 1

    writers = [asyncio.create_task(write(writer)) for writer in range(50)]
    await eventually(lambda: len(stored) > 500)
    await restart(world, bus, second)
    before = len(stored)
    await eventually(lambda: len(stored) > before + 500)
    stopping = True
    await asyncio.gather(*writers)
    found = [message.data.decode() for message in await bus.replay(ADM, ADMISSION)]
    assert len(found) == len(set(found))
    assert set(found) == stored


async def test_what_is_read_says_when_it_was_stored(bus: Bus) -> None:
    before_ms, subject = time.time_ns() // 1_000_000, subjects.audit(AuditEvent.ADMITTED, "t1")
    await bus.store(subject, b"x")
    last = await bus.last(streams.AUD, subject)
    assert last is not None
    read = [last, *await bus.replay(streams.AUD, subject), *await bus.snapshot(streams.AUD, subject)]
    now_ms = time.time_ns() // 1_000_000
    assert len(read) == 3
    assert all(before_ms <= message.stored_ms + 1 and message.stored_ms <= now_ms for message in read)


async def test_a_plain_ack_frees_no_room_but_ours_does(world: NatsWorld, bus: Bus) -> None:
    small = PoolSpec(id="s", engine=Engine.MOCK, model="m", queue=QueueSpec(capacity=3))
    await bus.ensure(streams.admission(small))
    subject = subjects.admission("s", "batch", "t")
    consumer = await bus.consumer(streams.admission_stream("s", Priority.BATCH), streams.SCHEDULER_DURABLE)
    for _ in range(3):
        await bus.store(subject, b"x")
    with pytest.raises(Full):
        await bus.store(subject, b"x")
    held = await take(consumer, 3, at_once=1)
    with pytest.raises(Full):
        await bus.store(subject, b"x")
    await asyncio.gather(*(delivery.ack() for delivery in held))
    for _ in range(3):
        await bus.store(subject, b"x")
    with pytest.raises(Full):
        await bus.store(subject, b"x")


async def test_ids_of_acknowledged_messages_are_forgotten_by_a_restart_but_the_run_is_not(
    world: NatsWorld, bus: Bus
) -> None:
    consumer = await bus.consumer(ADM, streams.SCHEDULER_DURABLE)
    await bus.store(ADMISSION, b"task", msg_id="task")
    await bus.store(subjects.run("task"), b"placed", msg_id="task", expect_seq=0)
    await (await consumer.fetch(1, 30))[0].ack()
    await restart(world, bus)
    assert not (await bus.store(ADMISSION, b"task", msg_id="task")).duplicate
    with pytest.raises(WrongSequence):
        await bus.store(subjects.run("task"), b"placed twice", expect_seq=0)


async def test_a_successor_gets_what_a_killed_process_held(world: NatsWorld, bus: Bus) -> None:
    dying = await world.connect("dying")
    held_by_the_dead = await dying.consumer(ADM, streams.SCHEDULER_DURABLE)
    for number in range(10):
        await bus.store(ADMISSION, b"%d" % number)
    assert len(await take(held_by_the_dead, 10, at_once=10)) == 10
    await dying.close()
    successor = await bus.consumer(ADM, streams.SCHEDULER_DURABLE)
    assert list(await successor.fetch(10, 0.1)) == []
    await successor.reset()
    got: list[bytes] = []
    async with asyncio.timeout(30):
        while len(got) < 10:
            got += [delivery.message.data for delivery in await successor.fetch(10, 1)]
    assert sorted(got) == [b"%d" % number for number in range(10)]


async def test_a_reset_delivers_what_is_stored_although_the_durable_believes_it_acknowledged(
    world: NatsWorld, bus: Bus
) -> None:
    """As a server leaves it that was killed after it had written the ack, and before it had written the removal."""
    for number in range(3):
        await bus.store(ADMISSION, b"%d" % number)
    client = await nats.connect(world.server.url)
    passed = await client.request(f"$JS.API.CONSUMER.RESET.{ADM}.{streams.SCHEDULER_DURABLE}", b'{"seq":3}', timeout=20)
    assert msgspec.json.decode(passed.data)["ack_floor"]["stream_seq"] == 2
    await client.close()
    consumer = await bus.consumer(ADM, streams.SCHEDULER_DURABLE)
    await consumer.reset()
    got: list[bytes] = []
    async with asyncio.timeout(30):
        while len(got) < 3:
            got += [delivery.message.data for delivery in await consumer.fetch(10, 1)]
    assert got == [b"0", b"1", b"2"]


async def test_messages_that_a_closed_consumer_held_go_to_the_next_at_once(world: NatsWorld, bus: Bus) -> None:
    leaving = await bus.consumer(ADM, streams.SCHEDULER_DURABLE)
    assert isinstance(leaving, NatsConsumer)
    await bus.store(ADMISSION, b"first")
    assert len(await leaving.fetch(50, 30)) == 1
    for number in range(5):
        await bus.store(ADMISSION, b"%d" % number)
    await eventually(lambda: len(leaving._held) == 5)
    await leaving.close()
    staying = await bus.consumer(ADM, streams.SCHEDULER_DURABLE)
    got: list[bytes] = []
    async with asyncio.timeout(30):
        while len(got) < 5:
            got += [delivery.message.data for delivery in await staying.fetch(10, 1)]
    assert sorted(got) == [b"%d" % number for number in range(5)]


async def test_acks_across_a_restart_are_confirmed_or_the_message_comes_again(
    world: NatsWorld, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed server may have forgotten that it delivered: then it does not answer the ack."""
    monkeypatch.setattr("llorch_shared.bus.nats_consumer.ACK_TIMEOUT_S", 0.5)
    consumer = await bus.consumer(ADM, streams.SCHEDULER_DURABLE)
    for number in range(3):
        await bus.store(ADMISSION, b"%d" % number)
    held = await take(consumer, 3, at_once=1)
    await restart(world, bus)
    outcomes = await asyncio.gather(*(delivery.ack() for delivery in held), return_exceptions=True)
    assert all(outcome is None or isinstance(outcome, Unanswered) for outcome in outcomes)
    await consumer.reset()
    async with asyncio.timeout(30):
        while (await bus.stream_state(ADM)).messages:
            await asyncio.gather(*(delivery.ack() for delivery in await consumer.fetch(10, 0.2)))
    await bus.store(ADMISSION, b"after")
    assert [delivery.message.data for delivery in await consumer.fetch(10, 30)] == [b"after"]


async def test_a_durable_that_was_deleted_is_told(world: NatsWorld, bus: Bus) -> None:
    consumer = await bus.consumer(ADM, streams.SCHEDULER_DURABLE)
    client = await nats.connect(world.server.url)
    await client.jetstream().delete_consumer(ADM, streams.SCHEDULER_DURABLE)
    await client.close()
    with pytest.raises(NoStream):
        await consumer.fetch(10, 30)


async def test_streams_in_memory_stand_again_after_a_restart_with_their_configuration(
    world: NatsWorld, bus: Bus
) -> None:
    frames: list[bytes] = []
    await bus.tail(subjects.tokens_of_lane("gw-1"), lambda _, data: frames.append(data))
    bus.publish(subjects.tokens("gw-1", "t"), b"before")
    await eventually(lambda: frames == [b"before"])
    await restart(world, bus)
    bus.publish(subjects.tokens("gw-1", "t"), b"after")
    await eventually(lambda: frames == [b"before", b"after"])
    assert [m.data for m in await bus.replay(streams.TOK, subjects.tokens_of_task("t"))] == [b"after"]


async def test_signals_of_a_broken_connection_are_not_delivered_late(world: NatsWorld, bus: Bus) -> None:
    seen: list[bytes] = []
    await bus.subscribe("signal", lambda message: seen.append(message.data))
    world.kill()
    await eventually(lambda: not bus.connected)
    for _ in range(100):
        bus.publish("signal", b"stale")
    await asyncio.to_thread(world.start)
    await eventually(lambda: bus.connected)
    bus.publish("signal", b"fresh")
    await eventually(lambda: bool(seen))
    assert seen == [b"fresh"]


async def test_requests_in_flight_end_at_once_when_the_server_dies(world: NatsWorld, bus: Bus) -> None:
    silent = asyncio.Event()

    async def never(_: Message) -> tuple[bytes, dict[str, str]]:
        silent.set()
        await asyncio.Event().wait()
        return b"", {}

    await bus.serve("silent", never)
    asking = asyncio.create_task(bus.request("silent", b"", timeout_s=60))
    await silent.wait()
    world.kill()
    with pytest.raises(Unanswered):
        async with asyncio.timeout(30):
            await asking


async def test_an_update_does_not_reset_what_it_does_not_name(world: NatsWorld, bus: Bus) -> None:
    client = await nats.connect(world.server.url)
    manager = client.jetstream()
    full = {"name": "X", "subjects": ["x"], "max_msgs": 5, "allow_msg_ttl": True, "metadata": {"owner": "someone"}}
    await bus.ensure(Topology(streams=(Stream(name="X", config=full),)))
    await bus.ensure(Topology(streams=(Stream(name="X", config={"name": "X", "subjects": ["x"], "max_msgs": 9}),)))
    config = (await manager.stream_info("X")).config
    await client.close()
    assert config.max_msgs == 9
    assert config.allow_msg_ttl
    assert (config.metadata or {})["owner"] == "someone"


async def test_what_the_server_forbids_is_told_at_once_and_stays_visible(
    guarded_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = guarded_server.url
    admin = await connect(NatsSettings(url=url, user="admin"), name="admin", password=Secret("adminpass"))
    await admin.ensure(BASE)
    await admin.ensure(streams.admission(POOL))
    metrics = Metrics()
    gateway = await connect(
        NatsSettings(url=url, user="gateway"), name="gateway/1", password=Secret("gatewaypass"), metrics=metrics
    )
    assert gateway.problem == ""
    assert (await gateway.store(ADMISSION, b"x")).seq == 1
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            with pytest.raises(Denied):
                async with asyncio.timeout(30):
                    await gateway.store(subjects.run("t"), b"x", timeout_s=60)
    assert len([record for record in caplog.records if "forbids" in record.message]) == 1
    assert "llorch.run.t" in gateway.problem
    assert metrics.registry.get_sample_value("bus_errors_total", {"kind": "permission"}) == 3
    assert metrics.registry.get_sample_value("bus_connected") == 1
    with pytest.raises(Denied):
        await gateway.subscribe("llorch.can.*", lambda _: None)
    await gateway.ensure(streams.admission(POOL))
    with pytest.raises(Denied):
        await gateway.ensure(streams.admission(PoolSpec(id="other", engine=Engine.MOCK, model="m")))
    assert (await gateway.store(ADMISSION, b"x")).seq == 2
    await gateway.close()
    await admin.close()


async def test_a_permission_taken_away_during_a_restart_is_seen(guarded_server: NatsServer) -> None:
    settings = NatsSettings(url=guarded_server.url, user="gateway")
    gateway = await connect(settings, name="gateway/1", password=Secret("gatewaypass"))
    await gateway.tail("llorch.tok.gw-1.*", lambda _, __: None)
    guarded_server.kill()
    await eventually(lambda: gateway.problem == "disconnected")
    extra = guarded_server.config.extra.replace(', "llorch.tok.>"', "")
    guarded_server.config = msgspec.structs.replace(guarded_server.config, extra=extra)
    await asyncio.to_thread(guarded_server.start)
    await eventually(lambda: "llorch.tok.gw-1" in gateway.problem)
    assert not gateway.connected
    await gateway.close()


async def test_a_service_cannot_read_the_answers_of_another(guarded_server: NatsServer) -> None:
    settings = NatsSettings(url=guarded_server.url, user="gateway")
    gateway = await connect(settings, name="gateway/1", password=Secret("gatewaypass"))
    with pytest.raises(Denied):
        await gateway.subscribe("_INBOX_scheduler.>", lambda _: None)
    await gateway.close()


async def test_a_wrong_password_is_said_and_not_given_up(
    guarded_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    settings = NatsSettings(url=guarded_server.url, user="admin")
    with caplog.at_level(logging.WARNING):
        connecting = asyncio.create_task(connect(settings, name="x", password=Secret("guessed")))
        await eventually(lambda: "authorization violation" in caplog.text.lower())
    assert not connecting.done()
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert "guessed" not in caplog.text


async def test_a_service_signs_in_with_its_nkey(tmp_path: Path) -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    (tmp_path / "seed").write_bytes(seed)
    server = NatsServer(tmp_path / "nats", extra=f"authorization {{ users = [ {{ nkey: {public} }} ] }}\n")
    server.start()
    settings = NatsSettings(url=server.url, nkey_seed_file=str(tmp_path / "seed"))
    async with asyncio.timeout(30):
        bus = await connect(settings, name="signed")
    await bus.ensure(BASE)
    await bus.close()
    server.stop()


async def test_connecting_waits_for_a_server_that_comes_later_and_says_so(
    nats_server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    nats_server.kill()
    with caplog.at_level(logging.WARNING):
        connecting = asyncio.create_task(connect(NatsSettings(url=nats_server.url), name="early"))
        await eventually(lambda: any("early" in record.message for record in caplog.records))
    await asyncio.to_thread(nats_server.start)
    async with asyncio.timeout(30):
        bus = await connecting
    await bus.ensure(BASE)
    await bus.close()


async def test_connecting_can_be_given_up(nats_server: NatsServer) -> None:
    nats_server.kill()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await connect(NatsSettings(url=nats_server.url), name="early")


async def test_a_flush_that_gave_up_does_not_end_the_reader(world: NatsWorld, bus: Bus) -> None:
    for _ in range(20):
        flushing = asyncio.create_task(bus.flush())
        await asyncio.sleep(0)
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
    assert (await bus.store(ADMISSION, b"x")).seq == 1


async def test_a_reconnect_callback_is_repeated_until_the_bus_lets_it(world: NatsWorld, bus: Bus) -> None:
    calls: list[str] = []
    done = asyncio.Event()

    async def fails_twice() -> None:
        calls.append("try")
        if len(calls) < 3:
            raise BusError("not yet")
        done.set()

    async def mistaken() -> None:
        raise RuntimeError("a mistake of the callback")

    bus.on_reconnect(mistaken)
    bus.on_reconnect(fails_twice)
    await restart(world, bus)
    async with asyncio.timeout(30):
        await done.wait()
    assert bus.problem == ""
