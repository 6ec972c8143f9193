"""Accounts of sessions in memory, following the server: whether a session has one is asked for every task, and must
cost nothing where it has none.

Subscribed first, read second; of two versions the higher sequence wins. Memory is bounded: when more sessions have
accounts than are held, one that is not here is looked up in the bucket.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Final

from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, Message, Subscription
from llorch_shared.errors import PolicyLabel, Refused
from llorch_shared.readable import readable
from llorch_shared.session_store import Known
from llorch_shared.wire.session import SESSION_DECODER, SESSIONS_SPEC_DECODER, SessionPolicy, SessionsSpec

log = logging.getLogger(__name__)

SESSIONS_MAX: Final = 50_000
"""About a kilobyte each."""
LOOKS_MAX: Final = 16
SWEEP_EVERY_MS: Final = 60_000
"""How often a tenant without room makes this process look for accounts whose time in the bucket is over."""
EXPIRED_AFTER_MS: Final = streams.SESSION_KEPT_S * 1000 + 60_000
Key = tuple[str, str]
"""Tenant, session."""


class SessionTable:
    """`policies` is kept up to date by whoever follows the specification (`policy_changed`)."""

    def __init__(self, bus: Bus, *, sessions_max: int = SESSIONS_MAX) -> None:
        self._bus: Final = bus
        self._max: Final = sessions_max
        self._sessions: Final[OrderedDict[Key, Known]] = OrderedDict()
        self._open: Final[dict[Key, None]] = {}
        self._counts: Final[Counter[str]] = Counter()
        self._swept_ms = 0
        self._subscription: Subscription | None = None
        self._gone = False
        self.whole = True
        """Every account is here whose tenant's policy does not ask for it anyway."""
        self.policies = SessionsSpec()

    async def start(self) -> None:
        """Raises BusError; may be called again then."""
        if self._subscription is None:
            self._subscription = await self._bus.subscribe(subjects.ALL_SESSIONS_LIVE, self._apply)
            self._bus.on_reconnect(self.refresh)
        await self.refresh()

    async def refresh(self) -> None:
        for message in await self._bus.snapshot(streams.SES, subjects.ALL_SESSIONS):
            self._apply(message)

    async def close(self) -> None:
        if self._subscription is not None:
            await self._subscription.close()

    def policy_changed(self, value: bytes | None) -> None:
        """The specification's key `sessions` was written; what cannot be read leaves the last one in effect."""
        self.whole = not self._gone
        if value is None:
            self.policies = SessionsSpec()
            return
        self.policies = readable(SESSIONS_SPEC_DECODER, value, "the policy of sessions") or self.policies

    def policy(self, tenant: str) -> SessionPolicy:
        return self.policies.of(tenant)

    def get(self, tenant: str, session_id: str) -> Known | None:
        return self._sessions.get((tenant, session_id))

    def since_ms(self, tenant: str, session_id: str) -> int | None:
        """When its account was opened, as far as is known here; None where it has none that is open."""
        known = self.get(tenant, session_id)
        return None if known is None or known.record.closed_ms else known.record.created_ms

    def concerns(self, tenant: str, session_id: str) -> bool:
        """Whether a task of this session may have to be reserved for. O(1), no question to anybody."""
        return (tenant, session_id) in self._sessions or not self.whole or self.policy(tenant).keeps

    def saw(self, known: Known) -> None:
        """What somebody has read or written."""
        key = (known.record.tenant, known.record.session_id)
        before = self._sessions.get(key)
        if before is not None and before.seq >= known.seq:
            return
        if before is None:
            self._counts[key[0]] += 1
        self._sessions[key] = known
        self._sessions.move_to_end(key)
        if known.record.open:
            self._open[key] = None
        else:
            self._open.pop(key, None)
        if len(self._sessions) > self._max:
            self._let_go()

    def check_room(self, tenant: str, now_ms: int) -> None:
        """For one more account of the tenant. Raises Refused."""
        most = self.policy(tenant).accounts_max
        if self._counts[tenant] >= most and now_ms - self._swept_ms >= SWEEP_EVERY_MS:
            self._swept_ms = now_ms
            self._sweep(now_ms)
        if self._counts[tenant] >= most:
            raise Refused(
                f"the tenant has {most} sessions with an account, as many as it may",
                policy_label=PolicyLabel.SESSION_ACCOUNTS,
                retry_after_ms=SWEEP_EVERY_MS,
            )

    def under_way(self) -> Iterator[Known]:
        """Accounts that hold something for a task."""
        for key in tuple(self._open):
            if (known := self._sessions.get(key)) is not None:
                yield known

    def _sweep(self, now_ms: int) -> None:
        """Of accounts that the bucket has no more."""
        for key, known in tuple(self._sessions.items()):
            record = known.record
            written_ms = max(record.used_ms, record.closed_ms)
            if key not in self._open and written_ms + record.limits.ttl_ms + EXPIRED_AFTER_MS < now_ms:
                del self._sessions[key]
                self._uncount(key)

    def _uncount(self, key: Key) -> None:
        self._open.pop(key, None)
        self._counts[key[0]] -= 1
        if not self._counts[key[0]]:
            del self._counts[key[0]]

    def _let_go(self) -> None:
        """Of the one that was changed longest ago and holds nothing. It is missed only where an id alone tells whether
        there is an account."""
        for _ in range(LOOKS_MAX):
            key, known = self._sessions.popitem(last=False)
            if key not in self._open:
                break
            self._sessions[key] = known
        else:
            key, _ = self._sessions.popitem(last=False)
        self._uncount(key)
        self._gone = True
        if not self.policy(key[0]).keeps:
            self.whole = False

    def _apply(self, message: Message) -> None:
        if message.deleted:
            return
        record = readable(SESSION_DECODER, message.data, f"the account of a session at {message.subject}")
        if record is not None:
            self.saw(Known(record, message.seq))
