"""What the scheduler remembers during one term, and the effects of the event at hand. No decision is made here."""

from collections.abc import Callable
from typing import Final

from llorch_scheduler.core.deadlines import Deadlines
from llorch_scheduler.core.effects import Effect
from llorch_scheduler.core.fleet import Fleet
from llorch_scheduler.core.job import ENDING, HOLDS_SLOT, QUEUED, REQUEUEING, RUNNING, Job
from llorch_scheduler.core.ledger import Ledger
from llorch_scheduler.core.limits import Limits
from llorch_scheduler.core.pool import Pool


class State:
    """Shared by the concerns of the core: each changes it only as its module says."""

    __slots__ = (
        "actor",
        "effect",
        "expiries",
        "fleet",
        "jobs",
        "ledger",
        "limits",
        "now_ms",
        "pools",
        "rebuilt_ms",
        "repeats",
    )

    def __init__(self, *, actor: str, limits: Limits) -> None:
        self.actor: Final = actor
        self.limits: Final = limits
        self.ledger: Final = Ledger()
        self.jobs: Final = self.ledger.jobs
        self.pools: Final[dict[str, Pool]] = {}
        self.fleet: Final = Fleet()
        self.expiries: Final = Deadlines(lambda job: job.phase is not QUEUED)
        self.repeats: Final = Deadlines(lambda job: job.ticket != 0 or job.phase not in (ENDING, REQUEUEING))
        self.rebuilt_ms = -1
        """When runs and registry had been read; negative before."""
        first: list[Effect] = []
        self.now_ms = 0
        """The time of the event at hand."""
        self.effect: Callable[[Effect], None] = first.append
        """Takes one more effect of the event at hand."""

    def pool(self, pool_id: str, at_ms: int) -> Pool:
        pool = self.pools.get(pool_id)
        if pool is None:
            pool = self.pools[pool_id] = Pool(pool_id, self.fleet.pool(pool_id), since_ms=at_ms)
        return pool

    def backlog_known(self, pool: Pool, at_ms: int) -> bool:
        """What waits is known, as far as it can be: a queue that cannot be read is not waited for for ever."""
        if self.rebuilt_ms < 0:
            return False
        if pool.backlog_read:
            return True
        return at_ms >= max(pool.since_ms, self.rebuilt_ms) + self.limits.backlog_ms

    def release(self, job: Job, *, slot_is_free: bool) -> None:
        """The job gives up its slot, if it holds one. A replica that only run records name goes with its last job."""
        phase, record = job.phase, job.record
        if phase not in HOLDS_SLOT:
            return
        if phase is RUNNING:
            self.pools[record.pool_id].left(job)
        replica = self.fleet.get(record.pool_id, record.replica_id)
        if replica is not None:
            replica.release(job, slot_is_free=slot_is_free)
            if replica.record is None and not replica.held:
                self.fleet.remove(replica)
