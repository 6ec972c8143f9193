"""What one job says while it works: its events, its log lines in the present tense, its metrics."""

import logging
import time
from collections.abc import Callable
from typing import Final

from llorch_provisioner.core.failure import Failure, Untrusted
from llorch_provisioner.core.jobs import Job
from llorch_provisioner.telling import Teller
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.provision import PreparedEngine, ResolvedModel

log: Final = logging.getLogger(__name__)

_DOING: Final = {
    "check": "checks",
    "download": "downloads",
    "verify": "verifies",
    "install": "installs",
    "extract": "takes out",
    "move": "moves",
    "register": "registers",
}


class JobReport:
    """`Reporter` of one job. `engine` is a metric label: empty for a model."""

    def __init__(
        self,
        job: Job,
        teller: Teller,
        metrics: Metrics,
        *,
        actor: str,
        target: str,
        engine: str,
        stopping: Callable[[], bool],
    ) -> None:
        self._job: Final = job
        self._teller: Final = teller
        self._metrics: Final = metrics
        self._actor: Final = actor
        self._target: Final = target
        self._engine: Final = engine
        self._stopping: Final = stopping
        self._began: Final = time.monotonic()

    def now_ms(self) -> int:
        return now_ms()

    def begin(self, kind: str) -> None:
        step = self._job.begin(kind, now_ms())
        self._teller.present(self._job)
        self._say(f"{_DOING[kind]} {step.detail}", f"provision.{kind}")

    def advance(self, done: int, total: int) -> None:
        if self._stopping():
            raise Failure("the provisioner is stopping", "ask again when it is back")
        self._job.advance(done, total)

    def verified(self, matched: bool, what: str) -> None:
        result, reason = ("pass", "matched") if matched else ("warn", "no_digest")
        self._count(result, reason)
        if not matched:
            self._say(f"no digest was given for {what}: records what it is", "provision.unverified", logging.WARNING)

    def ready(self, result: PreparedEngine | ResolvedModel) -> None:
        """The job is done."""
        took = time.monotonic() - self._began
        digest = result.engine_digest if isinstance(result, PreparedEngine) else result.digest
        self._say(f"ready: {self._target} after {took:.1f} s", "provision.ready", took_s=round(took, 3), digest=digest)

    def failed(self, failure: Failure) -> None:
        """The job ended without a result."""
        if isinstance(failure, Untrusted):
            self._count("fail", "untrusted")
        self._say(f"{self._target} failed: {failure.sentence()}", "provision.failed", logging.ERROR)

    def _count(self, result: str, reason: str) -> None:
        counter = self._metrics.counter("catalog_verifications_total")
        counter.labels(result=result, reason=reason, engine=self._engine).inc()

    def _say(self, human: str, action: str, level: int = logging.INFO, **fields: object) -> None:
        narrate(
            log,
            human,
            actor=self._actor,
            action=action,
            target=self._target,
            level=level,
            job=self._job.id,
            **fields,
        )
