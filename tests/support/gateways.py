"""Gateways on an in-memory bus, with a scheduler and a node that do what a test tells them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from llorch_gateway.gateway import Gateway
from llorch_shared import streams, subjects
from llorch_shared.bus.memory import MemoryBus
from llorch_shared.bus.memory_server import MemoryServer
from llorch_shared.bus.port import Bus, Message
from llorch_shared.lifecycle import Stop
from llorch_shared.metrics import Metrics
from llorch_shared.settings import GatewaySettings, NatsSettings, Secret, Settings
from llorch_shared.wire import frames
from llorch_shared.wire.policy import QueueSpec
from llorch_shared.wire.registry import PoolLoad, ReplicaRecord, ReplicaState
from llorch_shared.wire.run import Located, RunRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority, TaskRef, TaskState
from support.asgi import AsgiClient, Reply
from support.client import task_request

POOL = "p1"
STARTED = frames.encode_started(frames.Started(queue_position=0, predicted_start_ms=0, device="cpu"))


def pool_spec(name: str = POOL, *, capacity: int = 16, ctx: int = 4096, **more: Any) -> PoolSpec:
    fields = {"engine": Engine.MOCK, "model": "mock:words", "queue": QueueSpec(capacity=capacity), **more}
    return PoolSpec(id=name, ctx=ctx, **fields)


def replica(pool: str = POOL, number: int = 0, **changes: Any) -> ReplicaRecord:
    fields: dict[str, Any] = {
        "replica_id": f"{pool}-node-{number}",
        "pool_id": pool,
        "node_id": "node",
        "incarnation": "a1",
        "state": ReplicaState.READY,
        "engine": Engine.MOCK,
        "model_ref": "mock:words",
        "slots_total": 4,
        "device": "cpu",
        "live": True,
    }
    return ReplicaRecord(**{**fields, **changes})


def load_report(pool: str = POOL, **changes: Any) -> PoolLoad:
    fields: dict[str, Any] = {
        "pool_id": pool,
        "at_ms": 0,
        "snapshot_version": 1,
        "queued": {},
        "queue_seq": {},
        "running": 0,
        "slots_total": 4,
        "slots_free": 4,
        "replicas_ready": 1,
        "service_ms": 0.0,
    }
    return PoolLoad(**{**fields, **changes})


def run_record(task: str, state: TaskState, **changes: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "task_id": task,
        "state": state,
        "pool_id": POOL,
        "lane": "bus",
        "correlation_id": "c",
        "tenant": "default",
        "priority": Priority.INTERACTIVE,
        "admitted_ms": 1,
    }
    return RunRecord(**{**fields, **changes})


def tokens(first: int, last: int, attempt: int = 1) -> bytes:
    return b"".join(frames.encode_token(attempt, index, f" w{index}") for index in range(first, last + 1))


def end(count: int, *, attempt: int = 1, reason: str = "stop") -> bytes:
    return frames.encode_end(attempt, frames.End(tokens_out=count, decode_ms=5, decode_time_ms=5, finish_reason=reason))


class Cluster:
    """One bus, some gateways, and the other services played by the test."""

    def __init__(self) -> None:
        self.server = MemoryServer()
        self.bus: Bus = MemoryBus(self.server, name="others")
        self.queued: dict[str, Located] = {}
        self.gateways: list[tuple[Gateway, Bus]] = []
        self.nats = NatsSettings()
        self._ticking: list[asyncio.Task[None]] = []

    async def start(self, spec: PoolSpec | None = None, *replicas: ReplicaRecord) -> None:
        await self.bus.ensure(streams.base())
        await self.add_pool(spec or pool_spec(), *(replicas or (replica(),)))
        for shard in range(subjects.SHARDS):
            await self.bus.serve(subjects.locate(shard), self._locate)

    async def add_pool(self, spec: PoolSpec, *replicas: ReplicaRecord) -> None:
        await self.bus.ensure(streams.admission(spec))
        await self.bus.store(subjects.spec(subjects.pool_key(spec.id)), msgspec.json.encode(spec))
        for one in replicas:
            await self.register(one)

    async def register(self, record: ReplicaRecord) -> None:
        key = subjects.replica_key(record.node_id, record.replica_id)
        await self.bus.store(subjects.registry(key), msgspec.json.encode(record), ttl_s=streams.REGISTRY_TTL_S * 20)

    async def report(self, load: PoolLoad) -> None:
        self.bus.publish(subjects.load(load.pool_id), msgspec.json.encode(load))
        await self.bus.flush()
        await settle()

    async def gateway(self, *, token: str = "", tick: bool = True, **changes: Any) -> "Door":
        wanted = {"cancel_on_disconnect": False, "cancel_wait_ms": 2_000, **changes}
        settings = Settings(gateway=GatewaySettings(**wanted), nats=self.nats)
        bus: Bus = MemoryBus(self.server, name="gateway")
        gateway = Gateway(settings, bus=bus, token=Secret(token), metrics=Metrics())
        await gateway.start(Stop())
        self.gateways.append((gateway, bus))
        if tick:
            self._ticking.append(asyncio.create_task(gateway.tick()))
        return Door(gateway, bus)

    async def close(self) -> None:
        for task in self._ticking:
            task.cancel()
        await asyncio.gather(*self._ticking, return_exceptions=True)
        for gateway, bus in self.gateways:
            with contextlib.suppress(asyncio.CancelledError):
                await gateway.stop_serving()
            await gateway.close()
            await bus.close()
        await self.bus.close()

    async def _locate(self, message: Message) -> tuple[bytes, Mapping[str, str]]:
        ref = msgspec.json.decode(message.data, type=TaskRef)
        return msgspec.json.encode(self.queued.get(ref.task_id, Located(found=False))), {}

    # The scheduler and the node

    async def admissions(self, pool: str = POOL, priority: Priority = Priority.INTERACTIVE) -> list[Message]:
        return list(await self.bus.replay(streams.admission_stream(pool, priority), ">"))

    async def stored(self) -> dict[str, int]:
        """Messages per stream that a refused request must not have touched."""
        names = [streams.RUN, streams.PLC, streams.TOK, streams.AUD]
        names += [streams.admission_stream(POOL, priority) for priority in Priority]
        return {name: (await self.bus.stream_state(name)).messages for name in names}

    async def record(self, record: RunRecord) -> None:
        await self.bus.store(subjects.run(record.task_id), msgspec.json.encode(record))

    async def publish(self, lane: str, task: str, *data: bytes) -> None:
        for one in data:
            self.bus.publish(subjects.tokens(lane, task), one)
        await self.bus.flush()
        await settle()


class Door(AsgiClient):
    """One gateway as its clients see it."""

    def __init__(self, gateway: Gateway, bus: Bus) -> None:
        super().__init__(gateway.front)
        self.gateway = gateway
        self.bus = bus

    @property
    def lane(self) -> str:
        return self.gateway.lane

    async def audited(self) -> None:
        """What it has done so far is on the audit record."""
        await self.gateway.backend.audit._queue.join()

    async def post_task(self, headers: Mapping[str, str] | None = None, **changes: Any) -> Reply:
        return await self.post("/v1/tasks", msgspec.json.encode(task_request(**changes)), **(headers or {}))

    async def submit(self, headers: Mapping[str, str] | None = None, **changes: Any) -> str:
        request = task_request(**changes)
        reply = await self.post("/v1/tasks", msgspec.json.encode(request), **(headers or {}))
        assert reply.status == 202, reply.body
        return request.task_id

    def stream(
        self, task: str, *, after: str = "", slow: bool = False, headers: Mapping[str, str] | None = None
    ) -> Reply:
        headers = {**(headers or {}), **({"last-event-id": after} if after else {})}
        return self.open("GET", f"/v1/tasks/{task}/stream", headers=headers, slow=slow)


async def settle() -> None:
    """Let what was sent be delivered and handled."""
    for _ in range(8):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def cluster_of(spec: PoolSpec | None = None, *replicas: ReplicaRecord) -> AsyncIterator[Cluster]:
    one = Cluster()
    await one.start(spec, *replicas)
    try:
        yield one
    finally:
        await one.close()
