"""Sessions: what their client and its tenant permit them, what they have spent, and what is reserved for tasks under
way (OC-CTRL-2005, ORCH-3021, 3099).

A session is only an id until its client makes it one (`PUT /v1/sessions/{id}`) or its tenant's policy keeps accounts of
every session; then it has a record in the bucket SES, changed by compare-and-set alone. Times are Unix milliseconds,
amounts are of whole sessions. Money is counted in billionths, so that sums are exact.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from llorch_shared.wire.task import Name, TaskId

NANO: Final = 1_000_000_000
TURNS_MAX: Final = 1_000
"""A record remembers the tasks of its session, 40 bytes each, and is written whole."""

Ttl = Annotated[int, Meta(ge=1_000, le=7 * 24 * 3_600_000)]
Turns = Annotated[int, Meta(ge=1, le=TURNS_MAX)]
Amount = Annotated[int, Meta(ge=0, le=2**53)]
Cost = Annotated[float, Meta(ge=0, le=1_000_000)]


class SessionRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a client holds its own session to. What is absent is the policy's; nothing may be over it."""

    ttl_ms: Ttl | None = None
    turns_max: Turns | None = None
    tokens_budget: Amount | None = None
    time_budget_ms: Amount | None = None
    cost_budget: Cost | None = None


class SessionPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What sessions of a tenant may use. With a budget, or `every_session`, each of its sessions has an account; else
    only those that their client asks one for."""

    every_session: bool = False
    """SessionHold all sessions to `ttl_ms` and `turns_max`, not only those that were made. Off: an id costs nothing."""
    ttl_ms: Ttl = 600_000
    """A session ends when it has had no task for so long: its KV cache is gone by then (ORCH-3021)."""
    turns_max: Turns = 8
    """Tasks of one session: its context is about full after as many (ORCH-3021)."""
    tokens_budget: Amount | None = None
    """Generated tokens; none: no bound. So are the next two."""
    time_budget_ms: Amount | None = None
    """Decode time."""
    cost_budget: Cost | None = None
    cost_per_token: Annotated[float, Meta(ge=0, le=1_000)] = 0.000002
    """Price of a generated token, in whatever the operator counts. The default is the placeholder of the API."""
    accounts_max: Annotated[int, Meta(ge=1, le=10_000_000)] = 20_000
    """Sessions of one tenant with an account, those that ended in the last 72 hours too: all tenants share one bucket,
    and the oldest account makes room for a new one. More than 50 000 are not counted."""

    @property
    def keeps(self) -> bool:
        """Whether every session under it has a record."""
        budgets = (self.tokens_budget, self.time_budget_ms, self.cost_budget)
        return self.every_session or any(budget is not None for budget in budgets)


class SessionsSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The key `sessions` of the desired state."""

    default: SessionPolicy = SessionPolicy()
    tenants: dict[Name, SessionPolicy] = {}
    """Instead of the default, whole, for these."""

    def of(self, tenant: str) -> SessionPolicy:
        return self.tenants.get(tenant, self.default)


class SessionLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    ttl_ms: int
    turns_max: int
    tokens: int | None = None
    time_ms: int | None = None
    nano: int | None = None


class SessionAmounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    tokens: int = 0
    time_ms: int = 0
    nano: int = 0


class SessionHold(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Reserved for one task until it has ended."""

    amounts: SessionAmounts
    at_ms: int
    pool_id: str
    owners: tuple[str, ...] = ()
    """Who reserved it: several gateways may be handed one task at the same time, and the last that is refused gives it
    back."""


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`session.<tenant>.<session>` in the bucket SES."""

    session_id: TaskId
    tenant: Name
    created_ms: int
    used_ms: int
    """When it last had a task begin or end."""
    limits: SessionLimits
    nano_per_token: int
    spent: SessionAmounts = SessionAmounts()
    open: dict[str, SessionHold] = {}
    """By task, while it is under way."""
    settled: tuple[str, ...] = ()
    """Tasks that were paid for: each once, whoever settles it again."""
    kv_warmth: bool = False
    """A replica has its context: since the first token."""
    kv_tokens: int = 0
    """Length of that context."""
    pool_id: str = ""
    replica_id: str = ""
    """Where that is."""
    closed_ms: int = 0
    """Its client deleted it."""

    @property
    def turns(self) -> int:
        return len(self.settled) + len(self.open)


class SessionRemaining(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What is neither spent nor reserved; None where there is no bound."""

    tokens_budget_remaining: int | None = None
    time_budget_remaining_ms: int | None = None
    cost_budget_remaining: float | None = None


class SessionTerms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a task of such a session travels with in its run record."""

    session_id: str
    tokens_max: int | None = None
    """Tokens its stream may have, all attempts together."""
    time_max_ms: int | None = None
    """Decode time an attempt may take."""
    nano_per_token: int = 0
    remaining: SessionRemaining = SessionRemaining()
    """Of the session, after what was reserved for this task."""


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/sessions/{id}."""

    session_id: TaskId
    ttl_ms_remaining: Annotated[int, Meta(ge=0)]
    """It ends then unless it has another task before."""
    turns: Annotated[int, Meta(ge=0)]
    """Tasks it has had."""
    kv_bytes: Annotated[int, Meta(ge=0)]
    """Of its context in the KV cache, as estimated; 0 where the engine does not tell what a token takes."""
    kv_warmth: bool
    turns_max: int | msgspec.UnsetType = msgspec.UNSET
    """Told, as the rest, of a session that has a record."""
    tokens_budget_remaining: int | msgspec.UnsetType = msgspec.UNSET
    time_budget_remaining_ms: int | msgspec.UnsetType = msgspec.UNSET
    cost_budget_remaining: float | msgspec.UnsetType = msgspec.UNSET
    tokens_spent: int | msgspec.UnsetType = msgspec.UNSET
    time_spent_ms: int | msgspec.UnsetType = msgspec.UNSET
    cost_spent: float | msgspec.UnsetType = msgspec.UNSET
    tasks_open: int | msgspec.UnsetType = msgspec.UNSET
    """Tasks under way; what is reserved for them is not remaining."""


class SessionQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """`sch.<shard>.session`: what is known of this session in the pools of one shard?"""

    session_id: TaskId
    tenant: str
    """Empty: whoever's it is."""
    forget: bool = False
    """Its next task may go anywhere."""


class SessionEnded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Its client deleted it: what engines hold of it is to be erased."""

    session_id: TaskId
    tenant: str = ""
    """Empty: whoever's it is."""
    at_ms: int = 0


class SessionSeen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`found`: a task of it was placed within the affinity's time."""

    found: bool
    turns: int = 0
    left_ms: int = 0
    pool_id: str = ""
    replica_id: str = ""
    task_id: str = ""
    """The latest."""
    warm: bool = False
    """A task of it has generated there, in the present life of the engine."""
    tenants: tuple[str, ...] = ()
    """Whose sessions of this id these are."""


SESSION_DECODER: Final = msgspec.json.Decoder(SessionRecord)
SESSIONS_SPEC_DECODER: Final = msgspec.json.Decoder(SessionsSpec)
SESSION_QUESTION_DECODER: Final = msgspec.json.Decoder(SessionQuestion)
SESSION_ENDED_DECODER: Final = msgspec.json.Decoder(SessionEnded)
SESSION_SEEN_DECODER: Final = msgspec.json.Decoder(SessionSeen)
