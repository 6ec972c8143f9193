"""A small world around a scheduler: a client that admits and reads, a node that claims and ends."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from llorch_scheduler.core.limits import Limits
from llorch_scheduler.service import Scheduler
from llorch_shared import streams, subjects
from llorch_shared.bus.port import (
    Bus,
    BusError,
    Consumer,
    Delivery,
    Message,
    NoStream,
    Stored,
    Unanswered,
    WrongSequence,
)
from llorch_shared.lifecycle import Stop
from llorch_shared.metrics import Metrics
from llorch_shared.settings import SchedulerSettings, Settings
from llorch_shared.states import FINAL
from llorch_shared.wire.policy import QueueSpec
from llorch_shared.wire.registry import ReplicaRecord, ReplicaState
from llorch_shared.wire.run import PLACEMENT_DECODER, RUN_DECODER, CancelRequest, Placement, RunRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority, TaskRequest, TaskState, Workload
from support.bus_worlds import World

MODEL = "mock:words"


def pool_spec(pool_id: str = "p1", *, capacity: int = 64) -> PoolSpec:
    return PoolSpec(id=pool_id, engine=Engine.MOCK, model=MODEL, ctx=4096, queue=QueueSpec(capacity=capacity))


def request(task_id: str = "", **fields: Any) -> TaskRequest:
    values: dict[str, Any] = {
        "task_id": task_id or str(uuid.uuid4()),
        "session_id": str(uuid.uuid4()),
        "workload": Workload.COMPLETION,
        "model_ref": MODEL,
        "engine": Engine.MOCK,
        "ctx": 512,
        "priority": Priority.INTERACTIVE,
        "max_tokens": 16,
        "deadline_ms": 600_000,
        "prompt": "one two three",
    }
    return TaskRequest(**{**values, **fields})


class Client:
    """Admits, cancels and looks."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.finals: dict[str, list[TaskState]] = {}
        self.frames: dict[str, list[bytes]] = {}
        self.loads: list[bytes] = []

    async def start(self) -> None:
        await self.bus.subscribe(subjects.ALL_RUNS_LIVE, lambda message: self._run(message.data))
        await self.bus.subscribe(
            subjects.tokens_of_lane("gw-1"),
            lambda message: self.frames.setdefault(subjects.last_token(message.subject), []).append(message.data),
        )
        await self.bus.subscribe(subjects.ALL_LOADS, lambda message: self.loads.append(message.data))

    def _run(self, data: bytes) -> None:
        record = RUN_DECODER.decode(data)
        if record.state in FINAL:
            self.finals.setdefault(record.task_id, []).append(record.state)

    async def want(self, spec: PoolSpec) -> None:
        await self.bus.store(subjects.spec(subjects.pool_key(spec.id)), msgspec.json.encode(spec))

    async def admit(self, task: TaskRequest, *, pool: str = "p1", lane: str = "gw-1") -> Stored:
        """As a gateway does it; waits for a stream that is still being made."""
        return await self.publish(pool, task.priority, msgspec.json.encode(task), lane=lane, msg_id=task.task_id)

    async def publish(
        self, pool: str, priority: str, data: bytes, *, lane: str = "gw-1", msg_id: str = "", deadline_s: float = 10
    ) -> Stored:
        async with asyncio.timeout(deadline_s):
            while True:
                try:
                    return await self.bus.store(
                        subjects.admission(pool, priority, "default"),
                        data,
                        msg_id=msg_id,
                        headers={subjects.LANE_HEADER: lane} if lane else {},
                    )
                except (NoStream, Unanswered):
                    await asyncio.sleep(0.02)

    async def cancel(self, task_id: str) -> None:
        data = msgspec.json.encode(CancelRequest(task_id=task_id))
        await self.bus.store(subjects.cancel(task_id), data)
        self.bus.publish(subjects.cancel_signal(task_id), data)

    async def run_of(self, task_id: str) -> RunRecord | None:
        message = await self.bus.last(streams.RUN, subjects.run(task_id))
        return RUN_DECODER.decode(message.data) if message else None

    async def audited(self, task_id: str) -> list[str]:
        messages = await self.bus.replay(streams.AUD, f"llorch.aud.*.{task_id}")
        return [message.subject.split(".")[2] for message in messages]


class Node:
    """One replica: claims placements by compare-and-set, holds them, ends them when told (or at once)."""

    def __init__(
        self,
        bus: Bus,
        *,
        replica: str = "p1-node-1-0",
        pool: str = "p1",
        slots: int = 2,
        name: str = "node-1",
        ttl_s: float = 3,
        model: str = MODEL,
        takes_ahead: bool = True,
        hears_ahead: bool = True,
    ) -> None:
        """`takes_ahead` false: of the release before. `hears_ahead` false: it misses the signals."""
        self.model = model
        self.takes_ahead = takes_ahead
        self.hears_ahead = takes_ahead and hears_ahead
        self.bus, self.pool, self.replica, self.slots = bus, pool, replica, slots
        self.name, self.ttl_s = name, ttl_s
        self.incarnation = uuid.uuid4().hex[:8]
        self.state = ReplicaState.READY
        self.claims: list[str] = []
        self.held: dict[str, tuple[RunRecord, int]] = {}
        self.held_max = 0
        self.ends_at_once = False
        self.claiming = True
        self.placements: list[Placement] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._taken: asyncio.Queue[tuple[Placement, Delivery | None]] = asyncio.Queue()

    async def start(self) -> None:
        await self.bus.ensure(streams.placements(self.pool, self.replica))
        if self.hears_ahead:
            await self.bus.subscribe(subjects.placement_ahead(self.name), self._signalled)
        self._tasks = [asyncio.create_task(each()) for each in (self._pull, self._take, self._report)]
        await self.report()

    async def _pull(self) -> None:
        while True:
            with contextlib.suppress(BusError):
                consumer: Consumer = await self.bus.consumer(
                    streams.PLC, streams.placement_durable(self.pool, self.replica)
                )
                await consumer.reset()
                while True:
                    for delivery in await consumer.fetch(100, 1.0):
                        self._placed(PLACEMENT_DECODER.decode(delivery.message.data), delivery)
            await asyncio.sleep(0.05)

    def _signalled(self, message: Message) -> None:
        placement = PLACEMENT_DECODER.decode(message.data)
        if placement.run.replica_id == self.replica:
            self._placed(placement, None)

    def _placed(self, placement: Placement, delivery: Delivery | None) -> None:
        self.placements.append(placement)
        if self.claiming:
            self._taken.put_nowait((placement, delivery))

    async def _take(self) -> None:
        """In the order in which they came."""
        while True:
            placement, delivery = await self._taken.get()
            with contextlib.suppress(BusError):
                with contextlib.suppress(WrongSequence):
                    await self._claim(placement)
                if delivery is not None:
                    await delivery.ack()

    async def _claim(self, placement: Placement) -> None:
        record = msgspec.structs.replace(
            placement.run,
            state=TaskState.RUNNING,
            node_id=self.name,
            incarnation=self.incarnation,
            started_ms=time.time_ns() // 1_000_000,
        )
        try:
            seq = await self._cas(record, placement.run_seq)
        except WrongSequence:
            if placement.run_seq:
                raise
            seq = await self._cas(record, await self._stands(placement))
        self.claims.append(record.task_id)
        self.held[record.task_id] = (record, seq)
        self.held_max = max(self.held_max, len(self.held))
        if self.ends_at_once:
            await self.end(record.task_id)

    async def _stands(self, placement: Placement) -> int:
        """Raises WrongSequence where somebody else wrote."""
        message = await self.bus.last(streams.RUN, subjects.run(placement.run.task_id))
        with contextlib.suppress(msgspec.DecodeError):
            if message is not None and RUN_DECODER.decode(message.data) == placement.run:
                return message.seq
        raise WrongSequence("the run record is another")

    async def _cas(self, record: RunRecord, seq: int) -> int:
        while True:
            try:
                stored = await self.bus.store(
                    subjects.run(record.task_id), msgspec.json.encode(record), expect_seq=seq, timeout_s=1
                )
                return stored.seq
            except WrongSequence:
                message = await self.bus.last(streams.RUN, subjects.run(record.task_id))
                if message is not None and message.data == msgspec.json.encode(record):
                    return message.seq
                raise
            except BusError:
                await asyncio.sleep(0.05)

    async def end(self, task_id: str) -> bool:
        """False when somebody else has the task by now."""
        record, seq = self.held.pop(task_id)
        final = msgspec.structs.replace(record, state=TaskState.DONE, finish_reason="stop", request=None)
        try:
            await self._cas(final, seq)
        except WrongSequence:
            return False
        return True

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            with contextlib.suppress(BusError):
                await self.report()

    async def report(self) -> None:
        record = ReplicaRecord(
            replica_id=self.replica,
            pool_id=self.pool,
            node_id=self.name,
            incarnation=self.incarnation,
            state=self.state,
            engine=Engine.MOCK,
            model_ref=self.model,
            slots_total=self.slots,
            active=tuple(self.held),
            ctx_max=4096,
            live=True,
            takes_ahead=self.takes_ahead,
            heartbeat_ms=time.time_ns() // 1_000_000,
        )
        key = subjects.replica_key(self.name, self.replica)
        await self.bus.store(subjects.registry(key), msgspec.json.encode(record), ttl_s=self.ttl_s)

    async def engine_dies(self) -> None:
        """The engine is started again: a new incarnation that holds nothing."""
        self.held.clear()
        self.incarnation = uuid.uuid4().hex[:8]
        await self.report()

    async def stop(self) -> None:
        for task in self._tasks:
            await _cancelled(task)
        self._tasks.clear()


async def _cancelled(task: asyncio.Task[None]) -> None:
    """`asyncio.wait_for` of Python 3.11 may swallow a cancellation that meets its result: say it again."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)


def settings(**fields: Any) -> Settings:
    return Settings(scheduler=SchedulerSettings(**fields))


class Process:
    """A scheduler as a task of this process; `kill` ends it without a word, as kill -9 does."""

    def __init__(self, bus: Bus, config: Settings | None = None, limits: Limits | None = None) -> None:
        self.bus = bus
        self.stop = Stop()
        self.metrics = Metrics()
        self.scheduler = Scheduler(bus, config or settings(), self.metrics, limits=limits)
        self.task = asyncio.create_task(self.scheduler.run(self.stop))

    @property
    def shards(self) -> frozenset[int]:
        """Those whose takeover is complete."""
        return frozenset(shard for shard, loop in self.scheduler.terms.items() if loop.decides)

    @property
    def active(self) -> bool:
        return bool(self.shards)

    async def kill(self) -> None:
        await _cancelled(self.task)

    async def leave(self) -> None:
        self.stop.wish("the test ends")
        await asyncio.wait_for(self.task, 10)


class Town:
    """Schedulers, nodes and a client on one server. Made and torn down by `town`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.processes: list[Process] = []
        self.nodes: list[Node] = []
        self.client: Client

    async def begin(self, *specs: PoolSpec) -> None:
        bus = await self.world.connect("client")
        await bus.ensure(streams.base())
        self.client = Client(bus)
        await self.client.start()
        for spec in specs or (pool_spec(),):
            await self.client.want(spec)

    async def scheduler(self, config: Settings | None = None, limits: Limits | None = None) -> Process:
        process = Process(await self.world.connect("scheduler"), config, limits)
        self.processes.append(process)
        return process

    async def node(self, **fields: Any) -> Node:
        node = Node(await self.world.connect("node"), **fields)
        self.nodes.append(node)
        await node.start()
        return node

    async def end(self) -> None:
        for node in self.nodes:
            await node.stop()
        for process in self.processes:
            if not process.task.done():
                await process.leave()
        for bus in self.world.buses:
            await bus.close()


@contextlib.asynccontextmanager
async def town(world: World, *specs: PoolSpec) -> AsyncIterator[Town]:
    made = Town(world)
    await made.begin(*specs)
    try:
        yield made
    finally:
        await made.end()
