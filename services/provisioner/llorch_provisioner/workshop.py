"""Wishes in, one job for each distinct one, events out. Jobs run here; what they do is in engines.py and models.py.

A wish is judged at once, without waiting for anything: plan or refusal. The job then runs on its own, at most
`jobs_max` at a time, and belongs to nobody: who asked may leave, and whoever asks again is told how it stands.
"""

import asyncio
import errno
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Final, assert_never

from llorch_provisioner.cache import Cache
from llorch_provisioner.core import plan as planning
from llorch_provisioner.core.failure import Failure
from llorch_provisioner.core.jobs import Answer, Job, JobBook, job_id
from llorch_provisioner.engines import cached_engine, fulfil_engine, present_engines
from llorch_provisioner.job_report import JobReport
from llorch_provisioner.models import cached_model, fulfil_model, present_models
from llorch_provisioner.reporter import Limits
from llorch_provisioner.telling import Teller
from llorch_shared.embedded_defaults import DEFAULT_ENGINE_PACKAGE, KNOWN_WHEELS
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.settings import ProvisionerSettings
from llorch_shared.wall_clock import now_ms
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

REFUSALS_KEPT_MAX: Final = 256
"""Whose reason was said: the same again is said to who asks, and not to the log."""

Permitted = Callable[[str], Collection[str] | None]
"""The digests that a model of this reference may have, None for any. Raises Failure when it may not be loaded."""


def _any_model(_model_ref: str) -> None:
    return None


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
        permitted: Permitted = _any_model,
        known_wheels: planning.KnownWheels = KNOWN_WHEELS,
        cpu_only: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        self.cache: Final = cache
        self.metrics: Final = metrics
        self._stopping = False
        self._teller: Final = Teller(tell)
        self._actor: Final = f"provisioner/{node_id}"
        self._node: Final = node_id
        self._environment: Final = environment
        self._known: Final = known_wheels
        self._permitted: Final = permitted
        self._policy: Final = planning.Policy(
            offline=settings.offline, packages_allowed=settings.packages_allowed, cpu_only=cpu_only
        )
        self._limits: Final = Limits(
            download_timeout_s=settings.download_timeout_s, artifact_bytes_max=settings.artifact_bytes_max
        )
        self._book: Final = JobBook()
        self._turns: Final = asyncio.Semaphore(settings.jobs_max)
        self._running: Final[set[asyncio.Task[None]]] = set()
        self._refused: Final[dict[str, str]] = {}

    async def __aenter__(self) -> "Workshop":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._teller.close()

    def ensure(self, request: EnsureEngine | EnsureModel) -> ProvisionPlan:
        """The plan, or why not. Does not wait: judging and joining are one step, so equal wishes share one job."""
        name = job_id(request)
        try:
            order = self._order(request)
            answer = self._book.answer(name, now_ms())
            match answer:
                case Answer.JOIN | Answer.REPEAT:
                    job = self._book[name]
                    if job.ended:
                        self._teller.outcome(job)
                    else:
                        self._teller.present(job)
                    return ProvisionPlan(job=name, steps=job.steps)
                case Answer.BUSY:
                    raise Failure("too many provisioning jobs are waiting", "ask again when some have ended")
                case Answer.RUN:
                    result = self._cached(order)
                    steps = planning.plan(order, cached=result is not None, policy=self._policy)
                case never:
                    assert_never(never)
        except Failure as refusal:
            return self._refuse(name, request, refusal)
        except OSError as error:
            return self._refuse(name, request, _of_system(error))
        self._refused.pop(name, None)
        job = Job(name, self._node, _target(request), steps, now_ms())
        self._book.add(job)
        task = asyncio.create_task(self._run(job, request, order, result), name=f"provision {name}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return ProvisionPlan(job=name, steps=steps)

    def _refuse(self, name: str, request: EnsureEngine | EnsureModel, refusal: Failure) -> ProvisionPlan:
        reason = refusal.sentence()
        again = self._refused.get(name) == reason
        self._refused[name] = reason
        if len(self._refused) > REFUSALS_KEPT_MAX:
            del self._refused[next(iter(self._refused))]
        narrate(
            log,
            f"refuses {_target(request)}: {reason}",
            actor=self._actor,
            action="provision.refused",
            target=_target(request),
            level=logging.DEBUG if again else logging.WARNING,
            job=name,
        )
        if refusal.code and not again:
            engine = str(request.engine) if isinstance(request, EnsureEngine) else ""
            counter = self.metrics.counter("catalog_verifications_total")
            counter.labels(result="fail", reason="untrusted", engine=engine).inc()
        return ProvisionPlan(job=name, steps=(), refusal=reason, code=refusal.code)

    def status(self) -> ProvisionerStatus:
        """What is here and what is being done."""
        return ProvisionerStatus(
            node_id=self._node,
            engines=present_engines(self.cache),
            models=present_models(self.cache),
            jobs=self._book.events(now_ms()),
        )

    def _order(self, request: EnsureEngine | EnsureModel) -> planning.Order:
        if isinstance(request, EnsureEngine):
            return planning.engine_order(request, self._known, DEFAULT_ENGINE_PACKAGE)
        return planning.model_order(request, self._known, self._permitted(request.model_ref))

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
        report = JobReport(
            job,
            self._teller,
            self.metrics,
            actor=self._actor,
            target=_target(request),
            engine=request.engine if isinstance(request, EnsureEngine) else "",
            stopping=lambda: self._stopping,
        )
        async with self._teller.alive(job):
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
                self._teller.present(job)
                raise
            except Failure as failure:
                job.fail(str(failure), failure.hint, now_ms(), code=failure.code)
                report.failed(failure)
            except OSError as error:
                said = _of_system(error)
                job.fail(str(said), said.hint, now_ms())
                report.failed(said)
            except Exception as error:
                log.exception("job %s broke", job.id, extra={"job": job.id})
                job.fail(f"a fault of the provisioner itself: {error!r}", "its log says more", now_ms())
        self._teller.outcome(job)

    async def _fulfil(self, order: planning.Order, report: JobReport) -> PreparedEngine | ResolvedModel:
        if isinstance(order, planning.ProbeExternal | planning.InstallPackage):
            return await fulfil_engine(order, self.cache, report, self._environment, self._limits)
        return await fulfil_model(order, self.cache, report, self._environment, self._limits)


def _target(request: EnsureEngine | EnsureModel) -> str:
    return f"engine {request.engine}" if isinstance(request, EnsureEngine) else f"model {request.model_ref[:200]}"


def _of_system(error: OSError) -> Failure:
    hint = "nothing was put into place; try again"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space or set provisioner.cache_dir to a bigger disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        hint = "make provisioner.cache_dir a writable folder of this user"
    return Failure(f"the disk or the system said: {error}", hint)
