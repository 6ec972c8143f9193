"""How a replica comes to serve: its engine and model are provided, a process is launched, and the engine that answers
is put to the test. Which of these comes when, and what follows a failure, is decided in `core.replica`.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import UNSET

from llorch_poold.adapters.launch import plan_launch
from llorch_poold.adapters.port import EngineBroke
from llorch_poold.core.pace import Pace
from llorch_poold.core.reconcile import Desired
from llorch_poold.engine_life import EngineLife
from llorch_poold.gpu.probe import GpuReport
from llorch_poold.node_context import NodeContext, ReplicaFacts
from llorch_poold.preparation import Prepared, facts_of, prepare
from llorch_poold.process import EngineProcesses, NoPort
from llorch_poold.provisioning import Progress, Provisioning
from llorch_shared.logs import narrate

log = logging.getLogger(__name__)


class BringUp:
    """Of one replica, life after life. `say` takes what is told of the progress."""

    def __init__(
        self,
        node: NodeContext,
        *,
        processes: EngineProcesses,
        provisioning: Provisioning,
        environment: Mapping[str, str],
        gpus: Callable[[], GpuReport],
        say: Progress,
    ) -> None:
        self._node: Final = node
        self._processes: Final = processes
        self._provisioning: Final = provisioning
        self._environment: Final = environment
        self._gpus: Final = gpus
        self._say: Final = say
        self._prepared = Prepared()

    async def provision(self, desired: Desired) -> None:
        """Raises NotProvisioned, EngineFailure (NoRoom), BusError."""
        self._prepared = await prepare(self._provisioning, desired, self._gpus(), self._say)

    async def launch(self, desired: Desired) -> EngineLife:
        """A process that is not ready yet. Raises EngineBroke, Unlaunchable."""
        spec = desired.spec
        try:
            ports = spec.provisioning.ports
            port = self._processes.free_port(self._node.settings.engine_port_base, () if ports is UNSET else ports)
        except NoPort as error:
            raise EngineBroke(str(error)) from error
        launch = plan_launch(
            spec,
            device=desired.device,
            port=port,
            engine=self._prepared.engine,
            model=self._prepared.model,
            environment=self._environment,
        )
        life = await EngineLife.start(self._processes, desired.replica_id, launch)
        narrate(
            log,
            f"replica {desired.replica_id} starts its engine, pid {life.pid}, port {port}",
            actor="poold",
            action="engine.spawn",
            target=desired.replica_id,
            device_mask=desired.device.label,
            pool_id=spec.id,
            replica_id=desired.replica_id,
            engine=spec.engine,
        )
        return life

    async def until_ready(self, desired: Desired, life: EngineLife) -> None:
        """Raises EngineBroke."""
        await life.until_ready(desired.spec, self._node.settings.start_timeout_ms / 1000, self._say)

    async def test(self, desired: Desired, life: EngineLife, *, incarnation: str, pace: Pace) -> ReplicaFacts:
        """What the tasks of this life tell of it. Raises EngineFailure."""
        spec, settings = desired.spec, self._node.settings
        timeout_s, free_timeout_s = settings.start_timeout_ms / 1000, settings.slot_free_timeout_ms / 1000
        await life.test(spec, timeout_s=timeout_s, free_timeout_s=free_timeout_s)
        features = await life.features(spec, timeout_s=timeout_s, free_timeout_s=free_timeout_s)
        version = self._prepared.engine_version or await life.adapter.version()
        return facts_of(
            desired,
            self._prepared,
            self._node.metrics,
            pace,
            incarnation=incarnation,
            engine_version=version,
            features=features,
            gpus=self._gpus().on(desired.device.uuids),
        )
