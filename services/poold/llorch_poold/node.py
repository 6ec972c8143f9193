"""The node: desired pools in, replicas out. Reconciles whenever the pools, the devices or a replica's end change it.

A replica that must change is drained first and started again when it is gone, so one id never has two processes. In a
reload another one comes up under the other id of its place (`core/reconcile.py`).
"""

import asyncio
import logging
import secrets
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

import msgspec

from llorch_poold.core.reconcile import Start, Why, changes, desired_places
from llorch_poold.gpu.probe import GpuProbe, GpuReport
from llorch_poold.node_context import NodeContext
from llorch_poold.ownership import Ownership
from llorch_poold.process import EngineProcesses
from llorch_poold.provisioning import Provisioning
from llorch_poold.registrar import Registrar
from llorch_poold.reloads import Reloads, wishes
from llorch_poold.replica import Replica
from llorch_poold.session_ends import SessionEnds
from llorch_poold.task_run import TaskRun
from llorch_shared import subjects
from llorch_shared.bus.patience import Step, get_through
from llorch_shared.bus.port import BusError, Message
from llorch_shared.here import here
from llorch_shared.lifecycle import Stop
from llorch_shared.live_table import LiveTable
from llorch_shared.logs import narrate
from llorch_shared.readable import UNREADABLE, readable
from llorch_shared.settings import Settings
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.desired import DRAIN_DECODER, RELOAD_DECODER, PoolDrain
from llorch_shared.wire.registry import NodeRecord
from llorch_shared.wire.run import PREEMPT_DECODER
from llorch_shared.wire.session import SESSIONS_SPEC_DECODER, SessionsSpec
from llorch_shared.wire.spec import POOL_DECODER, PoolSpec

log = logging.getLogger(__name__)

GPU_PROBE_S: Final = 5.0
VERSION: Final = version("llama-orch")
HOUSEKEEPING_S: Final = 1.0
SETTLE_S: Final = 5.0
"""A node that stops waits so long for the bus to take the last ends. The next start audits what it did not take."""


class Node:
    """Everything of one node that runs while the bus connection stands or comes back."""

    def __init__(
        self,
        context: NodeContext,
        settings: Settings,
        *,
        probe: GpuProbe,
        processes: EngineProcesses,
        environment: Mapping[str, str],
        metrics_addr: str,
    ) -> None:
        self._context: Final = context
        self._settings: Final = settings
        self._probe: Final = probe
        self._processes: Final = processes
        self._environment: Final = environment
        self._metrics_addr: Final = metrics_addr
        self._provisioning: Final = Provisioning(context.bus, context.node_id)
        self._ownership: Final = Ownership(context, self._runs)
        self._registrar: Final = Registrar(context.bus, confirmed=self._ownership.confirmed, left=self._ownership.left)
        self._specs: Final = LiveTable(context.bus, bucket="SPEC", changed=self._spec_changed, metrics=context.metrics)
        self._reloads: Final = Reloads(context, self._specs)
        self._session_ends: Final = SessionEnds(context, self._replicas_here, self._session_policies)
        self._tight: dict[str, str] = {}
        """Places without room for two replicas, and the reload in which that was found."""
        self._incarnation: Final = secrets.token_hex(8)
        self._started_ms: Final = now_ms()
        self._report: GpuReport = GpuReport(problem="GPUs have not been looked for yet")
        self._replicas: dict[str, Replica] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._dirty: Final = asyncio.Event()
        self._stopping = False

    async def start(self, stop: Stop) -> bool:
        """Look at the devices, subscribe, tell the registry, follow the pools, however long the bus takes. False when
        the wish to stop came first."""
        context = self._context
        bus = context.bus
        self._report = await asyncio.to_thread(self._probe.read)
        heard: tuple[Step, ...] = (
            lambda: bus.subscribe(subjects.ALL_CANCEL_SIGNALS, self._on_cancel),
            lambda: bus.subscribe(subjects.preempt(context.node_id), self._on_preempt),
            self._session_ends.start,
            lambda: bus.serve(subjects.node_here(context.node_id), here),
        )
        if not await get_through(bus, heard, stop):
            return False
        bus.on_reconnect(self._reconnected)
        bus.on_disconnect(self._ownership.lost)
        self._ownership.start()
        self._registrar.keep(subjects.node_key(context.node_id), self._node_record)
        if not await get_through(bus, (context.token_log.look, self._specs.start), stop):
            return False
        self._dirty.set()
        return True

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._reconcile_always(), name="reconcile")
            tasks.create_task(self._probe_always(), name="gpu probe")
            tasks.create_task(self._housekeep(), name="housekeeping")
            tasks.create_task(self._look_at_the_token_log(), name="token log")
            tasks.create_task(self._reloads.decide_always(), name="reloads")
            tasks.create_task(self._session_ends.look_always(), name="sessions that end")

    async def drain(self, reason: str) -> None:
        """Finish what runs, within the drain timeout; then no engine is left."""
        self._stopping = True
        for replica in self._replicas.values():
            replica.drain(reason)
        if self._lives:
            await asyncio.wait(set(self._lives.values()))
        if self._context.settling:
            await asyncio.wait(set(self._context.settling), timeout=SETTLE_S)
        await self._ownership.close()
        await self._registrar.close()
        await self._specs.close()
        self._probe.close()

    async def _reconcile_always(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            self._reconcile()
            try:
                await self._context.loads.follow(replica.spec.id for replica in self._replicas.values())
            except BusError as error:
                log.debug("the loads of the pools are followed when the bus is back: %s", error)

    def _reconcile(self) -> None:
        if self._stopping:
            return
        pools = self._pools()
        drains = wishes(self._specs, "drain", DRAIN_DECODER)
        places = desired_places(
            pools,
            node_id=self._context.node_id,
            gpus=self._report.gpus,
            gpu_problem=self._report.problem,
            profile=self._settings.profile,
            reloads=wishes(self._specs, "reload", RELOAD_DECODER),
            drained=drains,
            tight=self._tight,
        )
        todo = changes([replica.present() for replica in self._replicas.values()], places)
        for desired in todo.adopt:
            self._replicas[desired.replica_id].adopt(desired)
        for replica_id in todo.release:
            self._replicas[replica_id].release()
        for replica_id, why in todo.stop:
            self._stop(self._replicas[replica_id], why, drains)
        for start in todo.start:
            self._start(start)
        for name in todo.tight:
            self._tight[name] = places[name].reload_id
            self._dirty.set()

    def _stop(self, replica: Replica, why: Why, drains: Mapping[str, PoolDrain]) -> None:
        """A stream does not go on with another model in the middle: what runs on a replaced one may end."""
        if (drain := drains.get(replica.spec.id)) is not None:
            replica.drain(Why.DRAINED, max(0, drain.until_ms - now_ms()) / 1000)
        elif why in (Why.REPLACED, Why.NO_ROOM):
            replica.drain(why, replica.spec.timeouts.wall_ms / 1000)
        else:
            replica.drain(why)

    def _start(self, start: Start) -> None:
        replica = Replica(
            self._context,
            start,
            processes=self._processes,
            provisioning=self._provisioning,
            environment=self._environment,
            gpus=self._gpus,
            changed=self._tell,
        )
        self._replicas[replica.replica_id] = replica
        self._lives[replica.replica_id] = asyncio.create_task(self._live(replica), name=f"replica {replica.replica_id}")

    async def _live(self, replica: Replica) -> None:
        key = subjects.replica_key(self._context.node_id, replica.replica_id)
        self._registrar.keep(key, replica.record)
        try:
            await replica.run()
        except Exception:
            log.exception("replica %s ended by a fault of the node", replica.replica_id)
        await self._registrar.leave(key, replica.record())
        del self._replicas[replica.replica_id]
        del self._lives[replica.replica_id]
        self._dirty.set()

    def _pools(self) -> list[PoolSpec]:
        pools = []
        for key, value in self._specs.values.items():
            if not key.startswith("pool."):
                continue
            try:
                pools.append(POOL_DECODER.decode(value))
            except UNREADABLE as error:
                narrate(
                    log,
                    f"the specification {key} cannot be read and is ignored: {error}",
                    actor="poold",
                    action="spec.unreadable",
                    target=key,
                    level=logging.ERROR,
                )
        return pools

    def _spec_changed(self, key: str, value: bytes | None) -> None:
        self._dirty.set()
        self._reloads.look()
        if key.startswith("drain."):
            self._drain_again(key.partition(".")[2])

    def _drain_again(self, pool_id: str) -> None:
        """The drain of a pool has another end, which counts for the replicas that drain already; or it is taken back,
        and the pool is served again as soon as they are gone."""
        drain = wishes(self._specs, "drain", DRAIN_DECODER).get(pool_id)
        for replica in self._replicas.values():
            if not replica.leaving or replica.spec.id != pool_id or self._stopping:
                continue
            if drain is None:
                replica.hurry()
            else:
                replica.drain(Why.DRAINED, max(0, drain.until_ms - now_ms()) / 1000)

    def _tell(self, replica: Replica) -> None:
        """A reload goes by what replicas have become."""
        self._registrar.tell(subjects.replica_key(self._context.node_id, replica.replica_id))
        if self._reloads.underway:
            self._dirty.set()
            self._reloads.look()

    def _gpus(self) -> GpuReport:
        return self._report

    async def _probe_always(self) -> None:
        while True:
            await asyncio.sleep(GPU_PROBE_S)
            before, self._report = self._report, await asyncio.to_thread(self._probe.read)
            if _usable(before) != _usable(self._report):
                narrate(
                    log,
                    f"the GPUs of this node changed: {self._report.problem or 'usable again'}",
                    actor="poold",
                    action="gpu.changed",
                    target=self._context.node_id,
                    level=logging.WARNING,
                )
                self._dirty.set()
                self._registrar.tell(subjects.node_key(self._context.node_id))

    async def _housekeep(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            self._context.retention.expire(asyncio.get_running_loop().time())

    async def _look_at_the_token_log(self) -> None:
        while True:
            token_log = self._context.token_log
            await token_log.until_due()
            if not await token_log.look():
                continue
            if not (await token_log.stores() and await self._ownership.publish_again()):
                token_log.doubt()

    def _node_record(self) -> NodeRecord:
        return NodeRecord(
            node_id=self._context.node_id,
            incarnation=self._incarnation,
            started_ms=self._started_ms,
            version=VERSION,
            gpus=self._report.gpus,
            gpu_driver=self._report.driver,
            gpu_problem=self._report.problem,
            profile=self._settings.profile,
            metrics_addr=self._metrics_addr,
        )

    def _on_cancel(self, message: Message) -> None:
        task_id = subjects.last_token(message.subject)
        for run in self._runs_of(task_id):
            run.cancellation.heard(message.data)

    def _on_preempt(self, message: Message) -> None:
        try:
            request = PREEMPT_DECODER.decode(message.data)
        except msgspec.DecodeError as error:
            log.warning("a request to preempt cannot be read and is ignored: %s", error)
            return
        runs = self._runs_of(request.task_id)
        if not runs:
            log.info("task %s does not run here and cannot be preempted", request.task_id)
        for run in runs:
            run.preempt(request)

    def _replicas_here(self) -> list[Replica]:
        return list(self._replicas.values())

    def _session_policies(self) -> SessionsSpec:
        value = self._specs.values.get(subjects.SESSION_POLICY_KEY)
        spec = readable(SESSIONS_SPEC_DECODER, value, "the policy of sessions") if value is not None else None
        return spec or SessionsSpec()

    def _runs(self) -> list[TaskRun]:
        return [run for replica in self._replicas.values() for run in replica.slots.runs.values()]

    def _runs_of(self, task_id: str) -> list[TaskRun]:
        """More than one while a broken engine's slot is still being released and another replica has the task again."""
        return [run for run in self._runs() if run.task_id == task_id]

    async def _reconnected(self) -> None:
        """The bus is back, and its streams stand: confirm the keys, then see what is still ours."""
        self._registrar.tell_all()
        self._dirty.set()
        token_log = self._context.token_log
        await token_log.look()
        if token_log.sure and not await token_log.stores():
            token_log.doubt()
        self._ownership.returned()
        self._session_ends.look_soon()


def _usable(report: GpuReport) -> tuple[object, ...]:
    return (report.problem, tuple((gpu.index, gpu.uuid, gpu.fault) for gpu in report.gpus))
