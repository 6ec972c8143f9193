"""What this gateway knows without asking: pools wanted, replicas alive, and the scheduler's last load reports."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import msgspec

from llorch_gateway.model_gauges import ModelGauges
from llorch_shared import subjects
from llorch_shared.bus.port import Bus, Message, Subscription
from llorch_shared.live_table import LiveTable
from llorch_shared.metrics import Metrics
from llorch_shared.model_table import ModelTable
from llorch_shared.readable import readable
from llorch_shared.wire.desired import (
    DRAIN_DECODER,
    RELOAD_DECODER,
    TENANT_DECODER,
    PoolDrain,
    PoolReload,
    Tenant,
)
from llorch_shared.wire.registry import LOAD_DECODER, REPLICA_DECODER, PoolLoad, ReplicaRecord
from llorch_shared.wire.spec import POOL_DECODER, PoolSpec

log = logging.getLogger(__name__)

LOAD_STALE_S: Final = 5.0
"""A load report is renewed each second; an older one says nothing about waiting any more."""


class Snapshot:
    """`pools`, `replicas` and `loads` are read by the admission path: they are kept decoded, and change at once."""

    def __init__(self, bus: Bus, metrics: Metrics | None = None) -> None:
        self._bus: Final = bus
        self._registry: Final = LiveTable(bus, bucket="REG", changed=self._registry_changed, metrics=metrics)
        self._spec: Final = LiveTable(bus, bucket="SPEC", changed=self._spec_changed, metrics=metrics)
        self._records: dict[str, ReplicaRecord] = {}
        self._load_seen: dict[str, float] = {}
        gauges = ModelGauges(metrics) if metrics is not None else None
        self._catalog: Final = ModelTable(bus, metrics, changed=gauges.changed if gauges is not None else None)
        self._subscription: Subscription | None = None
        self._weights: dict[str, dict[str, int]] = {}
        self.on_session_policy: Callable[[bytes | None], None] | None = None
        """Told the policy of sessions as it is wanted."""
        self.pools: dict[str, PoolSpec] = {}
        self.replicas: dict[str, list[ReplicaRecord]] = {}
        self.loads: dict[str, PoolLoad] = {}
        self.drains: dict[str, PoolDrain] = {}
        self.reloads: dict[str, PoolReload] = {}
        self.tenants: dict[str, Tenant] = {}
        self.models: Final = self._catalog.models
        self.held = False

    async def start(self) -> None:
        """Raises BusError when the buckets cannot be read; may be called again then."""
        if self._subscription is None:
            self._subscription = await self._bus.subscribe(subjects.ALL_LOADS, self._load)
        await self._catalog.start()
        await self._spec.start()
        await self._registry.start()
        self.held = True

    async def close(self) -> None:
        if self._subscription is not None:
            await self._subscription.close()
        await self._spec.close()
        await self._catalog.close()
        await self._registry.close()

    def tick(self, now: float) -> None:
        for pool in [pool for pool, seen in self._load_seen.items() if now - seen > LOAD_STALE_S]:
            del self._load_seen[pool]
            self.loads.pop(pool, None)

    def pool_names(self) -> set[str]:
        """Where tasks may be queued: every pool that was ever wanted. The tasks of a removed one stay."""
        return {name for kind, _, name in (key.partition(".") for key in self._spec.known) if kind == "pool"}

    def shards(self) -> set[int]:
        """Those of `pool_names`."""
        return {subjects.shard_of(name) for name in self.pool_names()}

    def tenant_weight(self, pool: PoolSpec, tenant: str) -> int:
        """Share of the tenant among those of its class. O(1)."""
        weight = self._weights.get(pool.id, {}).get(tenant)
        if weight is not None:
            return weight
        limits = self.tenants.get(tenant) or pool.admission.fairness.default
        return limits.weight

    def _registry_changed(self, key: str, value: bytes | None) -> None:
        if not key.startswith("replica."):
            return
        before = self._records.pop(key, None)
        if value is not None:
            record = readable(REPLICA_DECODER, value, f"the registry key {key}")
            if record is not None:
                self._records[key] = record
        after = self._records.get(key)
        for pool in {record.pool_id for record in (before, after) if record is not None}:
            self._group(pool)

    def _group(self, pool: str) -> None:
        found = [record for record in self._records.values() if record.pool_id == pool]
        if found:
            self.replicas[pool] = sorted(found, key=lambda record: record.replica_id)
        else:
            self.replicas.pop(pool, None)

    def _spec_changed(self, key: str, value: bytes | None) -> None:
        kind, _, name = key.partition(".")
        if key == subjects.SESSION_POLICY_KEY and self.on_session_policy is not None:
            self.on_session_policy(value)
        if kind != "pool":
            self._wish_changed(kind, name, value)
            return
        self.pools.pop(name, None)
        self._weights.pop(name, None)
        if value is not None:
            pool = readable(POOL_DECODER, value, f"the desired state of pool {name}")
            if pool is not None:
                self.pools[name] = pool
                self._weights[name] = {tenant.id: tenant.weight for tenant in pool.admission.fairness.tenants}

    def _wish_changed(self, kind: str, name: str, value: bytes | None) -> None:
        """A drain, a reload or a tenant. What cannot be read counts as absent."""
        known: dict[str, tuple[Any, msgspec.json.Decoder[Any]]] = {
            "drain": (self.drains, DRAIN_DECODER),
            "reload": (self.reloads, RELOAD_DECODER),
            "tenant": (self.tenants, TENANT_DECODER),
        }
        if kind not in known:
            return
        held, decoder = known[kind]
        held.pop(name, None)
        if value is not None:
            wish = readable(decoder, value, f"the key {kind}.{name} of the desired state")
            if wish is not None:
                held[name] = wish

    def _load(self, message: Message) -> None:
        load = readable(LOAD_DECODER, message.data, f"the load report at {message.subject}")
        if load is None:
            return
        self.loads[load.pool_id] = load
        self._load_seen[load.pool_id] = asyncio.get_running_loop().time()
