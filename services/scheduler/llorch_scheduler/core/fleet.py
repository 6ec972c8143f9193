"""Every replica, by pool and id: replica ids are unique in their pool only."""

from typing import Final

from llorch_scheduler.core.pool_fleet import PoolFleet
from llorch_scheduler.core.replica import Replica

Key = tuple[str, str]
"""Pool id, replica id."""


class Fleet:
    """Pools are kept with the last replica gone: their stable set and their sessions outlive an outage."""

    __slots__ = ("_pools", "replicas")

    def __init__(self) -> None:
        self.replicas: Final[dict[Key, Replica]] = {}
        self._pools: Final[dict[str, PoolFleet]] = {}

    def pool(self, pool_id: str) -> PoolFleet:
        pool = self._pools.get(pool_id)
        if pool is None:
            pool = self._pools[pool_id] = PoolFleet()
        return pool

    def get(self, pool_id: str, replica_id: str) -> Replica | None:
        return self.replicas.get((pool_id, replica_id))

    def named(self, pool_id: str, replica_id: str, at_ms: int) -> Replica:
        """The replica; made without a record when nothing but a run record names it."""
        replica = self.replicas.get((pool_id, replica_id))
        if replica is None:
            pool = self.pool(pool_id)
            replica = Replica(replica_id, pool_id, pool, absent_ms=at_ms)
            self.replicas[pool_id, replica_id] = replica
            pool.index.add(replica)
        return replica

    def remove(self, replica: Replica) -> None:
        """One that was lost and holds nothing."""
        if self.replicas.pop((replica.pool_id, replica.replica_id), None) is not None:
            self.pool(replica.pool_id).index.remove(replica)

    def of_pool(self, pool_id: str) -> list[Replica]:
        """O(replicas of the pool)."""
        pool = self._pools.get(pool_id)
        return list(pool.index.replicas.values()) if pool is not None else []
