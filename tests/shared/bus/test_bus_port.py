"""What the port promises, asked of the in-memory bus and of a real nats-server alike."""

import asyncio
from collections.abc import Mapping

import msgspec
import pytest

from llorch_shared import streams, subjects
from llorch_shared.bus.port import (
    Bus,
    BusError,
    Consumer,
    Duplicate,
    Full,
    Message,
    NoResponder,
    NoStream,
    Stored,
    SubjectFull,
    TooLarge,
    Unanswered,
    WrongSequence,
)
from llorch_shared.bus.topology import Durable, Stream, Topology
from llorch_shared.wire.policy import QueueSpec
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority
from support.bus_worlds import World, becomes_true, eventually, take

POOL = PoolSpec(id="p", engine=Engine.MOCK, model="m", queue=QueueSpec(capacity=5))
ADM = streams.admission_stream("p", Priority.BATCH)
ADMISSION = subjects.admission("p", "batch", "t")
NODE = subjects.registry("node.a")
BASE = streams.base(token_bytes_max=16 * 1024 * 1024)


def bounded(tenant_capacity: int | None) -> PoolSpec:
    return msgspec.structs.replace(POOL, queue=QueueSpec(capacity=100, tenant_capacity=tenant_capacity))


@pytest.fixture
async def ready(bus: Bus) -> Bus:
    """A bus with every stream of a deployment with one pool of five places."""
    await bus.ensure(BASE)
    await bus.ensure(streams.admission(POOL))
    return bus


@pytest.fixture
async def queue(ready: Bus) -> Consumer:
    return await ready.consumer(ADM, streams.SCHEDULER_DURABLE)


async def fill(bus: Bus, count: int) -> list[Stored]:
    return [await bus.store(ADMISSION, b"%d" % number, msg_id=f"id{number}") for number in range(count)]


# storing


async def test_a_stored_message_has_its_stream_and_sequence(ready: Bus) -> None:
    assert await ready.store(ADMISSION, b"x") == Stored(ADM, 1, False)
    assert await ready.store(ADMISSION, b"y") == Stored(ADM, 2, False)


async def test_a_full_queue_refuses_and_keeps_nothing(ready: Bus) -> None:
    await fill(ready, 5)
    with pytest.raises(Full):
        await ready.store(ADMISSION, b"one too many", msg_id="late")
    assert (await ready.stream_state(ADM)).messages == 5


async def test_the_bound_of_a_subject_is_told_from_that_of_the_stream(bus: Bus) -> None:
    await bus.ensure(streams.admission(msgspec.structs.replace(POOL, queue=QueueSpec(capacity=3, tenant_capacity=1))))
    await bus.store(ADMISSION, b"x")
    with pytest.raises(SubjectFull):
        await bus.store(ADMISSION, b"x")
    for tenant in ("u", "v"):
        await bus.store(subjects.admission("p", "batch", tenant), b"x")
    with pytest.raises(Full) as refused:
        await bus.store(subjects.admission("p", "batch", "w"), b"x")
    assert not isinstance(refused.value, SubjectFull)


async def test_concurrent_stores_fill_a_queue_exactly(ready: Bus, other: Bus) -> None:
    outcomes = await asyncio.gather(
        *(side.store(ADMISSION, b"x") for _ in range(20) for side in (ready, other)), return_exceptions=True
    )
    assert sum(isinstance(outcome, Stored) for outcome in outcomes) == 5
    assert sum(isinstance(outcome, Full) for outcome in outcomes) == 35


async def test_there_is_room_the_moment_an_ack_returns(ready: Bus, queue: Consumer) -> None:
    await fill(ready, 5)
    for number in range(20):
        await (await queue.fetch(1, 30))[0].ack()
        await ready.store(ADMISSION, b"next %d" % number)


async def test_the_same_id_is_stored_once(ready: Bus) -> None:
    first = await ready.store(ADMISSION, b"x", msg_id="a")
    assert await ready.store(ADMISSION, b"x", msg_id="a") == Stored(ADM, first.seq, True)


async def test_a_stored_id_on_a_full_queue_is_a_duplicate_not_a_refusal(ready: Bus) -> None:
    await fill(ready, 5)
    assert (await ready.store(ADMISSION, b"0", msg_id="id0")).duplicate


async def test_a_refused_id_is_accepted_once_there_is_room(ready: Bus, queue: Consumer) -> None:
    await fill(ready, 5)
    with pytest.raises(Full):
        await ready.store(ADMISSION, b"x", msg_id="late")
    await (await queue.fetch(1, 30))[0].ack()
    assert not (await ready.store(ADMISSION, b"x", msg_id="late")).duplicate


async def test_compare_and_set_has_one_winner(ready: Bus, other: Bus) -> None:
    outcomes = await asyncio.gather(
        *(side.store(subjects.run("t"), b"x", expect_seq=0) for _ in range(5) for side in (ready, other)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, Stored) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, WrongSequence) for outcome in outcomes) == 9


async def test_compare_and_set_is_per_subject(ready: Bus) -> None:
    first = await ready.store(subjects.run("a"), b"1", expect_seq=0)
    await ready.store(subjects.run("b"), b"1", expect_seq=0)
    second = await ready.store(subjects.run("a"), b"2", expect_seq=first.seq)
    with pytest.raises(WrongSequence):
        await ready.store(subjects.run("a"), b"3", expect_seq=first.seq)
    assert (await ready.stream_state(streams.RUN)).last_seq == second.seq


async def test_a_subject_without_a_stream_is_told_apart(ready: Bus) -> None:
    with pytest.raises(NoStream):
        await ready.store("nowhere.at.all", b"x")


async def test_too_large_a_payload_is_refused_and_the_connection_stays(ready: Bus) -> None:
    with pytest.raises(TooLarge):
        await ready.store(ADMISSION, b"x" * (1024 * 1024 + 1))
    with pytest.raises(TooLarge):
        ready.publish("signal", b"x" * (1024 * 1024 + 1))
    assert (await ready.store(ADMISSION, b"x")).seq == 1


async def test_nobody_acknowledges_a_store_into_a_stream_without_acks(ready: Bus) -> None:
    with pytest.raises(Unanswered):
        await ready.store(subjects.tokens("lane", "t"), b"x", timeout_s=0.1)


@pytest.mark.parametrize("subject", ["", "two words", "line\r\nbreak"])
async def test_what_is_not_a_subject_never_reaches_the_wire(ready: Bus, subject: str) -> None:
    with pytest.raises(ValueError, match="not a subject"):
        await ready.store(subject, b"x")
    with pytest.raises(ValueError, match="not a subject"):
        ready.publish(subject, b"x")


async def test_a_header_cannot_carry_a_second_one(ready: Bus) -> None:
    with pytest.raises(ValueError, match="line break"):
        await ready.store(ADMISSION, b"x", headers={"A": "1\r\nNats-Msg-Id: forged"})


async def test_headers_travel_with_a_stored_message(ready: Bus, queue: Consumer) -> None:
    await ready.store(ADMISSION, b"x", msg_id="id", headers={"Llorch-Lane": "gw-1", "X-Note": "grüße"})
    headers = (await queue.fetch(1, 30))[0].message.headers
    assert (headers["Llorch-Lane"], headers["X-Note"], headers["Nats-Msg-Id"]) == ("gw-1", "grüße", "id")


async def test_a_batch_is_stored_whole_and_in_order(ready: Bus) -> None:
    await ready.store_batch([(subjects.audit("placed", f"t{number}"), b"%d" % number) for number in range(500)])
    stored = await ready.replay(streams.AUD, "llorch.aud.>")
    assert [message.data for message in stored] == [b"%d" % number for number in range(500)]


async def test_a_batch_of_one_and_of_none(ready: Bus) -> None:
    await ready.store_batch([])
    await ready.store_batch([(subjects.audit("done", "t"), b"x")])
    assert (await ready.stream_state(streams.AUD)).messages == 1


async def test_a_batch_whose_new_subject_is_not_new_is_refused_whole(ready: Bus) -> None:
    first, second, other = (subjects.audit("admitted", f"t{number}") for number in range(3))
    await ready.store_batch([(first, b"1"), (other, b"1"), (other, b"2")], new={first})
    for batch in ([(first, b"x"), (second, b"x")], [(second, b"x"), (first, b"x")]):
        with pytest.raises(WrongSequence):
            await ready.store_batch([*batch, (other, b"x")], new={first, second})
    await ready.store_batch([(second, b"2"), (other, b"3")], new={second})
    stored = await ready.replay(streams.AUD, "llorch.aud.>")
    assert [message.data for message in stored] == [b"1", b"1", b"2", b"2", b"3"]


async def test_a_batch_with_an_id_is_stored_once_and_one_that_was_refused_may_come_again(ready: Bus) -> None:
    first, second = (subjects.audit("admitted", f"t{number}") for number in range(2))
    await ready.store_batch([(first, b"1"), (second, b"1")], msg_id="w:1", new={first})
    with pytest.raises(Duplicate):
        await ready.store_batch([(first, b"1"), (second, b"1")], msg_id="w:1", new={first})
    assert (await ready.store(first, b"1", msg_id="w:1")).duplicate
    for _ in range(2):
        with pytest.raises(WrongSequence):
            await ready.store_batch([(first, b"2"), (second, b"2")], msg_id="w:3", new={first})
    await ready.store_batch([(second, b"2"), (second, b"3")], msg_id="w:3")
    stored = await ready.replay(streams.AUD, "llorch.aud.>")
    assert [message.data for message in stored] == [b"1", b"1", b"2", b"3"]


async def test_a_batch_that_cannot_be_stored_leaves_nothing(ready: Bus) -> None:
    with pytest.raises(BusError):
        await ready.store_batch([(ADMISSION, b"1"), (ADMISSION, b"2")])
    with pytest.raises(ValueError, match="at most 500"):
        await ready.store_batch([(subjects.audit("done", "t"), b"x")] * 501)
    assert (await ready.stream_state(ADM)).messages == 0


# reading


async def test_the_last_message_of_a_subject(ready: Bus) -> None:
    assert await ready.last(streams.RUN, subjects.run("t")) is None
    first = await ready.store(subjects.run("t"), b"1")
    second = await ready.store(subjects.run("t"), b"2", expect_seq=first.seq)
    last = await ready.last(streams.RUN, subjects.run("t"))
    assert last is not None
    assert (last.subject, last.data, last.seq, last.deleted) == (subjects.run("t"), b"2", second.seq, False)


async def test_reading_a_stream_that_is_not_there(ready: Bus) -> None:
    with pytest.raises(NoStream):
        await ready.last("NOPE", "x")
    with pytest.raises(NoStream):
        await ready.snapshot("NOPE", ">")
    with pytest.raises(NoStream):
        await ready.replay("NOPE", ">")
    with pytest.raises(NoStream):
        await ready.stream_state("NOPE")
    with pytest.raises(NoStream):
        await ready.consumer("NOPE", "c")
    with pytest.raises(NoStream):
        await ready.consumer(ADM, "nope")


async def test_a_snapshot_has_the_newest_of_each_subject_in_order(ready: Bus) -> None:
    for key, value in (("pool.a", b"1"), ("pool.b", b"1"), ("pool.a", b"2"), ("other", b"1")):
        await ready.store(subjects.spec(key), value)
    snapshot = await ready.snapshot(streams.SPEC, subjects.spec("pool.>"))
    assert [(subjects.spec_key(message.subject), message.data) for message in snapshot] == [
        ("pool.b", b"1"),
        ("pool.a", b"2"),
    ]
    assert [message.seq for message in snapshot] == [2, 3]


async def test_a_snapshot_of_nothing_is_empty(ready: Bus) -> None:
    assert list(await ready.snapshot(streams.REG, "$KV.REG.>")) == []
    assert list(await ready.replay(streams.REG, "$KV.REG.>")) == []


async def test_a_snapshot_beyond_what_the_server_gives_at_once(ready: Bus) -> None:
    await asyncio.gather(*(ready.store(subjects.run(f"t{number}"), b"%d" % number) for number in range(1500)))
    snapshot = await ready.snapshot(streams.RUN, subjects.ALL_RUNS)
    assert sorted(int(message.data) for message in snapshot) == list(range(1500))
    assert [message.seq for message in snapshot] == sorted(message.seq for message in snapshot)


async def test_a_replay_starts_and_ends_where_it_is_told(ready: Bus) -> None:
    await asyncio.gather(*(ready.store(subjects.run(f"t{number}"), b"") for number in range(1200)))
    assert [m.seq for m in await ready.replay(streams.RUN, subjects.ALL_RUNS)] == list(range(1, 1201))
    some = await ready.replay(streams.RUN, subjects.ALL_RUNS, from_seq=1100, limit=7)
    assert [message.seq for message in some] == list(range(1100, 1107))


async def test_a_replay_of_one_token_stream_among_many(ready: Bus) -> None:
    for number in range(20):
        ready.publish(subjects.tokens("gw-1", f"t{number % 4}"), b"%d" % number)
    await ready.flush()
    frames = await ready.replay(streams.TOK, subjects.tokens_of_task("t1"))
    assert [message.data for message in frames] == [b"1", b"5", b"9", b"13", b"17"]


async def test_a_walk_through_the_last_seconds(ready: Bus) -> None:
    subject = subjects.tokens("gw-1", "t1")
    for number in range(3):
        ready.publish(subject, b"%d" % number)
    await ready.flush()
    await asyncio.sleep(1.5)
    ready.publish(subject, b"3")
    await ready.flush()
    assert len(await ready.gather(streams.TOK, [subject], within_s=600)) == 4
    late = await ready.gather(streams.TOK, [subject], within_s=1)
    assert [m.data for m in late] in ([b"3"], []), "the last one only, unless this machine stood still"


async def test_several_subjects_are_read_in_one_walk(ready: Bus) -> None:
    wanted = [subjects.tokens("gw-1", f"t{number}") for number in range(3)]
    for round_ in range(2500):
        for subject in (*wanted, subjects.tokens("gw-1", "other")):
            ready.publish(subject, b"%d" % round_)
    while (await ready.stream_state(streams.TOK)).last_seq < 10_000:
        await asyncio.sleep(0.01)
    found = await ready.gather(streams.TOK, wanted)
    assert [(message.subject, message.data) for message in found] == [
        (subject, b"%d" % round_) for round_ in range(2500) for subject in wanted
    ]
    assert [message.seq for message in found[:4]] == [1, 2, 3, 5]
    assert await ready.gather(streams.TOK, [subjects.tokens("gw-1", "none")]) == []


async def test_who_asks_for_subjects_of_no_stream_is_told(ready: Bus) -> None:
    with pytest.raises(NoStream):
        await ready.gather("NONE", ["llorch.tok.gw-1.t1"])


async def test_a_stream_is_read_page_by_page(ready: Bus) -> None:
    sizes = [10, 600, 600, 3000, 10]
    for number, size in enumerate(sizes):
        ready.publish(subjects.tokens("gw-1", "t1"), b"%d" % number * size)
        ready.publish(subjects.tokens("gw-1", "other"), b"x")
    await ready.flush()
    read, seq, more, pages = [], 1, True, 0
    while more:
        page = await ready.page(streams.TOK, subjects.tokens("gw-1", "t1"), from_seq=seq, bytes_max=1000)
        read += [len(message.data) for message in page.messages]
        seq, more, pages = page.messages[-1].seq + 1, page.more, pages + 1
    assert (read, pages) == (sizes, 3)


async def test_the_state_of_a_stream(ready: Bus, queue: Consumer) -> None:
    await fill(ready, 3)
    await (await queue.fetch(1, 30))[0].ack()
    state = await ready.stream_state(ADM)
    assert (state.messages, state.first_seq, state.last_seq) == (2, 2, 3)


# durables


async def test_a_fetch_returns_what_is_there_without_waiting_for_more(ready: Bus, queue: Consumer) -> None:
    await fill(ready, 3)
    assert [d.message.data for d in await take(queue, 3, at_once=100)] == [b"0", b"1", b"2"]


async def test_a_fetch_takes_no_more_than_asked(ready: Bus, queue: Consumer) -> None:
    await fill(ready, 5)
    assert len(await take(queue, 5, at_once=2)) == 5


async def test_a_fetch_from_an_empty_queue_ends(queue: Consumer) -> None:
    assert list(await queue.fetch(10, 0.05)) == []
    assert list(await queue.fetch(10, 0)) == []


async def test_a_waiting_fetch_gets_a_message_at_once(ready: Bus, queue: Consumer) -> None:
    waiting = asyncio.create_task(queue.fetch(10, 30))
    await asyncio.sleep(0)
    await ready.store(ADMISSION, b"x")
    async with asyncio.timeout(30):
        assert [d.message.data for d in await waiting] == [b"x"]


async def test_a_cancelled_fetch_loses_nothing(ready: Bus, queue: Consumer) -> None:
    waiting = asyncio.create_task(queue.fetch(10, 30))
    await ready.flush()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await fill(ready, 3)
    got: list[bytes] = []
    async with asyncio.timeout(30):
        while len(got) < 3:
            got += [delivery.message.data for delivery in await queue.fetch(10, 1)]
    assert got == [b"0", b"1", b"2"]


async def test_a_delivery_knows_its_message(ready: Bus, queue: Consumer) -> None:
    stored = await ready.store(ADMISSION, b"x")
    delivery = (await queue.fetch(1, 30))[0]
    assert (delivery.message.subject, delivery.message.seq) == (ADMISSION, stored.seq)


async def test_an_acknowledged_message_is_gone(ready: Bus, queue: Consumer) -> None:
    await fill(ready, 5)
    await asyncio.gather(*(delivery.ack() for delivery in await take(queue, 5, at_once=1)))
    assert (await ready.stream_state(ADM)).messages == 0
    await queue.reset()
    assert list(await queue.fetch(5, 0.05)) == []


async def test_what_is_not_acknowledged_comes_again_after_a_reset(ready: Bus, other: Bus, queue: Consumer) -> None:
    await fill(ready, 5)
    held = await take(queue, 5, at_once=1)
    await held[1].ack()
    successor = await other.consumer(ADM, streams.SCHEDULER_DURABLE)
    await successor.reset()
    got: list[bytes] = []
    async with asyncio.timeout(30):
        while len(got) < 4:
            got += [delivery.message.data for delivery in await successor.fetch(10, 1)]
    assert sorted(got) == [b"0", b"2", b"3", b"4"]


async def test_an_ack_after_a_reset_is_not_confirmed(
    ready: Bus, queue: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llorch_shared.bus.nats_consumer.ACK_TIMEOUT_S", 0.3)
    await fill(ready, 1)
    held = await queue.fetch(1, 30)
    await queue.reset()
    with pytest.raises(Unanswered):
        await held[0].ack()


async def test_two_replicas_take_only_their_own_placements(ready: Bus) -> None:
    for replica in ("p-a-0", "p-b-0"):
        await ready.ensure(streams.placements("p", replica))
        await ready.store(subjects.placement("p", replica), replica.encode())
    for replica in ("p-a-0", "p-b-0"):
        consumer = await ready.consumer(streams.PLC, streams.placement_durable("p", replica))
        assert [delivery.message.data for delivery in await consumer.fetch(10, 30)] == [replica.encode()]


async def test_a_queue_deeper_than_the_usual_ack_limit_is_held_whole(ready: Bus) -> None:
    deep = PoolSpec(id="deep", engine=Engine.MOCK, model="m", queue=QueueSpec(capacity=2000))
    await ready.ensure(streams.admission(deep))
    await asyncio.gather(*(ready.store(subjects.admission("deep", "batch", "t"), b"x") for _ in range(1500)))
    consumer = await ready.consumer(streams.admission_stream("deep", Priority.BATCH), streams.SCHEDULER_DURABLE)
    held = 0
    async with asyncio.timeout(30):
        while held < 1500:
            held += len(await consumer.fetch(500, 2))


# signals and requests


async def test_a_subscription_is_in_effect_when_it_returns(bus: Bus, other: Bus) -> None:
    seen: list[Message] = []
    await bus.subscribe("signal.*", seen.append)
    other.publish("signal.a", b"1", {"X": "y"})
    other.publish("signal.a.deeper", b"2")
    other.publish("signal.b", b"3")
    await eventually(lambda: len(seen) == 2)
    assert [(m.subject, m.data, dict(m.headers), m.seq) for m in seen] == [
        ("signal.a", b"1", {"X": "y"}, 0),
        ("signal.b", b"3", {}, 0),
    ]


async def test_a_tail_gets_every_frame_in_order(bus: Bus, other: Bus) -> None:
    seen: list[tuple[bytes, bytes]] = []
    await bus.tail(subjects.tokens_of_lane("gw-1"), lambda subject, data: seen.append((subject, data)))
    for number in range(5000):
        other.publish(subjects.tokens("gw-1", f"t{number % 7}"), b"%d" % number)
    other.publish(subjects.tokens("gw-2", "t"), b"not for this lane")
    await other.flush()
    await eventually(lambda: len(seen) >= 5000)
    assert [int(data) for _, data in seen] == list(range(5000))
    assert seen[8][0] == b"llorch.tok.gw-1.t1"


async def test_a_tail_gets_the_payload_of_a_message_with_headers(bus: Bus, other: Bus) -> None:
    seen: list[bytes] = []
    await bus.tail("signal", lambda _, data: seen.append(data))
    other.publish("signal", b"with", {"X": "y"})
    other.publish("signal", b"without")
    await eventually(lambda: seen == [b"with", b"without"])


async def test_a_closed_subscription_is_silent(bus: Bus, other: Bus) -> None:
    seen: list[bytes] = []
    first = await bus.tail("signal", lambda _, data: seen.append(data))
    await bus.subscribe("signal", lambda message: seen.append(b"2:" + message.data))
    await first.close()
    await first.close()
    other.publish("signal", b"x")
    await eventually(lambda: seen == [b"2:x"])


async def test_a_handler_that_raises_does_not_stop_the_reader(bus: Bus, other: Bus) -> None:
    seen: list[bytes] = []

    def raising(_: bytes, data: bytes) -> None:
        seen.append(data)
        raise RuntimeError("a mistake in a handler")

    def raising_too(_: Message) -> None:
        raise RuntimeError("another")

    await bus.subscribe("signal", raising_too)
    await bus.tail("signal", raising)
    other.publish("signal", b"1")
    other.publish("signal", b"2")
    await eventually(lambda: seen == [b"1", b"2"])
    assert bus.connected


async def test_a_large_frame_arrives_whole(bus: Bus, other: Bus) -> None:
    seen: list[bytes] = []
    await bus.tail("signal", lambda _, data: seen.append(data))
    frames = [bytes([number]) * (1024 * 1024 - number) for number in range(4)] + [b"", b"\r\nMSG signal 1 5\r\n"]
    for frame in frames:
        other.publish("signal", frame)
    await eventually(lambda: len(seen) == len(frames))
    assert seen == frames


async def test_a_request_is_answered(bus: Bus, other: Bus) -> None:
    async def shout(message: Message) -> tuple[bytes, Mapping[str, str]]:
        return message.data.upper(), {"Echo": message.headers["X"]}

    await other.serve("shout", shout)
    answer = await bus.request("shout", b"hello", headers={"X": "1"}, timeout_s=20)
    assert (answer.data, answer.headers["Echo"]) == (b"HELLO", "1")


async def test_nobody_answers_a_request(bus: Bus) -> None:
    with pytest.raises(NoResponder):
        await bus.request("nobody", b"", timeout_s=20)


async def test_a_responder_that_fails_leaves_its_caller_unanswered_and_goes_on(bus: Bus, other: Bus) -> None:
    async def fussy(message: Message) -> tuple[bytes, Mapping[str, str]]:
        if message.data == b"bad":
            raise RuntimeError("no")
        return b"ok", {}

    await other.serve("fussy", fussy)
    with pytest.raises(Unanswered):
        await bus.request("fussy", b"bad", timeout_s=0.1)
    assert (await bus.request("fussy", b"good", timeout_s=20)).data == b"ok"


async def test_a_responder_that_has_no_answer_to_give_alarms_nobody(
    bus: Bus, other: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    async def silent(_: Message) -> tuple[bytes, Mapping[str, str]]:
        raise Unanswered("somebody else knows")

    await other.serve("silent", silent)
    with caplog.at_level("INFO"), pytest.raises(Unanswered):
        await bus.request("silent", b"", timeout_s=0.1)
    said = [record for record in caplog.records if "silent" in record.getMessage()]
    assert [(record.levelname, record.exc_info) for record in said] == [("INFO", None)]


async def test_requests_are_answered_side_by_side_within_the_limit(bus: Bus, other: Bus) -> None:
    running = most = 0
    together = asyncio.Event()

    async def slow(_: Message) -> tuple[bytes, Mapping[str, str]]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            together.set()
        await together.wait()
        running -= 1
        return b"", {}

    await other.serve("slow", slow, concurrency=3)
    await asyncio.gather(*(bus.request("slow", b"", timeout_s=30) for _ in range(12)))
    assert most == 3


async def test_a_queue_of_responders_answers_each_request_once(world: World, bus: Bus) -> None:
    answered = [0, 0]
    for number in range(2):
        member = await world.connect(f"member{number}")

        async def answer(_: Message, number: int = number) -> tuple[bytes, Mapping[str, str]]:
            answered[number] += 1
            return b"", {}

        await member.serve("shared", answer, queue="workers")
    await asyncio.gather(*(bus.request("shared", b"", timeout_s=20) for _ in range(100)))
    assert sum(answered) == 100
    assert min(answered) > 0


# buckets


async def test_an_expired_key_leaves_a_marker_that_subscribers_see(ready: Bus, other: Bus) -> None:
    seen: list[Message] = []
    await other.subscribe(subjects.ALL_REGISTRY_LIVE, seen.append)
    stored = await ready.store(NODE, b"alive", ttl_s=1)
    await eventually(lambda: len(seen) == 2)
    assert [(subjects.registry_key(m.subject), m.data, m.deleted) for m in seen] == [
        ("node.a", b"alive", False),
        ("node.a", b"", True),
    ]
    assert seen[0].seq == stored.seq
    last = await ready.last(streams.REG, NODE)
    assert last is not None
    assert (last.deleted, last.seq) == (True, seen[1].seq)
    assert [message.deleted for message in await ready.snapshot(streams.REG, "$KV.REG.>")] == [True]
    with pytest.raises(WrongSequence):
        await ready.store(NODE, b"back", expect_seq=0)
    await ready.store(NODE, b"back", expect_seq=last.seq)


async def test_a_renewed_key_does_not_expire(ready: Bus) -> None:
    seen: list[Message] = []
    await ready.subscribe(subjects.ALL_REGISTRY_LIVE, seen.append)
    first = await ready.store(NODE, b"1", ttl_s=1)
    await ready.store(NODE, b"2", ttl_s=60, expect_seq=first.seq)
    await ready.store(subjects.registry("clock"), b"", ttl_s=1)
    await eventually(lambda: any(message.deleted for message in seen))
    last = await ready.last(streams.REG, NODE)
    assert last is not None
    assert last.data == b"2"


async def test_a_deleted_key_is_a_marker(ready: Bus) -> None:
    await ready.store(NODE, b"1")
    await ready.store(NODE, b"", headers={"KV-Operation": "DEL"})
    last = await ready.last(streams.REG, NODE)
    assert last is not None
    assert last.deleted


async def test_a_time_to_live_needs_a_stream_that_allows_it_and_a_second(ready: Bus) -> None:
    with pytest.raises(BusError):
        await ready.store(subjects.run("t"), b"x", ttl_s=1)
    with pytest.raises(BusError):
        await ready.store(NODE, b"x", ttl_s=0.5)


async def test_a_republished_run_has_its_sequence(ready: Bus, other: Bus) -> None:
    seen: list[Message] = []
    await other.subscribe(subjects.ALL_RUNS_LIVE, seen.append)
    stored = await ready.store(subjects.run("t"), b"1", expect_seq=0)
    with pytest.raises(WrongSequence):
        await ready.store(subjects.run("t"), b"refused", expect_seq=0)
    await ready.store(subjects.cancel("t"), b"not a run")
    second = await ready.store(subjects.run("t"), b"2", expect_seq=stored.seq)
    await eventually(lambda: len(seen) == 2)
    assert [(m.subject, m.data, m.seq) for m in seen] == [
        ("llorch.live.run.t", b"1", stored.seq),
        ("llorch.live.run.t", b"2", second.seq),
    ]


async def test_a_core_subscriber_also_sees_what_the_stream_refused(ready: Bus, other: Bus) -> None:
    seen: list[bytes] = []
    await other.subscribe(subjects.run("t"), lambda message: seen.append(message.data))
    await ready.store(subjects.run("t"), b"stored", expect_seq=0)
    with pytest.raises(WrongSequence):
        await ready.store(subjects.run("t"), b"refused", expect_seq=0)
    await eventually(lambda: seen == [b"stored", b"refused"])


# topology


async def test_ensuring_twice_changes_nothing(ready: Bus, other: Bus) -> None:
    await fill(ready, 2)
    await ready.ensure(BASE)
    await other.ensure(streams.admission(POOL))
    assert (await ready.stream_state(ADM)).messages == 2


async def test_a_smaller_queue_keeps_large_tasks_it_has_taken(ready: Bus) -> None:
    for _ in range(5):
        await ready.store(ADMISSION, b"x" * 1_000_000)
    await ready.ensure(streams.admission(PoolSpec(id="p", engine=Engine.MOCK, model="m", queue=QueueSpec(capacity=1))))
    assert (await ready.stream_state(ADM)).messages == 5
    with pytest.raises(Full):
        await ready.store(ADMISSION, b"x")


async def test_fifteen_of_one_tenant_with_room_for_ten_refuses_exactly_five(bus: Bus, other: Bus) -> None:
    await bus.ensure(streams.admission(bounded(10)))
    outcomes = await asyncio.gather(
        *(each.store(ADMISSION, b"x") for each in (bus, other, bus) for _ in range(5)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes].count(SubjectFull) == 5
    assert sum(isinstance(outcome, Stored) for outcome in outcomes) == 10
    await bus.store(subjects.admission("p", "batch", "other"), b"x")


@pytest.mark.parametrize("before", [10, None])
async def test_a_lowered_bound_of_a_tenant_deletes_nothing_that_was_accepted(bus: Bus, before: int | None) -> None:
    await bus.ensure(streams.admission(bounded(before)))
    await fill(bus, 10)
    for capacity in (3, 9):
        await bus.ensure(streams.admission(bounded(capacity)))
        assert (await bus.stream_state(ADM)).messages == 10
    held = await bus.replay(ADM, ">")
    assert [message.data for message in held] == [b"%d" % number for number in range(10)]


@pytest.mark.parametrize("after", [12, None])
async def test_a_raised_bound_of_a_tenant_is_in_effect_at_once(bus: Bus, after: int | None) -> None:
    await bus.ensure(streams.admission(bounded(10)))
    await fill(bus, 10)
    with pytest.raises(SubjectFull):
        await bus.store(ADMISSION, b"x")
    await bus.ensure(streams.admission(bounded(after)))
    await bus.store(ADMISSION, b"x")
    await bus.store(ADMISSION, b"x")


async def test_many_pools_fit_into_one_server(ready: Bus) -> None:
    for number in range(16):
        await ready.ensure(streams.admission(PoolSpec(id=f"pool-{number}", engine=Engine.MOCK, model="m")))


async def test_many_services_ensure_at_once(world: World) -> None:
    buses = [await world.connect(f"service{number}") for number in range(6)]
    await asyncio.gather(*(bus.ensure(BASE) for bus in buses))
    await asyncio.gather(*(bus.ensure(streams.admission(POOL)) for bus in buses))
    assert (await buses[0].stream_state(ADM)).messages == 0


async def test_a_queue_can_grow_and_shrink_and_keeps_what_it_holds(ready: Bus) -> None:
    await fill(ready, 5)
    for capacity in (3, 7):
        await ready.ensure(
            streams.admission(PoolSpec(id="p", engine=Engine.MOCK, model="m", queue=QueueSpec(capacity=capacity)))
        )
        assert (await ready.stream_state(ADM)).messages == 5
    await ready.store(ADMISSION, b"6")
    await ready.store(ADMISSION, b"7")
    with pytest.raises(Full):
        await ready.store(ADMISSION, b"8")


async def test_a_stream_that_cannot_become_what_is_wanted_is_an_error(ready: Bus) -> None:
    config = {"name": "TOK", "subjects": ["llorch.tok.*.*"], "storage": "file"}
    with pytest.raises(BusError):
        await ready.ensure(Topology(streams=(Stream(name="TOK", config=config),)))


async def test_a_stream_that_an_earlier_release_made_on_disk_stays_there(bus: Bus) -> None:
    early = {"name": "TOK", "subjects": ["llorch.tok.*.*"], "storage": "file"}
    await bus.ensure(Topology(streams=(Stream(name="TOK", config=early),)))
    for _ in range(2):
        await bus.ensure(BASE)
    assert (await bus.stream_state(streams.TOK)).messages == 0


async def test_a_durable_of_a_missing_stream_is_an_error(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llorch_shared.bus.nats_topology.ENSURE_WAIT_S", 0.1)
    with pytest.raises(BusError):
        await bus.ensure(Topology(durables=(Durable(stream="NOPE", name="c", config={"durable_name": "c"}),)))


# the connection


async def test_a_connection_that_stands_has_no_problem(bus: Bus) -> None:
    assert bus.connected
    assert bus.problem == ""


async def test_closing_sends_what_was_published_and_may_be_repeated(world: World, bus: Bus) -> None:
    seen: list[Message] = []
    await bus.subscribe("farewell", seen.append)
    leaving = await world.connect("leaving")
    leaving.publish("farewell", b"x")
    await leaving.close()
    await leaving.close()
    assert not leaving.connected
    with pytest.raises(Unanswered):
        await leaving.store(ADMISSION, b"x", timeout_s=60)
    await eventually(lambda: len(seen) == 1)


async def test_a_restart_of_the_server_is_told_and_healed(world: World, ready: Bus) -> None:
    told: list[str] = []
    back = asyncio.Event()

    async def returned() -> None:
        await ready.stream_state(streams.TOK)
        told.append("returned")
        back.set()

    ready.on_disconnect(lambda: told.append(ready.problem))
    ready.on_reconnect(returned)
    frames: list[bytes] = []
    await ready.tail(subjects.tokens_of_lane("gw-1"), lambda _, data: frames.append(data))
    await fill(ready, 3)
    await ready.store(NODE, b"x")
    world.kill()
    await eventually(lambda: told == ["disconnected"])
    ready.publish(subjects.tokens("gw-1", "t"), b"dropped")
    assert not ready.connected
    world.start()
    async with asyncio.timeout(30):
        await back.wait()
    assert told == ["disconnected", "returned"]
    assert ready.problem == ""
    assert (await ready.stream_state(ADM)).messages == 3
    assert (await ready.stream_state(streams.TOK)).messages == 0
    ready.publish(subjects.tokens("gw-1", "t"), b"seen")
    await eventually(lambda: frames == [b"seen"])


async def test_a_store_waits_for_the_connection_and_then_happens(world: World, ready: Bus) -> None:
    world.kill()
    await eventually(lambda: not ready.connected)
    with pytest.raises(Unanswered):
        await ready.store(ADMISSION, b"x", msg_id="a", timeout_s=0.05)
    waiting = asyncio.create_task(ready.store(ADMISSION, b"x", msg_id="a", timeout_s=30))
    await asyncio.sleep(0)
    world.start()
    assert (await waiting).seq == 1


async def test_a_forgotten_topology_is_not_ensured_again(world: World, ready: Bus) -> None:
    back = asyncio.Event()

    async def returned() -> None:
        back.set()

    ready.on_reconnect(returned)
    await ready.forget(BASE)
    world.kill()
    await eventually(lambda: not ready.connected)
    world.start()
    async with asyncio.timeout(30):
        await back.wait()
    with pytest.raises(NoStream):
        await ready.stream_state(streams.TOK)


async def test_a_fetch_in_flight_survives_a_restart(world: World, ready: Bus, queue: Consumer) -> None:
    waiting = asyncio.create_task(queue.fetch(10, 30))
    await ready.flush()
    world.kill()
    await eventually(lambda: not ready.connected)
    world.start()
    await becomes_true(lambda: stored(ready))
    async with asyncio.timeout(30):
        assert [delivery.message.data for delivery in await waiting] == [b"after"]


async def stored(bus: Bus) -> bool:
    try:
        await bus.store(ADMISSION, b"after", msg_id="after")
    except BusError:
        return False
    return True
