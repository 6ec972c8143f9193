"""One replica: carries out the steps of `core.replica`, from an engine's provisioning to its end. How an engine is
brought up is in `bring_up.py`, how it serves in `serving.py`.

Each step ends with one event; the core says what comes next. A new incarnation begins the moment an engine is found
broken, so that nobody believes its tasks are still held (ARCHITECTURE, invariant 7).
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from llorch_poold.adapters.launch import Unlaunchable
from llorch_poold.adapters.port import EngineFailure
from llorch_poold.bring_up import BringUp
from llorch_poold.core.devices import compute_capability
from llorch_poold.core.pace import Pace
from llorch_poold.core.reconcile import Desired, drain_label
from llorch_poold.core.replica import Happened, ReplicaCore, RestartPolicy, Step
from llorch_poold.core.trust_look import TrustLook
from llorch_poold.engine_life import EngineLife
from llorch_poold.gpu.probe import GpuReport
from llorch_poold.node_context import NodeContext, ReplicaFacts
from llorch_poold.preparation import NoRoom
from llorch_poold.process import EngineProcesses
from llorch_poold.provisioning import NotProvisioned, Provisioning
from llorch_poold.serving import serve
from llorch_poold.slots import Slots
from llorch_poold.task_run import TaskRun
from llorch_shared.bus.port import BusError
from llorch_shared.lifecycle import Stop, first_of
from llorch_shared.logs import narrate
from llorch_shared.settings import PooldSettings
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.registry import Gpu, ReplicaRecord, ReplicaState, Standby, StandbyState
from llorch_shared.wire.spec import PoolSpec

log = logging.getLogger(__name__)

DRAIN_LOOK_S: Final = 0.5
"""How soon another end of a drain that is under way counts."""


class Replica:
    """`run` lives until the replica is drained. `changed` is called whenever its record must be told at once."""

    def __init__(
        self,
        node: NodeContext,
        desired: Desired,
        *,
        processes: EngineProcesses,
        provisioning: Provisioning,
        environment: Mapping[str, str],
        gpus: Callable[[], GpuReport],
        changed: Callable[["Replica"], None],
        place: str = "",
        reload_id: str = "",
    ) -> None:
        """`reload_id`: it holds the new model of this reload, and does not serve before it is released."""
        self._node: Final = node
        self.desired = desired
        self.place: Final = place or desired.replica_id
        self.reload_id = reload_id
        self.no_room = False
        """It has no room beside the replica that serves, and would fit alone."""
        self._holds = False
        self._released: Final = asyncio.Event()
        self._provisioning: Final = provisioning
        self._gpus: Final = gpus
        self._changed: Final = changed
        self._bring_up: Final = BringUp(
            node, processes=processes, provisioning=provisioning, environment=environment, gpus=gpus, say=self._say
        )
        self._core: Final = ReplicaCore(_policy(node.settings), refusal=desired.refusal)
        self._drain: Final = Stop()
        self._drain_until = 0.0
        self._life: EngineLife | None = None
        self._facts: ReplicaFacts | None = None
        self._pace: Final = Pace()
        self._progress = ""
        self._refused_with = ""
        self._trust_look: Final = TrustLook()
        self.incarnation = secrets.token_hex(8)
        self._slots: Final = Slots(node, timeouts=lambda: self.spec.timeouts, dropped=self._tell)

    @property
    def replica_id(self) -> str:
        return self.desired.replica_id

    @property
    def spec(self) -> PoolSpec:
        return self.desired.spec

    @property
    def state(self) -> ReplicaState:
        return self._core.state

    @property
    def runs(self) -> Mapping[int, TaskRun]:
        """By slot."""
        return self._slots.runs

    @property
    def slots(self) -> Slots:
        return self._slots

    def adopt(self, desired: Desired) -> None:
        """Another policy or other limits; tasks that run keep theirs."""
        self.desired = desired

    def drain(self, reason: str, timeout_s: float | None = None) -> None:
        """Finish what runs within `timeout_s` (None: the node's drain timeout), take no more, then stop the engine. Of
        several calls the last one's time counts."""
        timeout_s = self._node.settings.drain_timeout_ms / 1000 if timeout_s is None else timeout_s
        self._drain_until = asyncio.get_running_loop().time() + timeout_s
        if not self._drain:
            self._node.metrics.counter("drain_events_total").labels(self.spec.id, drain_label(reason)).inc()
        self._drain.wish(reason)
        self._slots.close()

    def hurry(self) -> None:
        """Whatever time was given to a drain that is under way: no more than the node gives from now on."""
        timeout_s = self._node.settings.drain_timeout_ms / 1000
        self._drain_until = min(self._drain_until, asyncio.get_running_loop().time() + timeout_s)

    @property
    def leaving(self) -> bool:
        return bool(self._drain)

    def release(self) -> None:
        """The reload is decided for its model: it serves as soon as it is ready."""
        self.reload_id = ""
        self._released.set()

    async def run(self) -> None:
        step = self._core.step
        self._tell()
        try:
            while True:
                happened, reason = await self._carry_out(step)
                if step is Step.DRAIN:
                    return
                if self._drain:
                    happened, reason = Happened.DRAIN_WISHED, ""
                if happened is Happened.BROKE:
                    self.incarnation = secrets.token_hex(8)
                before = self._core.state
                jitter = random.random()  # noqa: S311
                step = self._core.handle(
                    happened, now_ms=_clock_ms(), reason=reason, code=self._refused_with, jitter=jitter
                )
                self._moved(before, reason)
                if happened is Happened.BROKE:
                    await self._bury(reason)
        finally:
            await self._bury(self._drain.reason or "a fault of the node")

    def record(self) -> ReplicaRecord:
        core, spec = self._core, self.spec
        ready = core.state is ReplicaState.READY
        facts = self._facts
        gpus = self._own_gpus()
        return ReplicaRecord(
            replica_id=self.replica_id,
            pool_id=spec.id,
            node_id=self._node.node_id,
            incarnation=self.incarnation,
            state=core.state,
            engine=spec.engine,
            engine_version=facts.engine_version if facts is not None else "",
            model_ref=spec.model,
            model_digest=facts.model_digest if facts is not None else "",
            sampler_profile_version=spec.sampler_profile_version,
            device=self.desired.device.label,
            slots_total=self._life.slots if ready and self._life is not None else 0,
            active=tuple(run.task_id for run in self.runs.values()),
            ctx_max=spec.ctx,
            takes_ahead=True,
            free_vram_mb=sum(gpu.vram_free_mb for gpu in gpus),
            workloads=spec.serves,
            quant=spec.quant or "",
            compute_capability=compute_capability(gpus),
            determinism_class=facts.determinism_class if facts is not None else "",
            features=facts.features if facts is not None else (),
            perf_tokens_per_s=self._pace.tokens_per_s,
            perf_first_token_ms=self._pace.first_token_ms,
            live=self._life is not None and self._life.alive,
            heartbeat_ms=now_ms(),
            restart_count=core.restart_count,
            backoff_ms=core.backoff_ms,
            last_error=core.last_error,
            refused=core.refused,
            progress="" if ready else self._progress,
            standby=self._standby(),
        )

    def _standby(self) -> Standby | None:
        if not self.reload_id:
            return None
        broken = self._core.state in (ReplicaState.BACKOFF, ReplicaState.FAILED)
        waits = self._core.state is ReplicaState.BACKOFF and self.no_room
        state = StandbyState.FAILED if broken and not waits else StandbyState.COMING
        return Standby(reload_id=self.reload_id, state=StandbyState.READY if self._holds else state)

    def _own_gpus(self) -> list[Gpu]:
        return self._gpus().on(self.desired.device.uuids)

    async def _carry_out(self, step: Step) -> tuple[Happened, str]:
        """One step; a wish to drain interrupts every step but the drain itself."""
        if step is Step.DRAIN:
            await self._drain_now()
            return Happened.DRAIN_WISHED, ""
        outcome: list[tuple[Happened, str]] = []

        async def work() -> None:
            outcome.append(await self._work_on(step))

        await first_of(work(), self._drain.wait())
        return outcome[0] if outcome else (Happened.DRAIN_WISHED, "")

    async def _work_on(self, step: Step) -> tuple[Happened, str]:
        try:
            match step:
                case Step.PROVISION:
                    return await self._provision()
                case Step.SPAWN:
                    return await self._spawn()
                case Step.SELF_TEST:
                    return await self._self_test()
                case Step.SERVE:
                    return await self._serve()
                case Step.WAIT:
                    await asyncio.sleep(self._core.backoff_ms / 1000)
                    self._node.metrics.counter("replica_restarts_total").labels(self.spec.id).inc()
                    return Happened.WAITED, ""
                case _:
                    return await self._halt()
        except NoRoom as failure:
            self.no_room = failure.fits_alone
            return Happened.BROKE, str(failure)
        except EngineFailure as failure:
            return Happened.BROKE, str(failure)
        except NotProvisioned as error:
            self._refused_with = error.code
            self._trust_look.refused(costly=error.costly)
            return (Happened.REFUSED if error.final else Happened.BROKE), str(error)
        except Unlaunchable as error:
            return Happened.REFUSED, str(error)
        except BusError as error:
            return Happened.BROKE, f"the bus: {error}"
        except Exception as error:
            log.exception("replica %s: the node failed at step %s", self.replica_id, step)
            return Happened.BROKE, f"a fault of the node at step {step}: {error!r}"

    async def _halt(self) -> tuple[Happened, str]:
        """Nothing is tried again, but whether a model that is not trusted has become so: less often each time."""
        if not self._core.refused:
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(self._trust_look.pause_s())
            if await self._provisioning.permitted(self.spec):
                return Happened.PERMITTED, ""

    async def _provision(self) -> tuple[Happened, str]:
        self.no_room = False
        self._refused_with = ""
        await self._bring_up.provision(self.desired)
        self._trust_look.permitted()
        return Happened.PROVISIONED, ""

    async def _spawn(self) -> tuple[Happened, str]:
        self._life = await self._bring_up.launch(self.desired)
        await self._bring_up.until_ready(self.desired, self._life)
        return Happened.LISTENING, ""

    async def _self_test(self) -> tuple[Happened, str]:
        life = self._life
        assert life is not None
        self._facts = await self._bring_up.test(self.desired, life, incarnation=self.incarnation, pace=self._pace)
        return await self._hold(life)

    async def _hold(self, life: EngineLife) -> tuple[Happened, str]:
        """Ready in all but name while its reload is open; an engine that breaks meanwhile is found."""
        if not self.reload_id:
            return Happened.PASSED, ""
        reason: list[str] = []

        async def watch() -> None:
            reason.append(await life.until_broken())

        self._holds, self._progress = True, "ready, and waits for the reload to be decided"
        self._tell()
        try:
            await first_of(watch(), self._released.wait())
        finally:
            self._holds = False
        return (Happened.BROKE, reason[0]) if reason else (Happened.PASSED, "")

    async def _serve(self) -> tuple[Happened, str]:
        assert self._life is not None
        assert self._facts is not None
        return Happened.BROKE, await serve(self._node, self._life, self._facts, self._slots, gpus=self._own_gpus)

    async def _drain_now(self) -> None:
        """Wait for the tasks that run; at the deadline they make way, and another replica goes on. What cannot is lost
        with the engine, which counts as an attempt."""
        clock = asyncio.get_running_loop().time
        while not await self._slots.finished(max(0.0, min(DRAIN_LOOK_S, self._drain_until - clock()))):
            if clock() >= self._drain_until:
                await self._slots.hand_over()
                break
        self.incarnation = secrets.token_hex(8)

    async def _bury(self, reason: str) -> None:
        """The present life is over: its tasks are lost, its process is ended."""
        self._slots.lose(reason)
        life, self._life = self._life, None
        self._facts = None
        if life is not None:
            await life.end()
        await self._slots.cleared(for_good=bool(self._drain))
        self._tell()

    def _moved(self, before: ReplicaState, reason: str) -> None:
        core = self._core
        if core.state is before:
            return
        self._progress = ""
        level = logging.WARNING if core.state in (ReplicaState.BACKOFF, ReplicaState.FAILED) else logging.INFO
        narrate(
            log,
            f"replica {self.replica_id} is {core.state}{f': {reason}' if reason else ''}",
            actor="poold",
            action=f"replica.{core.state}",
            target=self.replica_id,
            level=level,
            restart_count=core.restart_count,
            backoff_ms=core.backoff_ms,
            last_error=core.last_error,
            device_mask=self.desired.device.label,
            **self._ids(),
        )
        self._tell()

    def _say(self, progress: str) -> None:
        if progress != self._progress:
            self._progress = progress
            self._tell()

    def _tell(self) -> None:
        self._changed(self)

    def _ids(self) -> dict[str, Any]:
        return {"pool_id": self.spec.id, "replica_id": self.replica_id, "engine": self.spec.engine}


def _policy(settings: PooldSettings) -> RestartPolicy:
    return msgspec.convert(settings, RestartPolicy, from_attributes=True)


def _clock_ms() -> int:
    return time.monotonic_ns() // 1_000_000
