"""When a job's events are told: as it changes, at least every second while it lives, and its outcome several times.

Events are signals that a listener may miss: it learns the job's name only from the plan, and may subscribe after a
short job has ended. So the outcome is told again over the next seconds. That series is short and there is one a job.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

from llorch_provisioner.core.jobs import Job
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.provision import ProvisionEvent

LOOK_EVERY_S: Final = 0.25
UNTOLD_MS_MAX: Final = 700
"""With the looking interval added still less than the promised second."""
OUTCOME_TOLD_AGAIN_AFTER_S: Final = (0.25, 0.75, 2.0, 2.0)


class Teller:
    """Tells the jobs of one workshop. `tell` publishes and does not block."""

    def __init__(self, tell: Callable[[ProvisionEvent], None]) -> None:
        self._tell: Final = tell
        self._series: Final[dict[str, asyncio.Task[None]]] = {}

    def present(self, job: Job) -> None:
        """How the job stands now."""
        self._tell(job.event(now_ms()))

    @contextlib.asynccontextmanager
    async def alive(self, job: Job) -> AsyncIterator[None]:
        """While inside, changes are told as they are seen, and that the job lives at least every second."""
        self._end_series(job.id)
        ticker = asyncio.create_task(self._tick(job), name=f"tell {job.id}")
        try:
            yield
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)

    def outcome(self, job: Job) -> None:
        """Now, and again for who listens a little later; a series under way starts anew."""
        self.present(job)
        self._end_series(job.id)
        task = asyncio.create_task(self._again(job), name=f"tell again {job.id}")
        self._series[job.id] = task
        task.add_done_callback(lambda ended: self._forget(job.id, ended))

    async def close(self) -> None:
        """Stop telling outcomes again."""
        tasks = list(self._series.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tick(self, job: Job) -> None:
        told, told_ms = job.event(0), 0
        while True:
            seen = job.event(0)
            if seen != told or now_ms() - told_ms >= UNTOLD_MS_MAX:
                told, told_ms = seen, now_ms()
                self.present(job)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _again(self, job: Job) -> None:
        for pause in OUTCOME_TOLD_AGAIN_AFTER_S:
            await asyncio.sleep(pause)
            self.present(job)

    def _end_series(self, job_id: str) -> None:
        if earlier := self._series.pop(job_id, None):
            earlier.cancel()

    def _forget(self, job_id: str, ended: asyncio.Task[None]) -> None:
        if self._series.get(job_id) is ended:
            del self._series[job_id]
