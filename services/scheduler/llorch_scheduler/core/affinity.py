"""Where a session's tasks ran last, so that its next one finds a warm cache (ORCH-3009, OC-CORE-1013).

A wish, not a bond: it breaks ties and never makes a task wait. It holds for `ttl_ms` after the session's last placement
and for the life of the engine that had it. Memory is bounded: the sessions that were seen longest ago are forgotten.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from llorch_scheduler.core.replica import Replica

SESSIONS_MAX: Final = 65_536
"""Per pool. Some hundred bytes each: more sessions than that are not warm anywhere."""

Key = tuple[str, str]
"""Tenant, session: another tenant's session of the same id is another session."""


@dataclass(slots=True, eq=False)
class Last:
    replica_id: str
    incarnation: str
    """The life of its engine: the cache ends with it."""
    at_ms: int
    turns: int = 1
    """Tasks of the session that were placed, since it was first seen."""
    tenant: str = ""
    task_id: str = ""
    """The last one."""
    warm: bool = False
    """A task of it has generated there."""

    def was_on(self, replica: Replica) -> bool:
        """In the same life of its engine."""
        record = replica.record
        if record is None or record.incarnation != self.incarnation:
            return False
        return replica.replica_id == self.replica_id


class Affinity:
    """All methods but `of_any` cost O(1), amortised."""

    __slots__ = ("_last", "_max", "_tenants")

    def __init__(self, sessions_max: int = SESSIONS_MAX) -> None:
        self._last: Final[OrderedDict[Key, Last]] = OrderedDict()
        self._tenants: Final[dict[str, dict[str, None]]] = {}
        """Those that have a session of this id."""
        self._max: Final = sessions_max

    def __len__(self) -> int:
        return len(self._last)

    def saw(
        self, tenant: str, session_id: str, replica_id: str, incarnation: str, at_ms: int, *, task_id: str = ""
    ) -> None:
        """A task of the session was placed there. What was placed earlier than what is known changes nothing."""
        key = tenant, session_id.lower()
        sessions = self._last
        known = sessions.get(key)
        turns, warm = 1, False
        if known is not None:
            if known.at_ms > at_ms:
                return
            sessions.move_to_end(key)
            turns = known.turns + (known.task_id != task_id)
            warm = known.warm and (known.replica_id, known.incarnation) == (replica_id, incarnation)
        else:
            self._tenants.setdefault(key[1], {})[tenant] = None
        sessions[key] = Last(replica_id, incarnation, at_ms, turns, tenant, task_id, warm)
        if len(sessions) > self._max:
            self._gone(sessions.popitem(last=False)[0])

    def spoke(self, tenant: str, session_id: str, replica_id: str, incarnation: str) -> None:
        """A task of the session has generated there."""
        known = self._last.get((tenant, session_id.lower()))
        if known is not None and not known.warm and (known.replica_id, known.incarnation) == (replica_id, incarnation):
            known.warm = True

    def drop(self, tenant: str, session_id: str) -> None:
        """Its next task may go anywhere."""
        key = tenant, session_id.lower()
        if self._last.pop(key, None) is not None:
            self._gone(key)

    def forget(self) -> None:
        self._last.clear()
        self._tenants.clear()

    def last(self, tenant: str, session_id: str, *, at_ms: int, ttl_ms: int) -> Last | None:
        """None for a session that was not seen within `ttl_ms`."""
        last = self._last.get((tenant, session_id.lower()))
        if last is None or at_ms - last.at_ms >= ttl_ms:
            return None
        return last

    def of_any(self, session_id: str, *, at_ms: int, ttl_ms: int) -> list[Last]:
        """The sessions of this id, of whichever tenants. O(tenants that have one)."""
        tenants = self._tenants.get(session_id.lower(), ())
        found = [self.last(tenant, session_id, at_ms=at_ms, ttl_ms=ttl_ms) for tenant in tenants]
        return [last for last in found if last is not None]

    def _gone(self, key: Key) -> None:
        tenant, session = key
        tenants = self._tenants[session]
        del tenants[tenant]
        if not tenants:
            del self._tenants[session]
