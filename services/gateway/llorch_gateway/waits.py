"""How a task stands while it waits, from what this process holds: nobody is asked, however many wait."""

import asyncio
from typing import Final

from llorch_gateway.core.notice import Notice, notice
from llorch_gateway.core.prospect import Prospect
from llorch_gateway.recent_admissions import RecentAdmissions
from llorch_gateway.relay.notices import Look, Notices
from llorch_gateway.snapshot import Snapshot
from llorch_gateway.tasks import Found
from llorch_shared.settings import GatewaySettings


class Waits:
    def __init__(self, snapshot: Snapshot, recent: RecentAdmissions, wanted: GatewaySettings) -> None:
        self._snapshot: Final = snapshot
        self._recent: Final = recent
        self._narrate_s: Final = wanted.sse_logs_period_ms / 1000 if wanted.sse_logs_enabled else None

    def of(self, task: str, found: Found | None = None) -> Look:
        """For a reader of `task`. Its place is known where it was admitted; elsewhere the depth of its queues is."""
        pool = ""
        if found is not None:
            if found.record is not None:
                pool = found.record.pool_id
            elif found.located is not None:
                pool = found.located.pool_id

        def look() -> Notice | None:
            recent = self._recent.located(task)
            if recent is None:
                return self._notice(task, pool, None) if pool else None
            prospect = Prospect(recent.queue_position, recent.predicted_start_ms, loading=False)
            return self._notice(task, recent.pool_id, prospect)

        return look

    def notices(self, look: Look) -> Notices:
        return Notices(look, now=asyncio.get_running_loop().time(), narrate_s=self._narrate_s)

    def _notice(self, task: str, pool: str, prospect: Prospect | None) -> Notice | None:
        snapshot = self._snapshot
        return notice(task, snapshot.loads.get(pool), snapshot.replicas.get(pool, ()), prospect)
