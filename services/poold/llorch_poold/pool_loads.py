"""How many tasks wait in the pools that this node serves, as their scheduler last told (ORCH-3100).

A report comes up to ten times a second and is asked for once per started task, so its bytes are kept and read only
when they are asked for. A report that is old is no report.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

import msgspec

from llorch_shared import subjects
from llorch_shared.bus.port import Bus, Message, Subscription

log = logging.getLogger(__name__)

STALE_S: Final = 3.0
"""Schedulers tell every second at least."""


class _Queued(msgspec.Struct):
    """The part of a PoolLoad that is needed here."""

    queued: dict[str, int]


_DECODER: Final = msgspec.json.Decoder(_Queued)


class PoolLoads:
    """One per node."""

    def __init__(self, bus: Bus) -> None:
        self._bus: Final = bus
        self._followed: dict[str, Subscription] = {}
        self._reports: dict[str, tuple[float, bytes]] = {}

    async def follow(self, pool_ids: Iterable[str]) -> None:
        """From now on these pools, and no others."""
        wanted = set(pool_ids)
        for pool_id in sorted(self._followed.keys() - wanted):
            await self._followed.pop(pool_id).close()
            self._reports.pop(pool_id, None)
        for pool_id in sorted(wanted - self._followed.keys()):
            self._followed[pool_id] = await self._bus.subscribe(subjects.load(pool_id), self._on_load)

    def queue_depth(self, pool_id: str) -> int | None:
        """Tasks that wait in the pool; None when nobody has told lately."""
        heard_at, data = self._reports.get(pool_id, (0.0, b""))
        if not data or asyncio.get_running_loop().time() - heard_at > STALE_S:
            return None
        try:
            return sum(_DECODER.decode(data).queued.values())
        except msgspec.DecodeError as error:
            log.debug("the load of pool %s cannot be read: %s", pool_id, error)
            return None

    def _on_load(self, message: Message) -> None:
        pool_id = subjects.last_token(message.subject)
        if pool_id in self._followed:
            self._reports[pool_id] = (asyncio.get_running_loop().time(), message.data)
