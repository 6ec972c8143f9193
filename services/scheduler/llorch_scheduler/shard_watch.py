"""What is alive and what is wanted of one shard, as events: as it stands at a takeover, then as it changes.

The service hands over what the bus tells of the shard's pools and replicas; these calls run in its reader. What is told
of runs and tasks is not of here, nor who of the nodes is still there (`replica_watch.py`).
"""

from collections.abc import Callable, Mapping
from typing import Final

from llorch_scheduler.core.events import Event, PoolChanged, PoolRemoved, ReplicaLost, ReplicaReported
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus
from llorch_shared.live_table import LiveTable
from llorch_shared.pool_policy import with_tenants
from llorch_shared.readable import readable
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.desired import RELOAD_DECODER
from llorch_shared.wire.policy import TenantSpec
from llorch_shared.wire.registry import REPLICA_DECODER, ReplicaRecord
from llorch_shared.wire.spec import POOL_DECODER, PoolSpec

Follow = Callable[[str, PoolSpec | None], None]
"""Reads the queues of a pool from now on; what a removed one still holds, when there is no specification."""


class ShardWatch:
    """`tenants` with limits of their own, as they are now."""

    def __init__(
        self,
        bus: Bus,
        shard: int,
        *,
        registry: LiveTable,
        specs: LiveTable,
        tenants: Mapping[str, TenantSpec],
        offer: Callable[[Event], None],
        follow: Follow,
    ) -> None:
        self._bus: Final = bus
        self._shard: Final = shard
        self._registry: Final = registry
        self._specs: Final = specs
        self._tenants: Final = tenants
        self._tenants_changed = False
        self._offer: Final = offer
        self._follow: Final = follow
        self._replica_ids: Final[dict[str, tuple[str, str]]] = {}
        """Registry key → pool and replica, for keys that expire."""

    # a takeover

    async def refresh(self) -> None:
        """Raises BusError."""
        await self._registry.refresh()
        await self._specs.refresh()

    async def tell_all(self) -> None:
        """The replicas, then the pools, those too that were removed while tasks may wait for them. Raises BusError."""
        for key, value in list(self._registry.values.items()):
            self._replica_stands(key, value)
        for key, value in list(self._specs.values.items()):
            if (pool_id := _pool_of(key)) and subjects.shard_of(pool_id) == self._shard:
                self.spec_changed(pool_id, value)
        for message in await self._bus.snapshot(streams.SPEC, subjects.spec("pool.*")):
            pool_id = subjects.last_token(message.subject)
            if message.deleted and subjects.shard_of(pool_id) == self._shard:
                self._follow(pool_id, None)

    def _replica_stands(self, key: str, value: bytes) -> None:
        if not key.startswith("replica."):
            return
        record = readable(REPLICA_DECODER, value, f"the registry key {key}")
        if record is None:
            return
        if subjects.shard_of(record.pool_id) == self._shard:
            self.replica_reported(key, record)

    # what changes

    def replica_reported(self, key: str, record: ReplicaRecord) -> None:
        self._replica_ids[key] = (record.pool_id, record.replica_id)
        self._offer(ReplicaReported(at_ms=now_ms(), record=record))

    def replica_lost(self, key: str, *, node_gone: bool = False) -> None:
        """Its key has expired or was deleted, or its node is gone. The second time is none."""
        if (lost := self._replica_ids.pop(key, None)) is not None:
            self._offer(ReplicaLost(at_ms=now_ms(), pool_id=lost[0], replica_id=lost[1], node_gone=node_gone))

    def spec_changed(self, pool_id: str, value: bytes | None) -> None:
        if value is None:
            self._offer(PoolRemoved(at_ms=now_ms(), pool_id=pool_id))
            self._follow(pool_id, None)
            return
        spec = readable(POOL_DECODER, value, f"the specification of pool {pool_id}")
        if spec is None:
            return
        self._offer(PoolChanged(at_ms=now_ms(), spec=with_tenants(spec, self._tenants)))
        self._follow(spec.id, spec)

    def tenants_changed(self) -> None:
        """In effect with the next `take_tenants`, however many change at once."""
        self._tenants_changed = True

    def take_tenants(self) -> None:
        """The policies of the pools as they are now, if tenants have other limits."""
        if not self._tenants_changed:
            return
        self._tenants_changed = False
        for key, value in list(self._specs.values.items()):
            if (pool_id := _pool_of(key)) and subjects.shard_of(pool_id) == self._shard:
                self.spec_changed(pool_id, value)

    # what is asked

    def is_first(self) -> bool:
        """Whether no pool, nor a removed one, is of an earlier shard: then what is not of any pool is done here."""
        return all(subjects.shard_of(pool_id) >= self._shard for key in self._specs.known if (pool_id := _pool_of(key)))

    def had_model(self, pool_id: str, model_ref: str, at_ms: int) -> bool:
        """Whether the pool had this model at that time, by its reload."""
        value = self._specs.values.get(subjects.reload_key(pool_id))
        reload = None if value is None else readable(RELOAD_DECODER, value, f"the reload of pool {pool_id}")
        return reload is not None and reload.had(model_ref, at_ms)


def _pool_of(key: str) -> str:
    """The pool of a spec key; empty when it is another kind of key."""
    kind, _, pool_id = key.partition(".")
    return pool_id if kind == "pool" else ""
