"""Which shards this process has: it tells that it is there and asks who else is, leases its share of the shards, begins
a term for each, and gives one back when others have fewer. Processes without a shard are hot standby: they follow the
same tables and wait.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from llorch_scheduler.asking import Asking
from llorch_scheduler.core.balance import Balance, Facts
from llorch_scheduler.core.roll_call import RollCall
from llorch_scheduler.lease import Lease, Term
from llorch_scheduler.presence import Presence, living
from llorch_scheduler.term_loop import TermLoop
from llorch_shared import subjects
from llorch_shared.bus.port import Bus
from llorch_shared.lifecycle import Stop
from llorch_shared.live_table import LiveTable
from llorch_shared.metrics import Metrics

TERM_PAUSE_S: Final = 0.1
"""Between two terms of a shard, so that a bus that cannot be read does not make them spin."""
PEER_EVERY_MS: Final = 200
PEER_AGAIN_MS: Final = 100
"""A killed scheduler is found gone within half a second."""
LOOK_S: Final = 0.1
"""The shares are looked at when a lease or a process changed, and at least this often."""


class ShardShares:
    """`begin` makes the loop of a term that was leased."""

    def __init__(
        self,
        bus: Bus,
        instance: str,
        *,
        registry: LiveTable,
        specs: LiveTable,
        ttl_s: float,
        metrics: Metrics,
        begin: Callable[[Term, Lease], TermLoop],
    ) -> None:
        self.terms: Final[dict[int, TermLoop]] = {}
        """Under way, by shard."""
        self._bus: Final = bus
        self._instance: Final = instance
        self._registry: Final = registry
        self._specs: Final = specs
        self._active: Final = metrics.gauge("scheduler_active")
        self._begin: Final = begin
        self._presence: Final = Presence(bus, instance, ttl_s=ttl_s)
        self.peers: Final = RollCall(every_ms=PEER_EVERY_MS, again_ms=PEER_AGAIN_MS)
        """The other scheduler processes."""
        self._leases: Final = {
            shard: Lease(bus, registry, shard=shard, holder=instance, ttl_s=ttl_s, gone=self.peers.gone)
            for shard in range(subjects.SHARDS)
        }
        self._balance: Final = Balance(instance)
        self._changed: Final = asyncio.Event()

    async def announce(self) -> None:
        """That this process is there. Raises BusError."""
        await self._presence.announce()

    def look(self) -> None:
        """Who is there, who holds what, or which pools there are may have changed."""
        self._changed.set()

    async def keep(self, tasks: asyncio.TaskGroup, stop: Stop) -> None:
        """Take and give back shards until asked to stop. Terms run in `tasks`."""
        watching = [
            tasks.create_task(self._presence.keep(), name="presence"),
            tasks.create_task(self._ask_peers().keep(), name="ask schedulers"),
        ]
        await self._share(tasks, stop)
        for each in watching:
            each.cancel()

    async def _share(self, tasks: asyncio.TaskGroup, stop: Stop) -> None:
        stopping = asyncio.create_task(stop.wait(), name="asked to stop")
        stopping.add_done_callback(lambda _: self._changed.set())
        try:
            while not stop:
                self._changed.clear()
                if self._bus.connected:
                    await self._look(tasks)
                try:
                    async with asyncio.timeout(LOOK_S):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            stopping.cancel()

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        facts = Facts(
            living=(living(self._registry) - self.peers.gone) | {self._instance},
            wanted=frozenset(subjects.shard_of(pool_id) for pool_id in _pools(self._specs)),
            holders={shard: holder for shard, lease in self._leases.items() if (holder := lease.holder)},
            mine=frozenset(self.terms),
        )
        plan = self._balance.plan(facts, time.monotonic_ns() // 1_000_000)
        for term in await asyncio.gather(*(self._leases[shard].acquire() for shard in plan.take)):
            if term is not None:
                self.terms[term.shard] = loop = self._begin(term, self._leases[term.shard])
                tasks.create_task(self._serve(loop), name=f"shard {term.shard}")
        if plan.give is not None:
            handing_over = self.terms[plan.give].hand_over("others have fewer shards")
            tasks.create_task(handing_over, name=f"hand over shard {plan.give}")

    def _ask_peers(self) -> Asking:
        return Asking(
            self._bus,
            self.peers,
            expected=lambda: living(self._registry) - {self._instance},
            subject_of=subjects.scheduler_here,
            gone=self._peer_gone,
        )

    def _peer_gone(self, instance: str) -> None:
        """Its leases need not expire. Told again until its key has."""
        self._changed.set()

    async def _serve(self, loop: TermLoop) -> None:
        """One term of one shard, and its lease given back when it ended in order."""
        self._active.set(len(self.terms))
        try:
            await loop.run()
        finally:
            self._active.set(len(self.terms) - 1)
        if loop.handed_over:
            await self._leases[loop.shard].release(loop.term)
        else:
            await asyncio.sleep(TERM_PAUSE_S)
        del self.terms[loop.shard]
        self._changed.set()

    async def leave(self, stop: Stop) -> None:
        """The others count one less before they see what is free, so they take all of it at once."""
        await self._presence.leave()
        await asyncio.gather(*(loop.hand_over(f"asked to stop ({stop.reason})") for loop in self.terms.values()))


def _pools(specs: LiveTable) -> list[str]:
    """Every pool, removed ones included: tasks may still wait in their queues."""
    return [key.partition(".")[2] for key in specs.known if key.startswith("pool.")]
