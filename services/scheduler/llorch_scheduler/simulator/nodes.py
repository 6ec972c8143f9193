"""The nodes of a scenario: their replicas, what reaches them over the bus, and the failures that befall them."""

from itertools import count
from typing import Final

from llorch_scheduler.simulator.clock import Clock
from llorch_scheduler.simulator.heartbeat import BEAT_MS
from llorch_scheduler.simulator.replica import Outside, Replica
from llorch_scheduler.simulator.scenario import Failure, Scenario


class Nodes:
    """All replicas, by their id."""

    def __init__(self, scenario: Scenario, clock: Clock, outside: Outside) -> None:
        self.replicas: Final[dict[str, Replica]] = {}
        self._clock: Final = clock
        self._claim_ms: Final = scenario.claim_ms
        self._of: Final[dict[str, list[Replica]]] = {}
        numbers: dict[tuple[str, str], count[int]] = {}
        for pool in scenario.pools:
            for plan in pool.replicas:
                number = next(numbers.setdefault((pool.spec.id, plan.node), count()))
                replica_id = f"{pool.spec.id}-{plan.node}-{number}"
                replica = self.replicas[replica_id] = Replica(replica_id, pool, plan, clock, outside)
                self._of.setdefault(plan.node, []).append(replica)
        self._failures: Final = scenario.failures

    def begin(self) -> None:
        """Begin the first lives, with beats spread so that not all report at once; plan the failures."""
        spread = BEAT_MS / max(1, len(self.replicas))
        for index, replica in enumerate(self.replicas.values()):
            warm = replica.plan.warm
            replica.begin(provisioned=warm, loaded=warm, beat_ms=(index + 1) * spread)
        for failure in self._failures:
            self._clock.at(1000 * failure.at_s, self._fail, failure)

    def preempt(self, node: str, task_id: str) -> None:
        """A signal: whoever has the task hears it, if anybody does."""
        self._clock.after(self._claim_ms, self._preempt, (node, task_id))

    def cancel(self, task_id: str) -> None:
        self._clock.after(self._claim_ms, self._cancel, task_id)

    def _preempt(self, wish: tuple[str, str]) -> None:
        node, task_id = wish
        for replica in self._of.get(node, []):
            replica.preempt(task_id)

    def _cancel(self, task_id: str) -> None:
        for replica in self.replicas.values():
            replica.cancel(task_id)

    def _fail(self, failure: Failure) -> None:
        for replica in self._of[failure.node]:
            if replica.alive:
                replica.fail()
        if failure.back_after_s is not None:
            self._clock.after(1000 * failure.back_after_s, self._return, failure.node)

    def _return(self, node: str) -> None:
        for replica in self._of[node]:
            if not replica.alive:
                replica.begin(provisioned=True, loaded=False)
