"""The life of one replica as a table: what happened moves it, and every state has one thing to do.

    provisioning ─▶ starting ─▶ testing ─▶ ready ─▶ draining
         ▲             │           │         │
         └── backoff ◀─┴───────────┴─────────┘        failed: the breaker opened, or it must not be started

A replica that broke waits, longer each time; after a run that was stable it counts from zero again. When it broke
`breaker_restarts` times without a stable run it stays failed until its spec changes.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from llorch_shared.wire.registry import ReplicaState

_S = ReplicaState


class Step(StrEnum):
    """What a state asks its shell to do; its outcome is the next event."""

    PROVISION = "provision"
    SPAWN = "spawn"
    SELF_TEST = "self_test"
    SERVE = "serve"
    DRAIN = "drain"
    WAIT = "wait"
    HALT = "halt"


class Happened(StrEnum):
    PROVISIONED = "provisioned"
    REFUSED = "refused"
    """It cannot be made to run as specified: trying again would not help."""
    PERMITTED = "permitted"
    """What forbade it does so no more."""
    LISTENING = "listening"
    PASSED = "passed"
    BROKE = "broke"
    WAITED = "waited"
    DRAIN_WISHED = "drain_wished"


class Outcome(NamedTuple):
    """How a step ended. `code`: the error code of what was refused, where that may be permitted later."""

    happened: Happened
    reason: str = ""
    code: str = ""


STEPS: Final[dict[ReplicaState, Step]] = {
    _S.PROVISIONING: Step.PROVISION,
    _S.STARTING: Step.SPAWN,
    _S.TESTING: Step.SELF_TEST,
    _S.READY: Step.SERVE,
    _S.DRAINING: Step.DRAIN,
    _S.BACKOFF: Step.WAIT,
    _S.FAILED: Step.HALT,
}

MOVES: Final[dict[tuple[ReplicaState, Happened], ReplicaState]] = {
    (_S.PROVISIONING, Happened.PROVISIONED): _S.STARTING,
    (_S.PROVISIONING, Happened.REFUSED): _S.FAILED,
    (_S.PROVISIONING, Happened.BROKE): _S.BACKOFF,
    (_S.STARTING, Happened.LISTENING): _S.TESTING,
    (_S.STARTING, Happened.BROKE): _S.BACKOFF,
    (_S.STARTING, Happened.REFUSED): _S.FAILED,
    (_S.TESTING, Happened.PASSED): _S.READY,
    (_S.TESTING, Happened.BROKE): _S.BACKOFF,
    (_S.READY, Happened.BROKE): _S.BACKOFF,
    (_S.BACKOFF, Happened.WAITED): _S.PROVISIONING,
    (_S.FAILED, Happened.PERMITTED): _S.PROVISIONING,
    **{(state, Happened.DRAIN_WISHED): _S.DRAINING for state in ReplicaState},
}


class IllegalEvent(ValueError):
    """Something happened to a replica that its state does not allow."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """`breaker_restarts` failures without a stable run of `stable_after_ms` in between open the breaker."""

    backoff_initial_ms: int
    backoff_factor: float
    backoff_max_ms: int
    stable_after_ms: int
    breaker_restarts: int


class ReplicaCore:
    """State, backoff and breaker of one replica. `handle` returns the next step."""

    def __init__(self, policy: RestartPolicy, *, refusal: str = "") -> None:
        self._policy: Final = policy
        self.state = _S.FAILED if refusal else _S.PROVISIONING
        self.last_error = refusal
        self.refused = ""
        """The error code of what forbids it, while it is failed for that."""
        self.restart_count = 0
        self.backoff_ms = 0
        self._failures = 0
        self._ready_since_ms: int | None = None

    @property
    def step(self) -> Step:
        return STEPS[self.state]

    def handle(self, outcome: Outcome, *, now_ms: int, jitter: float = 1.0) -> Step:
        """Move on. `jitter` in [0, 1] spreads restarts: the wait is between half of the backoff and all of it."""
        happened, reason, code = outcome
        try:
            after = MOVES[self.state, happened]
        except KeyError:
            raise IllegalEvent(f"{happened} in state {self.state}") from None
        if reason:
            self.last_error = reason
        self.refused = code if happened is Happened.REFUSED else ""
        if happened is Happened.BROKE:
            after = self._broke(now_ms, jitter)
        elif after is _S.READY:
            self._ready_since_ms = now_ms
            self.last_error = ""
        elif happened is Happened.WAITED:
            self.restart_count += 1
        if after is not _S.BACKOFF:
            self.backoff_ms = 0
        self.state = after
        return self.step

    def _broke(self, now_ms: int, jitter: float) -> ReplicaState:
        policy = self._policy
        if self._ready_since_ms is not None and now_ms - self._ready_since_ms >= policy.stable_after_ms:
            self._failures = 0
        self._ready_since_ms = None
        self._failures += 1
        if self._failures > policy.breaker_restarts:
            self.last_error = f"gave up after {policy.breaker_restarts} restarts: {self.last_error}"
            return _S.FAILED
        exponent = min(self._failures - 1, 64)
        full = min(policy.backoff_max_ms, policy.backoff_initial_ms * policy.backoff_factor**exponent)
        self.backoff_ms = round(full * (0.5 + 0.5 * min(1.0, max(0.0, jitter))))
        return _S.BACKOFF
