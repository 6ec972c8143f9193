"""One replica: carries out the steps of `core.replica`, from an engine's provisioning to its end. How an engine is
brought up is in `bring_up.py`, how it serves in `serving.py`, how it drains in `drain.py`.

Each step ends with one event; the core says what comes next. A new incarnation begins the moment an engine is found
broken, so that nobody believes its tasks are still held (ARCHITECTURE, invariant 7).
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from llorch_poold.adapters.launch import Unlaunchable
from llorch_poold.adapters.port import EngineFailure
from llorch_poold.bring_up import BringUp
from llorch_poold.core.devices import compute_capability
from llorch_poold.core.pace import Pace
from llorch_poold.core.reconcile import Desired, Present, Start, drain_label
from llorch_poold.core.replica import Happened, Outcome, ReplicaCore, RestartPolicy, Step
from llorch_poold.core.trust_look import TrustLook
from llorch_poold.drain import Drain
from llorch_poold.engine_life import EngineLife
from llorch_poold.gpu.probe import GpuReport
from llorch_poold.node_context import NodeContext, ReplicaFacts
from llorch_poold.preparation import NoRoom
from llorch_poold.process import EngineProcesses
from llorch_poold.provisioning import NotProvisioned, Provisioning
from llorch_poold.serving import serve
from llorch_poold.slots import Slots
from llorch_poold.standby import Hold
from llorch_shared.bus.port import BusError
from llorch_shared.lifecycle import first_of
from llorch_shared.logs import narrate
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.registry import Gpu, ReplicaRecord, ReplicaState
from llorch_shared.wire.spec import PoolSpec

log = logging.getLogger(__name__)

_COMING_UP: Final = frozenset({ReplicaState.PROVISIONING, ReplicaState.STARTING, ReplicaState.TESTING})


class Replica:
    """`run` lives until the replica is drained. `changed` is called whenever its record must be told at once."""

    def __init__(
        self,
        node: NodeContext,
        start: Start,
        *,
        processes: EngineProcesses,
        provisioning: Provisioning,
        environment: Mapping[str, str],
        gpus: Callable[[], GpuReport],
        changed: Callable[["Replica"], None],
    ) -> None:
        self._node: Final = node
        self._desired = start.desired
        self._place: Final = start.place
        self._hold: Final = Hold(start.reload_id)
        self._provisioning: Final = provisioning
        self._gpus: Final = gpus
        self._changed: Final = changed
        self._bring_up: Final = BringUp(
            node, processes=processes, provisioning=provisioning, environment=environment, gpus=gpus, say=self._say
        )
        policy = msgspec.convert(node.settings, RestartPolicy, from_attributes=True)
        self._core: Final = ReplicaCore(policy, refusal=start.desired.refusal)
        self._drain: Final = Drain(node.settings.drain_timeout_ms / 1000)
        self._life: EngineLife | None = None
        self._facts: ReplicaFacts | None = None
        self._pace: Final = Pace()
        self._progress = ""
        self._trust_look: Final = TrustLook()
        self.incarnation = secrets.token_hex(8)
        self.slots: Final = Slots(node, timeouts=lambda: self.spec.timeouts, dropped=self._tell)

    @property
    def replica_id(self) -> str:
        return self._desired.replica_id

    @property
    def spec(self) -> PoolSpec:
        return self._desired.spec

    def present(self) -> Present:
        """As what is desired is compared with it."""
        return Present(
            place=self._place,
            desired=self._desired,
            leaving=self.leaving,
            settled=self._core.state not in _COMING_UP,
            reload_id=self._hold.reload_id,
            no_room=self._hold.no_room,
        )

    def adopt(self, desired: Desired) -> None:
        """Another policy or other limits; tasks that run keep theirs."""
        self._desired = desired

    def drain(self, reason: str, timeout_s: float | None = None) -> None:
        """Finish what runs within `timeout_s` (None: the node's drain timeout), take no more, then stop the engine. Of
        several calls the last one's time counts."""
        if not self._drain:
            self._node.metrics.counter("drain_events_total").labels(self.spec.id, drain_label(reason)).inc()
        self._drain.wish(reason, timeout_s)
        self.slots.close()

    def hurry(self) -> None:
        """Whatever time was given to a drain that is under way: no more than the node gives from now on."""
        self._drain.hurry()

    @property
    def leaving(self) -> bool:
        return bool(self._drain)

    def release(self) -> None:
        """The reload is decided for its model: it serves as soon as it is ready."""
        self._hold.release()

    async def run(self) -> None:
        step = self._core.step
        self._tell()
        try:
            while step is not Step.DRAIN:
                outcome = await self._carry_out(step)
                broke = outcome.happened is Happened.BROKE
                if broke:
                    self.incarnation = secrets.token_hex(8)
                before = self._core.state
                clock_ms = time.monotonic_ns() // 1_000_000
                step = self._core.handle(outcome, now_ms=clock_ms, jitter=random.random())  # noqa: S311
                self._moved(before, outcome.reason)
                if broke:
                    await self._bury(outcome.reason)
            await self._drain.finish(self.slots)
            self.incarnation = secrets.token_hex(8)
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
            device=self._desired.device.label,
            slots_total=self._life.slots if ready and self._life is not None else 0,
            active=tuple(run.task_id for run in self.slots.runs.values()),
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
            standby=self._hold.told(core.state),
        )

    def _own_gpus(self) -> list[Gpu]:
        return self._gpus().on(self._desired.device.uuids)

    async def _carry_out(self, step: Step) -> Outcome:
        """One step, interrupted by a wish to drain."""
        found: list[Outcome] = []

        async def work() -> None:
            found.append(await self._work_on(step))

        await first_of(work(), self._drain.wished())
        return Outcome(Happened.DRAIN_WISHED) if self._drain else found[0]

    async def _work_on(self, step: Step) -> Outcome:
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
                    return Outcome(Happened.WAITED)
                case _:
                    return await self._halt()
        except NoRoom as failure:
            self._hold.no_room = failure.fits_alone
            return Outcome(Happened.BROKE, str(failure))
        except EngineFailure as failure:
            return Outcome(Happened.BROKE, str(failure))
        except NotProvisioned as error:
            self._trust_look.refused(costly=error.costly)
            return Outcome(Happened.REFUSED if error.final else Happened.BROKE, str(error), error.code)
        except Unlaunchable as error:
            return Outcome(Happened.REFUSED, str(error))
        except BusError as error:
            return Outcome(Happened.BROKE, f"the bus: {error}")
        except Exception as error:
            log.exception("replica %s: the node failed at step %s", self.replica_id, step)
            return Outcome(Happened.BROKE, f"a fault of the node at step {step}: {error!r}")

    async def _halt(self) -> Outcome:
        """Nothing is tried again, but whether a model that is not trusted has become so: less often each time."""
        if not self._core.refused:
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(self._trust_look.pause_s())
            if await self._provisioning.permitted(self.spec):
                return Outcome(Happened.PERMITTED)

    async def _provision(self) -> Outcome:
        self._hold.no_room = False
        await self._bring_up.provision(self._desired)
        self._trust_look.permitted()
        return Outcome(Happened.PROVISIONED)

    async def _spawn(self) -> Outcome:
        self._life = await self._bring_up.launch(self._desired)
        await self._bring_up.until_ready(self._desired, self._life)
        return Outcome(Happened.LISTENING)

    async def _self_test(self) -> Outcome:
        life = self._life
        assert life is not None
        self._facts = await self._bring_up.test(self._desired, life, incarnation=self.incarnation, pace=self._pace)
        reason = await self._hold.last(life, self._say)
        return Outcome(Happened.BROKE, reason) if reason else Outcome(Happened.PASSED)

    async def _serve(self) -> Outcome:
        assert self._life is not None
        assert self._facts is not None
        reason = await serve(self._node, self._life, self._facts, self.slots, gpus=self._own_gpus)
        return Outcome(Happened.BROKE, reason)

    async def _bury(self, reason: str) -> None:
        """The present life is over: its tasks are lost, its process is ended."""
        self.slots.lose(reason)
        life, self._life = self._life, None
        self._facts = None
        if life is not None:
            await life.end()
        await self.slots.cleared(for_good=self.leaving)
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
            device_mask=self._desired.device.label,
            pool_id=self.spec.id,
            replica_id=self.replica_id,
            engine=self.spec.engine,
        )
        self._tell()

    def _say(self, progress: str) -> None:
        if progress != self._progress:
            self._progress = progress
            self._tell()

    def _tell(self) -> None:
        self._changed(self)
