"""Tells the other scheduler processes that this one lives: a registry key that expires unless renewed.

By it every process knows among how many the shards are to be shared. It proves nothing: who decides is a lease.
"""

import asyncio
import contextlib
import logging
from typing import Final

import msgspec

from llorch_scheduler.lease import RENEW_SHARE
from llorch_shared import subjects
from llorch_shared.bus.markers import DELETED
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.live_table import LiveTable
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.registry import SchedulerRecord
from llorch_shared.wire.version import Kind, version_headers

log = logging.getLogger(__name__)

_PREFIX: Final = subjects.scheduler_key("x").removesuffix("x")


def living(registry: LiveTable) -> frozenset[str]:
    """The scheduler processes that live, as far as the registry says."""
    return frozenset(key.removeprefix(_PREFIX) for key in registry.values if key.startswith(_PREFIX))


def is_presence(key: str) -> bool:
    return key.startswith(_PREFIX)


class Presence:
    """Of this process. It expires as a lease does: a killed process goes from the count when its shards are free."""

    def __init__(self, bus: Bus, instance: str, *, ttl_s: float) -> None:
        self._bus: Final = bus
        self._instance: Final = instance
        self._subject: Final = subjects.registry(subjects.scheduler_key(instance))
        self._ttl_s: Final = ttl_s
        self._started_ms: Final = now_ms()

    async def announce(self) -> None:
        """A failure costs at most a lopsided share until the next."""
        record = SchedulerRecord(instance=self._instance, started_ms=self._started_ms, renewed_ms=now_ms())
        try:
            await self._bus.store(
                self._subject,
                msgspec.json.encode(record),
                headers=version_headers(Kind.REGISTRY),
                ttl_s=self._ttl_s,
                timeout_s=self._ttl_s,
            )
        except BusError as error:
            log.debug("this scheduler is not announced: %s", error)

    async def keep(self) -> None:
        """Renew until cancelled."""
        while True:
            await asyncio.sleep(RENEW_SHARE * self._ttl_s)
            await self.announce()

    async def leave(self) -> None:
        """The others need not wait for the expiry."""
        with contextlib.suppress(BusError):
            await self._bus.store(self._subject, b"", ttl_s=1, headers=DELETED, timeout_s=1)
