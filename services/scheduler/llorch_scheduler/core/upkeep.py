"""What time does: tasks run out of it, failed writes are tried again, load is told, specifications change."""

from typing import Final

from llorch_scheduler.core import spec_change
from llorch_scheduler.core.effects import Audit, PoolFigures, TellLoad
from llorch_scheduler.core.endings import Endings
from llorch_scheduler.core.events import BacklogRead, PoolChanged, PoolRemoved, Tick
from llorch_scheduler.core.holders import Holders
from llorch_scheduler.core.outcomes import Outcomes
from llorch_scheduler.core.placing import Placing
from llorch_scheduler.core.pool import Pool
from llorch_scheduler.core.state import State
from llorch_shared.wire.spec import PoolSpec


class Upkeep:
    __slots__ = ("_endings", "_holders", "_outcomes", "_placing", "_state", "_upkept_ms", "_version")

    def __init__(self, state: State, endings: Endings, holders: Holders, outcomes: Outcomes, placing: Placing) -> None:
        self._state: Final = state
        self._endings: Final = endings
        self._holders: Final = holders
        self._outcomes: Final = outcomes
        self._placing: Final = placing
        self._upkept_ms = 0
        self._version = 0

    def pool_changed(self, event: PoolChanged) -> None:
        pool = self._state.pool(event.spec.id, event.at_ms)
        if pool.spec == event.spec:
            return
        self._audit(pool, event.spec, event.at_ms)
        pool.spec, pool.dirty = event.spec, True
        self._state.fleet.pool(pool.pool_id).configure(event.spec)
        pool.queue.bring_back()
        self._placing.fill(pool, event.at_ms)

    def pool_removed(self, event: PoolRemoved) -> None:
        pool = self._state.pool(event.pool_id, event.at_ms)
        if pool.spec is not None:
            self._audit(pool, None, event.at_ms)
            pool.spec, pool.dirty = None, True
            self._state.fleet.pool(pool.pool_id).configure(None)

    def _audit(self, pool: Pool, after: PoolSpec | None, at_ms: int) -> None:
        """What a takeover reads is no change; what changed while nobody was in office is not known."""
        if self._state.rebuilt_ms >= 0:
            record = spec_change.audit(pool.spec, after, pool.pool_id, at_ms, self._state.actor)
            self._state.effect(Audit(record=record))

    def backlog_read(self, event: BacklogRead) -> None:
        pool = self._state.pool(event.pool_id, event.at_ms)
        pool.read.add(event.priority)
        pool.dirty = True
        queue = pool.queue.classes[event.priority]
        queue.seq = max(queue.seq, event.last_seq)
        self._placing.fill(pool, event.at_ms)

    def tick(self, event: Tick) -> None:
        state, at_ms = self._state, event.at_ms
        limits = state.limits
        state.ledger.see(event.run_seq)
        for job in state.expiries.due(at_ms, limits.expired_per_tick_max):
            self._endings.expire(job, at_ms)
        for job in state.repeats.due(at_ms, limits.expired_per_tick_max):
            self._outcomes.repeat(job)
        if state.rebuilt_ms >= 0 and at_ms - self._upkept_ms >= limits.upkeep_ms:
            self._upkept_ms = at_ms
            self._holders.upkeep(at_ms)
        for pool in state.pools.values():
            if pool.paused_until_ms or not pool.backlog_read:
                pool.paused_until_ms = 0 if at_ms >= pool.paused_until_ms else pool.paused_until_ms
                self._placing.fill(pool, at_ms)
            silent_ms = at_ms - pool.told_ms
            due_ms = limits.load_min_ms if pool.dirty else limits.load_max_ms
            if silent_ms >= due_ms and state.backlog_known(pool, at_ms):
                self._tell(pool, at_ms)

    def _tell(self, pool: Pool, at_ms: int) -> None:
        self._version += 1
        pool.told_ms, pool.dirty = at_ms, False
        load = pool.load(self._state.fleet.of_pool(pool.pool_id), at_ms=at_ms, version=self._version)
        figures = PoolFigures(deadlines_met=self._state.tally.ratios())
        self._state.effect(TellLoad(load=load, figures=figures))
