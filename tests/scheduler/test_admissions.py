"""How a term learns what waits: the whole backlog is handed over before it is called read."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest

from llorch_scheduler.admission_queue import Queue
from llorch_scheduler.admissions import Admissions
from llorch_scheduler.core.events import AdmissionRef, BacklogRead, Event, TaskArrived
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Consumer, Delivery, Unanswered
from llorch_shared.dead_letters import DeadLetters
from llorch_shared.errors import ErrorCode
from llorch_shared.wire.task import Priority
from scheduler.world import pool_spec, request
from support.bus_worlds import MemoryWorld, eventually

QUEUE = streams.admission_stream("p1", Priority.INTERACTIVE)


class SlowServer:
    """Gives nothing for the first few fetches, as a busy server does."""

    def __init__(self, consumer: Consumer, silent: int) -> None:
        self._consumer = consumer
        self._silent = silent

    async def fetch(self, limit: int, wait_s: float) -> Sequence[Delivery]:
        if self._silent:
            self._silent -= 1
            await asyncio.sleep(0)
            return []
        return await self._consumer.fetch(min(limit, 2), wait_s)

    async def reset(self) -> None:
        await self._consumer.reset()

    async def close(self) -> None:
        await self._consumer.close()


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    one = await MemoryWorld().connect()
    await one.ensure(streams.base())
    await one.ensure(streams.admission(pool_spec()))
    yield one
    await one.close()


async def admit(bus: Bus, count: int) -> list[str]:
    tasks = [request() for _ in range(count)]
    for task in tasks:
        await bus.store(subjects.admission("p1", "interactive", "default"), msgspec.json.encode(task))
    return [task.task_id for task in tasks]


async def reading(bus: Bus) -> tuple[Admissions, Queue, asyncio.Task[None]]:
    async def put(_: Sequence[Event]) -> None: ...

    dead = DeadLetters(bus, actor="scheduler/test")
    admissions = Admissions(bus, dead, put=put, now_ms=lambda: 1, going=lambda: True)
    queue = admissions.queues[QUEUE] = Queue(pool_spec(), "p1", Priority.INTERACTIVE)
    return admissions, queue, asyncio.create_task(admissions.pull(queue))


class LosingServer(SlowServer):
    """Delivers all but one message, once."""

    def __init__(self, consumer: Consumer, lost_seq: int) -> None:
        super().__init__(consumer, 0)
        self._lost_seq = lost_seq

    async def fetch(self, limit: int, wait_s: float) -> Sequence[Delivery]:
        return [each for each in await super().fetch(limit, wait_s) if each.message.seq != self._lost_seq]


@pytest.mark.parametrize("lost_seq", [1, 2, 3])
async def test_a_delivery_that_reached_nobody_is_found_when_it_is_the_oldest(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, lost_seq: int
) -> None:
    monkeypatch.setattr("llorch_scheduler.admissions.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("llorch_scheduler.admissions.FETCH_WAIT_S", 0.01)
    events: list[Event] = []

    async def put(some: Sequence[Event]) -> None:
        events.extend(some)

    make, made = bus.consumer, 0

    async def losing(stream: str, durable: str) -> SlowServer:
        nonlocal made
        made += 1
        return LosingServer(await make(stream, durable), lost_seq if made == 1 else 0)

    bus.consumer = losing  # type: ignore[method-assign,assignment]
    wanted = await admit(bus, 3)
    admissions = Admissions(
        bus, DeadLetters(bus, actor="scheduler/test"), put=put, now_ms=lambda: 1, going=lambda: True
    )
    queue = admissions.queues[QUEUE] = Queue(pool_spec(), "p1", Priority.INTERACTIVE)
    queue.backlog_read = True
    pulling = asyncio.create_task(admissions.pull(queue))
    await eventually(lambda: len(queue.held) == 2, 15)
    for seq in [seq for seq in queue.held if seq != lost_seq]:
        await admissions.ack(AdmissionRef(QUEUE, seq))
    await eventually(lambda: lost_seq in queue.held, 15)
    pulling.cancel()
    await asyncio.wait({pulling})
    assert {event.task_id for event in events if isinstance(event, TaskArrived)} == set(wanted)
    assert made == 2


async def test_nobody_is_told_that_a_task_is_unknown_while_one_was_not_read(bus: Bus) -> None:
    async def put(_: Sequence[Event]) -> None: ...

    make, lost = bus.consumer, [2, 0]

    async def losing(stream: str, durable: str) -> SlowServer:
        return LosingServer(await make(stream, durable), lost.pop(0))

    bus.consumer = losing  # type: ignore[method-assign,assignment]
    await admit(bus, 3)
    for knows_all in (False, True):
        admissions = Admissions(
            bus, DeadLetters(bus, actor="scheduler/test"), put=put, now_ms=lambda: 1, going=lambda: True
        )
        queue = admissions.queues[QUEUE] = Queue(pool_spec(), "p1", Priority.INTERACTIVE)
        pulling = asyncio.create_task(admissions.pull(queue))
        await eventually(lambda queue=queue: queue.pulled_seq == 3, 15)
        assert await admissions.caught_up(15 if knows_all else 0.1) is knows_all
        pulling.cancel()
        await asyncio.wait({pulling})


class LateWord:
    """A delivery whose acknowledgement has reached the server, which has not said so yet."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self.message = delivery.message
        self.reached, self.said = asyncio.Event(), asyncio.Event()

    async def ack(self) -> None:
        await self._delivery.ack()
        self.reached.set()
        await self.said.wait()


async def test_nobody_is_told_that_a_task_is_unknown_while_another_one_is_acknowledged(bus: Bus) -> None:
    admissions, queue, pulling = await reading(bus)
    await admit(bus, 1)
    await eventually(lambda: queue.pulled_seq == 1, 15)
    pulling.cancel()
    await asyncio.wait({pulling})
    late = LateWord(queue.held[1])
    queue.held[1] = late  # type: ignore[assignment]
    acknowledging = asyncio.create_task(admissions.ack(AdmissionRef(QUEUE, 1)))
    await late.reached.wait()
    await admit(bus, 1)
    assert not await admissions.caught_up(0.1)
    pulling = asyncio.create_task(admissions.pull(queue))
    assert await admissions.caught_up(15)
    assert 2 in queue.held
    late.said.set()
    await acknowledging
    pulling.cancel()
    await asyncio.wait({pulling})


async def test_what_an_earlier_term_has_acknowledged_is_not_waited_for(bus: Bus) -> None:
    _, queue, pulling = await reading(bus)
    await admit(bus, 2)
    await eventually(lambda: queue.pulled_seq == 2, 15)
    await queue.held[2].ack()
    pulling.cancel()
    await asyncio.wait({pulling})
    later, queue, pulling = await reading(bus)
    assert await later.caught_up(15)
    assert queue.pulled_seq == 1
    pulling.cancel()
    await asyncio.wait({pulling})


async def test_a_task_that_cannot_be_read_is_told_again_when_nobody_took_it(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its letter must not keep it from being read again."""
    monkeypatch.setattr("llorch_scheduler.admissions._RETRY_S", 0.01)
    events: list[Event] = []
    refused = 0

    async def put(some: Sequence[Event]) -> None:
        nonlocal refused
        if not refused and any(isinstance(event, TaskArrived) for event in some):
            refused += 1
            raise Unanswered("the accounts of sessions cannot be asked")
        events.extend(some)

    task = msgspec.to_builtins(request()) | {"max_tokens": "many"}
    await bus.store(subjects.admission("p1", "interactive", "default"), msgspec.json.encode(task))
    admissions = Admissions(
        bus, DeadLetters(bus, actor="scheduler/test"), put=put, now_ms=lambda: 1, going=lambda: True
    )
    queue = admissions.queues[QUEUE] = Queue(pool_spec(), "p1", Priority.INTERACTIVE)
    pulling = asyncio.create_task(admissions.pull(queue))
    await eventually(lambda: any(isinstance(event, TaskArrived) for event in events), 15)
    pulling.cancel()
    await asyncio.wait({pulling})
    assert queue.unset == {1: False}


async def pulled(bus: Bus, *, silent: int = 0) -> list[Event]:
    """Everything that was handed over until the backlog was called read."""
    events: list[Event] = []

    async def put(some: Sequence[Event]) -> None:
        events.extend(some)

    make = bus.consumer

    async def slow(stream: str, durable: str) -> SlowServer:
        return SlowServer(await make(stream, durable), silent)

    bus.consumer = slow  # type: ignore[method-assign]
    admissions = Admissions(
        bus, DeadLetters(bus, actor="scheduler/test"), put=put, now_ms=lambda: 1, going=lambda: True
    )
    queue = admissions.queues[QUEUE] = Queue(pool_spec(), "p1", Priority.INTERACTIVE)
    pulling = asyncio.create_task(admissions.pull(queue))
    await eventually(lambda: bool(events) and isinstance(events[-1], BacklogRead))
    pulling.cancel()
    await asyncio.wait({pulling})
    return events


async def test_a_slow_server_is_not_taken_for_the_end_of_the_backlog(bus: Bus) -> None:
    tasks = await admit(bus, 9)
    *arrived, read = await pulled(bus, silent=5)
    assert [event.task_id for event in arrived if isinstance(event, TaskArrived)] == tasks
    assert isinstance(read, BacklogRead)
    assert read.last_seq == 9


async def test_a_backlog_whose_end_is_gone_is_read_all_the_same(bus: Bus) -> None:
    tasks = await admit(bus, 4)
    consumer = await bus.consumer(QUEUE, streams.SCHEDULER_DURABLE)
    deliveries = await consumer.fetch(10, 0.1)
    await deliveries[-1].ack()
    *arrived, read = await pulled(bus)
    assert [event.task_id for event in arrived if isinstance(event, TaskArrived)] == tasks[:3]
    assert isinstance(read, BacklogRead)


@pytest.mark.parametrize(
    ("wish", "label"),
    [
        ({"mode": "pin", "pin_pool_id": "p1"}, "fits"),
        ({"mode": "prefer", "prefer_pools": ("other",)}, "fits"),
        ({"require_device_mask": "cuda:0"}, "fits"),
        ({"mode": "pin", "pin_pool_id": "other"}, "pinned_pool_infeasible"),
        ({"mode": "pin"}, "pinned_pool_infeasible"),
        ({"mode": "prefer", "prefer_pools": ("other",), "allow_fallback": False}, "no_preferred_feasible"),
        ({"avoid_pools": ("other", "p1")}, None),
    ],
)
async def test_a_task_in_a_queue_that_its_client_does_not_want_is_refused_as_at_the_gateway(
    bus: Bus, wish: dict[str, object], label: str | None
) -> None:
    task = msgspec.to_builtins(request()) | {"placement": wish}
    await bus.store(subjects.admission("p1", "interactive", "default"), msgspec.json.encode(task))
    arrived = (await pulled(bus))[0]
    assert isinstance(arrived, TaskArrived)
    told = arrived.problem
    if label == "fits":
        assert told is None
    else:
        assert told is not None
        assert (told.code, told.policy_label) == (ErrorCode.INVALID_PARAMS, label)


async def test_an_empty_queue_is_read_at_once(bus: Bus) -> None:
    assert len(await pulled(bus)) == 1
