"""Wishes in, one job for each distinct one, events out. Jobs run here; what they do is in engines.py and models.py.

A wish is judged at once, without waiting for anything: plan or refusal. The job then runs on its own, at most
`jobs_max` at a time, and tells every step, its bytes, at least every second that it lives, and its outcome. Events are
signals that a listener may miss, so the outcome is told several times over the next seconds, and again when asked.
"""

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final, assert_never

from llorch_provisioner.cache import Cache
from llorch_provisioner.core import plan as planning
from llorch_provisioner.core.failure import Failure, Untrusted
from llorch_provisioner.core.jobs import Answer, Job, JobBook, job_id
from llorch_provisioner.engines import cached_engine, fulfil_engine
from llorch_provisioner.models import cached_model, fulfil_model
from llorch_provisioner.reporter import Limits
from llorch_shared.embedded_defaults import DEFAULT_ENGINE_PACKAGE, KNOWN_WHEELS
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.settings import ProvisionerSettings
from llorch_shared.wire.provision import (
    EnsureEngine,
    EnsureModel,
    PreparedEngine,
    ProvisionerStatus,
    ProvisionEvent,
    ProvisionPlan,
    ResolvedModel,
)

log: Final = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.25
TELL_AT_LEAST_EVERY_MS: Final = 1_000
OUTCOME_TOLD_AGAIN_AFTER_S: Final = (0.25, 0.75, 2.0, 2.0)
"""A listener learns the job's name only from the plan, and may subscribe after a short job has ended."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Workshop:
    """The jobs of one node. Use as an async context; leaving it stops what is under way."""

    def __init__(
        self,
        cache: Cache,
        settings: ProvisionerSettings,
        *,
        node_id: str,
        environment: Mapping[str, str],
        tell: Callable[[ProvisionEvent], None],
        metrics: Metrics,
        known_wheels: planning.KnownWheels = KNOWN_WHEELS,
        cpu_only: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        self.cache: Final = cache
        self.metrics: Final = metrics
        self.stopping = False
        self.tell: Final = tell
        self.actor: Final = f"provisioner/{node_id}"
        self._node: Final = node_id
        self._environment: Final = environment
        self._known: Final = known_wheels
        self._policy: Final = planning.Policy(
            offline=settings.offline, packages_allowed=settings.packages_allowed, cpu_only=cpu_only
        )
        self._limits: Final = Limits(
            download_timeout_s=settings.download_timeout_s, artifact_bytes_max=settings.artifact_bytes_max
        )
        self._book: Final = JobBook()
        self._turns: Final = asyncio.Semaphore(settings.jobs_max)
        self._running: Final[set[asyncio.Task[None]]] = set()
        self._telling: Final[dict[str, asyncio.Task[None]]] = {}

    async def __aenter__(self) -> "Workshop":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stopping = True
        tasks = [*self._running, *self._telling.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def ensure(self, request: EnsureEngine | EnsureModel) -> ProvisionPlan:
        """The plan, or why not. Does not wait: judging and joining are one step, so equal wishes share one job."""
        name = job_id(request)
        try:
            order = self._order(request)
            answer = self._book.answer(name, now_ms())
            match answer:
                case Answer.JOIN | Answer.REPEAT:
                    job = self._book[name]
                    self._tell_outcome(job) if job.ended else self.tell(job.event(now_ms()))
                    return ProvisionPlan(job=name, steps=job.steps)
                case Answer.BUSY:
                    raise Failure("too many provisioning jobs are waiting", "ask again when some have ended")
                case Answer.RUN:
                    result = self._cached(order)
                    steps = planning.plan(order, cached=result is not None, policy=self._policy)
                case never:
                    assert_never(never)
        except Failure as refusal:
            narrate(
                log,
                f"refuses {_target(request)}: {refusal.sentence()}",
                actor=self.actor,
                action="provision.refused",
                target=_target(request),
                level=logging.WARNING,
                job=name,
            )
            return ProvisionPlan(job=name, steps=(), refusal=refusal.sentence())
        job = Job(name, self._node, _target(request), steps, now_ms())
        self._book.add(job)
        if earlier := self._telling.pop(name, None):
            earlier.cancel()
        task = asyncio.create_task(self._run(job, request, order, result), name=f"provision {name}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return ProvisionPlan(job=name, steps=steps)

    def status(self) -> ProvisionerStatus:
        """What is here and what is being done."""
        return ProvisionerStatus(
            node_id=self._node,
            engines=tuple(entry.prepared for entry in self.cache.engines.all()),
            models=tuple(entry.resolved(entry.model_ref, verified=entry.verified) for entry in self.cache.models.all()),
            jobs=self._book.events(now_ms()),
        )

    def _order(self, request: EnsureEngine | EnsureModel) -> planning.Order:
        if isinstance(request, EnsureEngine):
            return planning.engine_order(request, self._known, DEFAULT_ENGINE_PACKAGE)
        return planning.model_order(request, self._known)

    def _cached(self, order: planning.Order) -> PreparedEngine | ResolvedModel | None:
        if isinstance(order, planning.ProbeExternal | planning.InstallPackage):
            return cached_engine(order, self.cache, self._environment)
        return cached_model(order, self.cache)

    async def _run(
        self,
        job: Job,
        request: EnsureEngine | EnsureModel,
        order: planning.Order,
        result: PreparedEngine | ResolvedModel | None,
    ) -> None:
        report = JobReport(job, self, _target(request), request.engine if isinstance(request, EnsureEngine) else "")
        async with self._alive(job):
            try:
                if result is None:
                    async with self._turns:
                        job.start(now_ms())
                        result = await self._fulfil(order, report)
                else:
                    job.start(now_ms())
                    report.begin("check")
                job.finish(result, now_ms())
                report.ready(result)
            except asyncio.CancelledError:
                job.fail("the provisioner is stopping", "ask again when it is back", now_ms())
                self.tell(job.event(now_ms()))
                raise
            except Failure as failure:
                job.fail(str(failure), failure.hint, now_ms())
                report.failed(failure)
            except OSError as error:
                refused = Failure(f"the disk or the system said: {error}", _os_hint(error))
                job.fail(str(refused), refused.hint, now_ms())
                report.failed(refused)
            except Exception as error:
                log.exception("job %s broke", job.id, extra={"job": job.id})
                job.fail(f"a fault of the provisioner itself: {error!r}", "its log says more", now_ms())
        self._tell_outcome(job)

    async def _fulfil(self, order: planning.Order, report: "JobReport") -> PreparedEngine | ResolvedModel:
        if isinstance(order, planning.ProbeExternal | planning.InstallPackage):
            return await fulfil_engine(order, self.cache, report, self._environment, self._limits)
        return await fulfil_model(order, self.cache, report, self._environment, self._limits)

    @contextlib.asynccontextmanager
    async def _alive(self, job: Job) -> AsyncIterator[None]:
        """While inside, the job's bytes are told as they change, and that it lives at least every second."""
        ticker = asyncio.create_task(self._tick(job), name=f"tell {job.id}")
        try:
            yield
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)

    async def _tick(self, job: Job) -> None:
        told, told_ms = job.event(0), 0
        while True:
            present = job.event(0)
            if present != told or now_ms() - told_ms >= TELL_AT_LEAST_EVERY_MS - LOOK_EVERY_S * 500:
                told, told_ms = present, now_ms()
                self.tell(job.event(told_ms))
            await asyncio.sleep(LOOK_EVERY_S)

    def _tell_outcome(self, job: Job) -> None:
        """Now, and again for who listens a little later; a series under way starts anew."""
        self.tell(job.event(now_ms()))
        if self.stopping:
            return
        if earlier := self._telling.get(job.id):
            earlier.cancel()
        task = asyncio.create_task(self._tell_again(job), name=f"tell again {job.id}")
        self._telling[job.id] = task
        task.add_done_callback(lambda ended: self._told(job.id, ended))

    def _told(self, job_id: str, ended: asyncio.Task[None]) -> None:
        if self._telling.get(job_id) is ended:
            del self._telling[job_id]

    async def _tell_again(self, job: Job) -> None:
        for pause in OUTCOME_TOLD_AGAIN_AFTER_S:
            await asyncio.sleep(pause)
            self.tell(job.event(now_ms()))


class JobReport:
    """`Reporter` of one job: events, log lines and metrics."""

    def __init__(self, job: Job, workshop: Workshop, target: str, engine: str) -> None:
        self._job: Final = job
        self._workshop: Final = workshop
        self._target: Final = target
        self._engine: Final = engine
        self._began: Final = time.monotonic()

    def now_ms(self) -> int:
        return now_ms()

    def begin(self, kind: str) -> None:
        step = self._job.begin(kind, now_ms())
        self._workshop.tell(self._job.event(now_ms()))
        self._say(f"{_DOING.get(kind, kind)} {step.detail}", f"provision.{kind}")

    def advance(self, done: int, total: int) -> None:
        if self._workshop.stopping:
            raise Failure("the provisioner is stopping", "ask again when it is back")
        self._job.advance(done, total)

    def verified(self, matched: bool, what: str) -> None:
        result, reason = ("ok", "matched") if matched else ("unverified", "no_digest")
        self._count(result, reason)
        if not matched:
            self._say(f"no digest was given for {what}: records what it is", "provision.unverified", logging.WARNING)

    def ready(self, result: PreparedEngine | ResolvedModel) -> None:
        took = time.monotonic() - self._began
        digest = result.engine_digest if isinstance(result, PreparedEngine) else result.digest
        self._say(f"ready: {self._target} after {took:.1f} s", "provision.ready", took_s=round(took, 3), digest=digest)

    def failed(self, failure: Failure) -> None:
        if isinstance(failure, Untrusted):
            self._count("failed", "untrusted")
        self._say(f"{self._target} failed: {failure.sentence()}", "provision.failed", logging.ERROR)

    def _count(self, result: str, reason: str) -> None:
        counter = self._workshop.metrics.counter("catalog_verifications_total")
        counter.labels(result=result, reason=reason, engine=self._engine).inc()

    def _say(self, human: str, action: str, level: int = logging.INFO, **fields: object) -> None:
        narrate(
            log,
            human,
            actor=self._workshop.actor,
            action=action,
            target=self._target,
            level=level,
            job=self._job.id,
            **fields,
        )


_DOING: Final = {
    "check": "checks",
    "download": "downloads",
    "verify": "verifies",
    "install": "installs",
    "extract": "takes out",
    "move": "moves",
    "register": "registers",
}


def _target(request: EnsureEngine | EnsureModel) -> str:
    return f"engine {request.engine}" if isinstance(request, EnsureEngine) else f"model {request.model_ref[:200]}"


def _os_hint(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space or set provisioner.cache_dir to a bigger disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        return "make provisioner.cache_dir a writable folder of this user"
    return "nothing was put into place; try again"
