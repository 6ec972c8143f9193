"""Errors as clients see them: one code table, one envelope, one exception.

    OrchError                    anything a client is told; carries the code, and the status where it is not the usual
    └─ Refused                   429: not now, come back in `retry_after_ms`

The table is the source of contracts/errors.md; the mapping to HTTP is done in one place, the gateway's edge.
"""

from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta


class ErrorCode(StrEnum):
    """ErrorKind of REQUIREMENTS 2.5, and the codes of the auth seam."""

    INVALID_PARAMS = "INVALID_PARAMS"
    DEADLINE_UNMET = "DEADLINE_UNMET"
    UNTRUSTED_ARTIFACT = "UNTRUSTED_ARTIFACT"
    MODEL_DEPRECATED = "MODEL_DEPRECATED"
    ADMISSION_REJECT = "ADMISSION_REJECT"
    QUEUE_FULL_DROP_LRU = "QUEUE_FULL_DROP_LRU"
    POOL_UNREADY = "POOL_UNREADY"
    POOL_UNAVAILABLE = "POOL_UNAVAILABLE"
    REPLICA_EXHAUSTED = "REPLICA_EXHAUSTED"
    DECODE_TIMEOUT = "DECODE_TIMEOUT"
    WORKER_RESET = "WORKER_RESET"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"
    MISSING_TOKEN = "MISSING_TOKEN"  # noqa: S105  (the name of an error, not a secret)
    BAD_TOKEN = "BAD_TOKEN"  # noqa: S105
    NON_LOOPBACK_WITHOUT_TOKEN = "NON_LOOPBACK_WITHOUT_TOKEN"  # noqa: S105


class ErrorFacts(msgspec.Struct, frozen=True):
    status: int
    retriable: bool
    meaning: str


ERRORS: Final[dict[ErrorCode, ErrorFacts]] = {
    ErrorCode.INVALID_PARAMS: ErrorFacts(
        400, False, "The request cannot be served as written; the message names the field."
    ),
    ErrorCode.DEADLINE_UNMET: ErrorFacts(
        400, False, "deadline_ms is not positive, or cannot be met by the present backlog."
    ),
    ErrorCode.UNTRUSTED_ARTIFACT: ErrorFacts(400, False, "A model or engine failed its digest or trust policy."),
    ErrorCode.MODEL_DEPRECATED: ErrorFacts(403, False, "The model takes no new work."),
    ErrorCode.ADMISSION_REJECT: ErrorFacts(
        429, True, "The queue is full, or a limit is reached; policy_label says which."
    ),
    ErrorCode.QUEUE_FULL_DROP_LRU: ErrorFacts(429, True, "The task was dropped from a full queue to make room."),
    ErrorCode.POOL_UNREADY: ErrorFacts(503, True, "The pool exists and is not serving yet, or is draining."),
    ErrorCode.POOL_UNAVAILABLE: ErrorFacts(503, True, "No part of the system can serve the pool at present."),
    ErrorCode.REPLICA_EXHAUSTED: ErrorFacts(503, True, "Every replica of the pool has failed."),
    ErrorCode.DECODE_TIMEOUT: ErrorFacts(500, True, "The engine stopped producing tokens in time."),
    ErrorCode.WORKER_RESET: ErrorFacts(
        500, False, "The engine or its node was lost and the stream could not be continued."
    ),
    ErrorCode.CANCELLED: ErrorFacts(
        410, False, "Somebody else cancelled the task of this answer (OpenAI routes; a task's own stream just ends)."
    ),
    ErrorCode.INTERNAL: ErrorFacts(
        500, False, "A fault of the system itself; the correlation id finds it in the logs."
    ),
    ErrorCode.MISSING_TOKEN: ErrorFacts(401, False, "No bearer token was sent (40101)."),
    ErrorCode.BAD_TOKEN: ErrorFacts(401, False, "The bearer token is not the configured one (40102)."),
    ErrorCode.NON_LOOPBACK_WITHOUT_TOKEN: ErrorFacts(
        403, False, "The gateway refuses to listen beyond loopback without AUTH_TOKEN (40301)."
    ),
}


class PolicyLabel(StrEnum):
    """Which rule turned a task away, where an error code has several (`policy_label`)."""

    REJECT = "reject"
    DROP_LRU = "drop-lru"
    SHED_LOW_PRIORITY = "shed-low-priority"
    TENANT_CAPACITY = "tenant-capacity"
    KV_QUOTA = "kv-quota"
    CIRCUIT_BREAKER = "circuit-breaker"
    RATE_LIMIT = "rate-limit"
    STREAM_LIMIT = "stream-limit"
    SESSION_BUDGET = "session-budget"
    SESSION_TURNS = "session-turns"
    SESSION_ENDED = "session-ended"
    SESSION_ACCOUNTS = "session-accounts"
    OBJECT_QUOTA = "object-quota"
    PINNED_INFEASIBLE = "pinned_pool_infeasible"
    PREFERRED_INFEASIBLE = "no_preferred_feasible"


POLICY_LABELS: Final[dict[PolicyLabel, str]] = {
    PolicyLabel.REJECT: "The queue is full, and its `full_policy` refuses newcomers.",
    PolicyLabel.DROP_LRU: "The queue was full; a newcomer took the place of this task.",
    PolicyLabel.SHED_LOW_PRIORITY: "The queue is full, and a task of a higher class came, or no lower one has a place.",
    PolicyLabel.TENANT_CAPACITY: "The tenant has as many tasks waiting as `queue.tenant_capacity` permits.",
    PolicyLabel.KV_QUOTA: "The KV cache of this task alone is over the tenant's `kv_mb`.",
    PolicyLabel.CIRCUIT_BREAKER: "The pool's circuit breaker takes no tasks of this class at present.",
    PolicyLabel.RATE_LIMIT: "The caller's token sends more requests per second than it may.",
    PolicyLabel.STREAM_LIMIT: "The caller's token has as many streams open as it may.",
    PolicyLabel.SESSION_BUDGET: "The session's budget of tokens, time or cost has not enough left: 429 where tasks "
    "under way may give some back, 400 where it is spent.",
    PolicyLabel.SESSION_TURNS: "The session has had as many tasks as it may (400).",
    PolicyLabel.SESSION_ENDED: "The session was deleted, or had no task for longer than its ttl_ms (400).",
    PolicyLabel.SESSION_ACCOUNTS: "The tenant has as many sessions with an account as `accounts_max` permits.",
    PolicyLabel.OBJECT_QUOTA: "The tenant has as much in the object store as `nats.tenant_object_bytes_max` permits.",
    PolicyLabel.PINNED_INFEASIBLE: "The pool that `placement` pins does not serve this task.",
    PolicyLabel.PREFERRED_INFEASIBLE: "No pool of `placement.prefer_pools` serves it, and no other is permitted.",
}


class ResetDetail(StrEnum):
    """Why a stream that was cut short does not go on (`detail` of WORKER_RESET)."""

    FAILOVER_REFUSED = "failover_refused"
    FAILOVER_FAIL = "failover_fail"
    TOKENS_LOST = "tokens_lost"
    TOKENS_DIFFER = "tokens_differ"


RESET_DETAILS: Final[dict[ResetDetail, str]] = {
    ResetDetail.FAILOVER_REFUSED: "The output is bound to a schema, and half of it by another run need not be valid.",
    ResetDetail.FAILOVER_FAIL: "The task asked for it: `failover` is `fail`.",
    ResetDetail.TOKENS_LOST: "What readers already have was lost with the bus server's memory.",
    ResetDetail.TOKENS_DIFFER: "The task was run again and said something else than was already sent.",
}


class PayloadDetail(StrEnum):
    """What is wrong with what a task refers to (`payload_ref`)."""

    PAYLOAD_MISSING = "payload_missing"
    PAYLOAD_DAMAGED = "payload_damaged"
    PAYLOAD_UNREADABLE = "payload_unreadable"
    PAYLOAD_REFUSED = "payload_refused"


PAYLOAD_DETAILS: Final[dict[PayloadDetail, str]] = {
    PayloadDetail.PAYLOAD_MISSING: "The object was never stored, or its time was over before the task ran.",
    PayloadDetail.PAYLOAD_DAMAGED: "What is stored under the digest is something else.",
    PayloadDetail.PAYLOAD_UNREADABLE: "It is no Payload as JSON.",
    PayloadDetail.PAYLOAD_REFUSED: "A guard refuses what it holds, or it is larger than the reference says.",
}


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The error envelope (ORCH-2006): the body of every HTTP error and the data of an SSE `error` event."""

    code: ErrorCode
    message: str
    engine: str | None = None
    retriable: bool = False
    retry_after_ms: Annotated[int, Meta(ge=0)] | None = None
    policy_label: PolicyLabel | None = None
    """On 429, and where the client's placement left no pool or its session takes no task; see errors.md."""
    pool_id: str | None = None
    hint: str | None = None
    detail: str | None = None
    """Which case of the code it is, where one has several: `ResetDetail`, `PayloadDetail`."""


MESSAGE_CHARS_MAX: Final = 1_000
"""Of an error: it may repeat what a client sent, and goes into logs and records."""


class OrchError(Exception):
    """Something a client is told. `status` differs from the code's usual one for 404, 405 and 413 only."""

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        status: int | None = None,
        engine: str | None = None,
        pool_id: str | None = None,
        retriable: bool | None = None,
        retry_after_ms: int | None = None,
        policy_label: PolicyLabel | None = None,
        hint: str | None = None,
    ) -> None:
        message = message[:MESSAGE_CHARS_MAX]
        super().__init__(message)
        facts = ERRORS[code]
        self.status = facts.status if status is None else status
        self.body = ErrorBody(
            code=code,
            message=message,
            engine=engine,
            retriable=facts.retriable if retriable is None else retriable,
            retry_after_ms=retry_after_ms,
            policy_label=policy_label,
            pool_id=pool_id,
            hint=hint,
        )

    @property
    def code(self) -> ErrorCode:
        return self.body.code


class Refused(OrchError):
    """The server said no to this admission: 429 with when to come back."""

    def __init__(
        self,
        message: str,
        *,
        policy_label: PolicyLabel,
        retry_after_ms: int,
        engine: str | None = None,
        pool_id: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(
            ErrorCode.ADMISSION_REJECT,
            message,
            engine=engine,
            pool_id=pool_id,
            hint=hint,
            retry_after_ms=retry_after_ms,
            policy_label=policy_label,
        )


def invalid(message: str, *, status: int = 400, engine: str | None = None, hint: str | None = None) -> OrchError:
    return OrchError(ErrorCode.INVALID_PARAMS, message, status=status, engine=engine, hint=hint)


def id_in_use(engine: str | None) -> OrchError:
    """The id is another tenant's task."""
    return invalid("task_id: this id is in use; take a fresh UUID", engine=engine)


def not_found(what: str) -> OrchError:
    return invalid(f"{what} is not known here", status=404)
