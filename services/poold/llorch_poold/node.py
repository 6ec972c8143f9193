"""The node: what it hears and tells on the bus while its connection stands or comes back. Which replicas it has is the
reconciler's (`reconciler.py`).
"""

import asyncio
import logging
import secrets
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

import msgspec

from llorch_poold import desired_state
from llorch_poold.gpu.probe import GpuProbe
from llorch_poold.gpu.watch import GpuWatch
from llorch_poold.node_context import NodeContext
from llorch_poold.ownership import Ownership
from llorch_poold.process import EngineProcesses
from llorch_poold.reconciler import Reconciler
from llorch_poold.registrar import Registrar
from llorch_poold.reloads import Reloads
from llorch_poold.session_ends import SessionEnds
from llorch_poold.task_run import TaskRun
from llorch_shared import subjects
from llorch_shared.bus.patience import Step, get_through
from llorch_shared.bus.port import Message
from llorch_shared.here import here
from llorch_shared.lifecycle import Stop
from llorch_shared.live_table import LiveTable
from llorch_shared.settings import Settings
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.registry import NodeRecord
from llorch_shared.wire.run import PLACEMENT_DECODER, PREEMPT_DECODER
from llorch_shared.wire.version import Kind, Unreadable, decode

log = logging.getLogger(__name__)

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
        self._metrics_addr: Final = metrics_addr
        self._ownership: Final = Ownership(context, self._runs)
        self._registrar: Final = Registrar(context.bus, confirmed=self._ownership.confirmed, left=self._ownership.left)
        self._specs: Final = LiveTable(context.bus, bucket="SPEC", changed=self._spec_changed, metrics=context.metrics)
        self._reloads: Final = Reloads(context, self._specs)
        self._gpus: Final = GpuWatch(probe, context.node_id, changed=self._gpus_changed)
        self.reconciler: Final = Reconciler(
            context,
            self._specs,
            self._gpus,
            profile=settings.profile,
            registrar=self._registrar,
            reloads=self._reloads,
            processes=processes,
            environment=environment,
        )
        self._session_ends: Final = SessionEnds(
            context, self.reconciler.replicas.values, lambda: desired_state.session_policies(self._specs)
        )
        self._incarnation: Final = secrets.token_hex(8)
        self._started_ms: Final = now_ms()

    async def start(self, stop: Stop) -> bool:
        """Look at the devices, subscribe, tell the registry, follow the pools, however long the bus takes. False when
        the wish to stop came first."""
        context = self._context
        bus = context.bus
        await self._gpus.look()
        heard: tuple[Step, ...] = (
            lambda: bus.subscribe(subjects.ALL_CANCEL_SIGNALS, self._on_cancel),
            lambda: bus.subscribe(subjects.preempt(context.node_id), self._on_preempt),
            lambda: bus.subscribe(subjects.placement_ahead(context.node_id), self._on_placement_ahead),
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
        self.reconciler.look()
        return True

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.reconciler.reconcile_always(), name="reconcile")
            tasks.create_task(self._gpus.look_always(), name="gpu probe")
            tasks.create_task(self._housekeep(), name="housekeeping")
            tasks.create_task(self._look_at_the_token_log(), name="token log")
            tasks.create_task(self._reloads.decide_always(), name="reloads")
            tasks.create_task(self._session_ends.look_always(), name="sessions that end")

    async def drain(self, reason: str) -> None:
        """Finish what runs, within the drain timeout; then no engine is left."""
        await self.reconciler.drain(reason)
        if self._context.settling:
            await asyncio.wait(set(self._context.settling), timeout=SETTLE_S)
        await self._ownership.close()
        await self._registrar.close()
        await self._specs.close()
        self._gpus.close()

    def _spec_changed(self, key: str, value: bytes | None) -> None:
        self.reconciler.look()
        self._reloads.look()
        if key.startswith("drain."):
            self.reconciler.drain_again(key.partition(".")[2])

    def _gpus_changed(self) -> None:
        self.reconciler.look()
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
        gpus = self._gpus.report()
        return NodeRecord(
            node_id=self._context.node_id,
            incarnation=self._incarnation,
            started_ms=self._started_ms,
            version=VERSION,
            gpus=gpus.gpus,
            gpu_driver=gpus.driver,
            gpu_problem=gpus.problem,
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

    def _on_placement_ahead(self, message: Message) -> None:
        """What cannot be taken now is stored for its replica a moment later, and told of there."""
        try:
            placement = decode(Kind.PLACEMENT, PLACEMENT_DECODER, message.data, message.headers)
        except Unreadable as error:
            log.debug("a placement cannot be read, its scheduler will store it: %s", error)
            return
        if (replica := self.reconciler.replicas.get(placement.run.replica_id)) is not None:
            replica.slots.begin_ahead(placement)

    def _runs(self) -> list[TaskRun]:
        return [run for replica in self.reconciler.replicas.values() for run in replica.slots.runs.values()]

    def _runs_of(self, task_id: str) -> list[TaskRun]:
        """More than one while a broken engine's slot is still being released and another replica has the task again."""
        return [run for run in self._runs() if run.task_id == task_id]

    async def _reconnected(self) -> None:
        """The bus is back, and its streams stand: confirm the keys, then see what is still ours."""
        self._registrar.tell_all()
        self.reconciler.look()
        token_log = self._context.token_log
        await token_log.look()
        if token_log.sure and not await token_log.stores():
            token_log.doubt()
        self._ownership.returned()
        self._session_ends.look_soon()
