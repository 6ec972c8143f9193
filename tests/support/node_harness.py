"""One node agent with mock engines on a real bus, and a test in the scheduler's place.

async with NodeHarness(nats_server, tmp_path, pools=[mock_pool(slots=2)]) as node:
    task = await node.place(max_tokens=5)
    frames = await node.until_ended(task)
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import msgspec

from llorch_poold.core.fence import Fence
from llorch_poold.core.retention import FrameRetention
from llorch_poold.gpu.probe import GpuReport
from llorch_poold.node import Node
from llorch_poold.node_context import NodeContext
from llorch_poold.outlet import TokenOutlet
from llorch_poold.pool_loads import PoolLoads
from llorch_poold.process import EngineProcesses
from llorch_poold.run_store import RunStore
from llorch_poold.token_log import TokenLog
from llorch_shared import streams, subjects
from llorch_shared.audit import Audit
from llorch_shared.bus import nats
from llorch_shared.bus.nats import NatsBus
from llorch_shared.lifecycle import Stop
from llorch_shared.metrics import Metrics
from llorch_shared.session_store import SessionStore
from llorch_shared.settings import NatsSettings, PooldSettings, Settings
from llorch_shared.shared_walks import SharedWalks
from llorch_shared.wire.audit import AUDIT_DECODER, AuditRecord
from llorch_shared.wire.frames import Event, split_events
from llorch_shared.wire.registry import NODE_DECODER, REPLICA_DECODER, NodeRecord, ReplicaRecord, ReplicaState
from llorch_shared.wire.run import RUN_DECODER, CancelRequest, Placement, PreemptRequest, RunRecord
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import TaskRequest, TaskState
from support.nats_server import NatsServer

DEADLINE_S = 30.0
LANE = "gw-test"
T = TypeVar("T")


def mock_pool(
    pool_id: str = "mock", *, rate: float = 200, env: Mapping[str, str] | None = None, **changes: Any
) -> PoolSpec:
    fields: dict[str, Any] = {
        "id": pool_id,
        "engine": "mock",
        "model": "mock:words",
        "devices": "cpu",
        "ctx": 2048,
        "provisioning": {"env": {"LLORCH_MOCK_RATE": str(rate), **(env or {})}},
    }
    return msgspec.convert({**fields, **changes}, PoolSpec)


def task_request(**changes: Any) -> TaskRequest:
    fields: dict[str, Any] = {
        "task_id": str(uuid.uuid4()),
        "session_id": str(uuid.uuid4()),
        "workload": "completion",
        "model_ref": "mock:words",
        "engine": "mock",
        "ctx": 2048,
        "priority": "interactive",
        "max_tokens": 10,
        "deadline_ms": 60_000,
        "prompt": "Say something.",
    }
    return msgspec.convert({**fields, **changes}, TaskRequest)


class FakeProbe:
    """GPUs as the test says."""

    def __init__(self, report: GpuReport) -> None:
        self.report = report

    def read(self) -> GpuReport:
        return self.report

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class Placed:
    """A task as its scheduler and its reader see it."""

    run: RunRecord
    seq: int
    messages: list[bytes] = field(default_factory=list)

    @property
    def task_id(self) -> str:
        return self.run.task_id

    @property
    def events(self) -> list[Event]:
        return [event for message in self.messages for event in split_events(message)]

    @property
    def tokens(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(event.data) for event in self.events if event.event == "token"]

    @property
    def text(self) -> str:
        return "".join(token["t"] for token in self.tokens)

    def data(self, kind: str) -> list[dict[str, Any]]:
        return [msgspec.json.decode(event.data) for event in self.events if event.event == kind]

    @property
    def ended(self) -> bool:
        return any(event.event in ("end", "error") for event in self.events)


class NodeHarness:
    def __init__(
        self,
        server: NatsServer,
        folder: Path,
        *,
        pools: Sequence[PoolSpec] = (),
        profile: str = "ci",
        report: GpuReport | None = None,
        node_url: str = "",
        **settings: Any,
    ) -> None:
        """`node_url`: where the node finds the bus, if not straight at the server."""
        self.server = server
        self.node_url = node_url or server.url
        self.pools = list(pools)
        self.probe = FakeProbe(report or GpuReport(problem="no NVIDIA driver is installed"))
        fast = {"backoff_initial_ms": 50, "backoff_max_ms": 200, "slot_free_timeout_ms": 5000, "drain_timeout_ms": 3000}
        self.settings = Settings(
            profile=profile,  # type: ignore[arg-type]
            state_dir=str(folder / "state"),
            poold=PooldSettings(**{**fast, **settings}),
        )
        self.metrics = Metrics()
        self.replicas: dict[str, ReplicaRecord] = {}
        self.history: list[ReplicaRecord] = []
        self.node_record: NodeRecord | None = None
        self.placed: dict[str, Placed] = {}
        self._changed = asyncio.Event()
        self.bus: NatsBus
        self.node_bus: NatsBus
        self.node: Node

    async def __aenter__(self) -> Self:
        address = NatsSettings(url=self.server.url)
        self.bus = await nats.connect(address, name="harness")
        await self.bus.ensure(streams.base())
        await self.bus.subscribe(subjects.ALL_REGISTRY_LIVE, self._on_registry)
        await self.bus.tail(subjects.tokens_of_lane(LANE), self._on_frame)
        for pool in self.pools:
            await self.put_pool(pool)
        self.node_bus = await nats.connect(NatsSettings(url=self.node_url), name="poold/node-1", metrics=self.metrics)
        await self.node_bus.ensure(streams.base())
        self.audit = Audit(self.node_bus, actor="poold/test", gather_s=0.001)
        self.audit.start()
        fence = Fence(streams.REGISTRY_TTL_S, grace_s=self.settings.poold.cut_off_grace_ms / 1000)
        self.context = NodeContext(
            node_id="node-1",
            bus=self.node_bus,
            runs=RunStore(self.node_bus),
            fence=fence,
            outlet=TokenOutlet(self.node_bus, fence),
            retention=FrameRetention(self.settings.poold.frames_kept_bytes),
            audit=self.audit,
            sessions=SessionStore(self.node_bus, self.audit, actor="poold/test"),
            loads=PoolLoads(self.node_bus),
            token_log=TokenLog(self.node_bus, "node-1"),
            backlogs=SharedWalks(self.node_bus, streams.TOK),
            metrics=self.metrics,
            settings=self.settings.poold,
        )
        self.node = Node(
            self.context,
            self.settings,
            probe=self.probe,
            processes=EngineProcesses(self.settings.state_path(), "node-1"),
            environment={},
            metrics_addr="",
        )
        await self.node.start(Stop())
        self._running = asyncio.create_task(self.node.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drain()
        await self.audit.close()
        await self.context.outlet.close()
        await self.node_bus.close()
        await self.bus.close()

    async def drain(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self.node.drain("the test is over")

    async def put_pool(self, pool: PoolSpec) -> None:
        await self.bus.store(subjects.spec(subjects.pool_key(pool.id)), msgspec.json.encode(pool))

    async def until(self, what: str, question: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
        """Asked again whenever the bus said something; fails with `what` at the deadline."""
        try:
            async with asyncio.timeout(deadline_s):
                while not (answer := question()):
                    self._changed.clear()
                    await self._changed.wait()
                return answer
        except TimeoutError:
            raise AssertionError(f"waited {deadline_s} s for {what}; replicas: {self.replicas}") from None

    async def ready(self, replica_id: str = "mock-node-1-1", *, other_than: str = "") -> ReplicaRecord:
        """The replica's record once it is ready, in a life other than `other_than`."""

        def question() -> ReplicaRecord | None:
            record = self.replicas.get(replica_id)
            fits = record is not None and record.state is ReplicaState.READY and record.incarnation != other_than
            return record if fits else None

        record: ReplicaRecord = await self.until(f"{replica_id} to be ready", question)
        return record

    async def state(self, state: ReplicaState, replica_id: str = "mock-node-1-1") -> ReplicaRecord:
        def question() -> ReplicaRecord | None:
            record = self.replicas.get(replica_id)
            return record if record is not None and record.state is state else None

        record: ReplicaRecord = await self.until(f"{replica_id} to be {state}", question)
        return record

    async def place(
        self,
        request: TaskRequest | None = None,
        *,
        replica_id: str = "mock-node-1-1",
        attempt: int = 1,
        ahead: bool = True,
        **changes: Any,
    ) -> Placed:
        """What the scheduler does: a first placement goes `ahead` of any run record, others come after theirs."""
        request = request or task_request(**changes)
        earlier = self.placed.get(request.task_id)
        run = self._placed_run(request, replica_id, attempt)
        expect = seq = 0
        if earlier is not None:
            before, expect = await self.run_of(request.task_id)
            run = msgspec.structs.replace(run, determinism_class=before.determinism_class, token_log=before.token_log)
        if expect or attempt > 1 or not ahead:
            seq = await self.record(run, expect)
        placed = self.placed[run.task_id] = Placed(run, seq, earlier.messages if earlier is not None else [])
        await self._send(Placement(run=run, run_seq=seq))
        return placed

    async def record(self, run: RunRecord, expect_seq: int = 0) -> int:
        """Store a run record. Returns its sequence."""
        return (await self.bus.store(subjects.run(run.task_id), msgspec.json.encode(run), expect_seq=expect_seq)).seq

    @staticmethod
    def _placed_run(request: TaskRequest, replica_id: str, attempt: int) -> RunRecord:
        return RunRecord(
            task_id=request.task_id,
            state=TaskState.PLACED,
            attempt=attempt,
            pool_id=replica_id.rpartition("-node-1-")[0],
            replica_id=replica_id,
            lane=LANE,
            correlation_id="corr-1",
            tenant="default",
            priority=request.priority,
            admitted_ms=time.time_ns() // 1_000_000,
            request=request,
        )

    async def _send(self, placement: Placement) -> None:
        if placement.run_seq:
            await self.store_placement(placement.run, placement.run_seq)
        else:
            self.bus.publish(subjects.placement_ahead("node-1"), msgspec.json.encode(placement))

    async def store_placement(self, run: RunRecord, seq: int) -> None:
        """For its replica."""
        placement = Placement(run=run, run_seq=seq)
        await self.bus.store(subjects.placement(run.pool_id, run.replica_id), msgspec.json.encode(placement))

    async def resume(self, placed: Placed, *, replica_id: str = "mock-node-1-1", **changes: Any) -> Placed:
        """What the scheduler does with a task that came back placed on no replica."""
        record, seq = await self.run_of(placed.task_id)
        assert (record.state, record.replica_id) == (TaskState.PLACED, "")
        run = msgspec.structs.replace(record, replica_id=replica_id, **changes)
        seq = await self.record(run, seq)
        again = self.placed[run.task_id] = Placed(run, seq, placed.messages)
        await self._send(Placement(run=run, run_seq=seq))
        return again

    async def preempt(self, task_id: str, *, run_seq: int | None = None) -> None:
        """Asks the node to stop what runs now."""
        if run_seq is None:
            run_seq = (await self.run_of(task_id))[1]
        request = PreemptRequest(task_id=task_id, run_seq=run_seq, urgent_task_id="an-urgent-task")
        self.bus.publish(subjects.preempt("node-1"), msgspec.json.encode(request))

    async def until_preempted(self, placed: Placed) -> RunRecord:
        """The record that the node gave back, once readers have been told."""
        await self.until("the preemption", lambda: any(each.get("preempted") for each in placed.data("metrics")))
        return (await self.run_of(placed.task_id))[0]

    async def cancel(self, task_id: str, *, signal: bool = True) -> None:
        wish = msgspec.json.encode(
            CancelRequest(task_id=task_id, reason="client", requested_ms=time.time_ns() // 1_000_000)
        )
        await self.bus.store(subjects.cancel(task_id), wish)
        if signal:
            self.bus.publish(subjects.cancel_signal(task_id), wish)

    async def until_tokens(self, placed: Placed, count: int) -> None:
        await self.until(f"{count} tokens", lambda: len(placed.tokens) >= count)

    async def until_ended(self, placed: Placed) -> Placed:
        await self.until(f"the end of {placed.task_id}", lambda: placed.ended)
        return placed

    async def run_of(self, task_id: str) -> tuple[RunRecord, int]:
        """The stored record, once there is one."""
        async with asyncio.timeout(DEADLINE_S):
            while (message := await self.bus.last(streams.RUN, subjects.run(task_id))) is None:
                await asyncio.sleep(0.005)
        return RUN_DECODER.decode(message.data), message.seq

    async def audits(self, task_id: str) -> list[AuditRecord]:
        messages = await self.bus.replay(streams.AUD, f"llorch.aud.*.{task_id}")
        return [AUDIT_DECODER.decode(message.data) for message in messages]

    async def kept(self, key: str, decoder: "msgspec.json.Decoder[T]") -> AsyncIterator[T]:
        """What the desired state holds under `key`, asked for again and again until the deadline."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                message = await self.bus.last(streams.SPEC, subjects.spec(key))
                if message is not None and not message.deleted:
                    yield decoder.decode(message.data)
                await asyncio.sleep(0.02)

    async def until_audited(self, task_id: str, *events: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while [record.event for record in await self.audits(task_id)] != list(events):
                await asyncio.sleep(0.02)

    def port(self, replica_id: str = "mock-node-1-1") -> int:
        life = self.node.reconciler.replicas[replica_id]._life
        assert life is not None
        return life._launch.port

    def pid(self, replica_id: str = "mock-node-1-1") -> int:
        life = self.node.reconciler.replicas[replica_id]._life
        assert life is not None
        return life.pid

    async def fault(self, replica_id: str = "mock-node-1-1", **fault: Any) -> None:
        async with httpx.AsyncClient() as http:
            reply = await http.post(f"http://127.0.0.1:{self.port(replica_id)}/fault", json=fault)
            reply.raise_for_status()

    async def busy_slots(self, replica_id: str = "mock-node-1-1") -> int:
        async with httpx.AsyncClient() as http:
            slots = (await http.get(f"http://127.0.0.1:{self.port(replica_id)}/slots")).json()
        return sum(slot["is_processing"] for slot in slots)

    def _on_registry(self, message: Any) -> None:
        key = subjects.registry_key(message.subject)
        if key.startswith("replica."):
            if message.deleted:
                self.replicas.pop(key.rpartition(".")[2], None)
            else:
                record = REPLICA_DECODER.decode(message.data)
                self.replicas[record.replica_id] = record
                self.history.append(record)
        elif key.startswith("node.") and not message.deleted:
            self.node_record = NODE_DECODER.decode(message.data)
        self._changed.set()

    def _on_frame(self, subject: bytes, data: bytes) -> None:
        placed = self.placed.get(subject.decode().rpartition(".")[2])
        if placed is not None:
            placed.messages.append(data)
        self._changed.set()
