"""Desired pools in, replicas out: reconciles whenever the pools, the devices or a replica's end change what is wanted.

A replica that must change is drained first and started again when it is gone, so one id never has two processes. In a
reload another one comes up under the other id of its place (`core/reconcile.py`).
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from llorch_poold import desired_state
from llorch_poold.core.reconcile import Start, Why, changes, desired_places
from llorch_poold.gpu.watch import GpuWatch
from llorch_poold.node_context import NodeContext
from llorch_poold.process import EngineProcesses
from llorch_poold.provisioning import Provisioning
from llorch_poold.registrar import Registrar
from llorch_poold.reloads import Reloads
from llorch_poold.replica import Replica
from llorch_shared import subjects
from llorch_shared.bus.port import BusError
from llorch_shared.live_table import LiveTable
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.desired import PoolDrain

log = logging.getLogger(__name__)


class Reconciler:
    """Has the replicas of one node, until it is told to drain."""

    def __init__(
        self,
        context: NodeContext,
        specs: LiveTable,
        gpus: GpuWatch,
        *,
        profile: str,
        registrar: Registrar,
        reloads: Reloads,
        processes: EngineProcesses,
        environment: Mapping[str, str],
    ) -> None:
        self._context: Final = context
        self._specs: Final = specs
        self._gpus: Final = gpus
        self._profile: Final = profile
        self._registrar: Final = registrar
        self._reloads: Final = reloads
        self._processes: Final = processes
        self._environment: Final = environment
        self._provisioning: Final = Provisioning(context.bus, context.node_id)
        self._tight: Final[dict[str, str]] = {}
        """Places without room for two replicas, and the reload in which that was found."""
        self.replicas: Final[dict[str, Replica]] = {}
        self._lives: Final[dict[str, asyncio.Task[None]]] = {}
        self._dirty: Final = asyncio.Event()
        self._stopping = False

    def look(self) -> None:
        """Something may have changed."""
        self._dirty.set()

    async def reconcile_always(self) -> None:
        """Until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if not self._stopping:
                self._reconcile()
            try:
                await self._context.loads.follow(replica.spec.id for replica in self.replicas.values())
            except BusError as error:
                log.debug("the loads of the pools are followed when the bus is back: %s", error)

    async def drain(self, reason: str) -> None:
        """All replicas, for good; returns when no engine is left."""
        self._stopping = True
        for replica in self.replicas.values():
            replica.drain(reason)
        if self._lives:
            await asyncio.wait(set(self._lives.values()))

    def drain_again(self, pool_id: str) -> None:
        """The drain of a pool has another end, which counts for the replicas that drain already; or it is taken back,
        and the pool is served again as soon as they are gone."""
        drain = desired_state.drains(self._specs).get(pool_id)
        for replica in self.replicas.values():
            if not replica.leaving or replica.spec.id != pool_id or self._stopping:
                continue
            if drain is None:
                replica.hurry()
            else:
                _drain_by(replica, drain)

    def _reconcile(self) -> None:
        gpus = self._gpus.report()
        drains = desired_state.drains(self._specs)
        places = desired_places(
            desired_state.pools(self._specs).values(),
            node_id=self._context.node_id,
            gpus=gpus.gpus,
            gpu_problem=gpus.problem,
            profile=self._profile,
            reloads=desired_state.reloads(self._specs),
            drained=drains,
            tight=self._tight,
        )
        todo = changes([replica.present() for replica in self.replicas.values()], places)
        for desired in todo.adopt:
            self.replicas[desired.replica_id].adopt(desired)
        for replica_id in todo.release:
            self.replicas[replica_id].release()
        for replica_id, why in todo.stop:
            self._stop(self.replicas[replica_id], why, drains)
        for start in todo.start:
            self._start(start)
        for name in todo.tight:
            self._tight[name] = places[name].reload_id
            self._dirty.set()

    def _stop(self, replica: Replica, why: Why, drains: Mapping[str, PoolDrain]) -> None:
        """A stream does not go on with another model in the middle: what runs on a replaced one may end."""
        if (drain := drains.get(replica.spec.id)) is not None:
            _drain_by(replica, drain)
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
            gpus=self._gpus.report,
            changed=self._tell,
        )
        self.replicas[replica.replica_id] = replica
        self._lives[replica.replica_id] = asyncio.create_task(self._live(replica), name=f"replica {replica.replica_id}")

    async def _live(self, replica: Replica) -> None:
        key = subjects.replica_key(self._context.node_id, replica.replica_id)
        self._registrar.keep(key, replica.record)
        try:
            await replica.run()
        except Exception:
            log.exception("replica %s ended by a fault of the node", replica.replica_id)
        await self._registrar.leave(key, replica.record())
        del self.replicas[replica.replica_id]
        del self._lives[replica.replica_id]
        self._dirty.set()

    def _tell(self, replica: Replica) -> None:
        """A reload goes by what replicas have become."""
        self._registrar.tell(subjects.replica_key(self._context.node_id, replica.replica_id))
        if self._reloads.underway:
            self._dirty.set()
            self._reloads.look()


def _drain_by(replica: Replica, drain: PoolDrain) -> None:
    replica.drain(Why.DRAINED, max(0, drain.until_ms - now_ms()) / 1000)
