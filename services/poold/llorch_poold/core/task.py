"""One attempt of one task on this node: its phases, and the single outcome that ends it.

    claiming ─▶ calling ─▶ streaming ─▶ releasing ─▶ storing ─▶ ended
        └─▶ dropped (somebody else has it)    └─▶ dropped (lost: the scheduler places it again)

A lost task whose engine lives is given back: stored as placed on no replica, then ended here.

The first outcome wins and nothing that comes after it changes it: a cancel that comes after the engine's last frame
is too late, and a last frame that comes after a cancel is not shown. No token is taken once there is an outcome.
One exception: a preempted task is not over, so a cancel that comes while its slot is released ends it after all.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from llorch_shared.errors import ERRORS, ErrorBody, ErrorCode
from llorch_shared.states import check_move
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import Determinism, Engine, Failover, TaskState, Workload


class Phase(StrEnum):
    CLAIMING = "claiming"
    CALLING = "calling"
    STREAMING = "streaming"
    RELEASING = "releasing"
    STORING = "storing"
    ENDED = "ended"
    DROPPED = "dropped"


_P = Phase

MOVES: Final[dict[Phase, frozenset[Phase]]] = {
    _P.CLAIMING: frozenset({_P.CALLING, _P.DROPPED}),
    _P.CALLING: frozenset({_P.STREAMING, _P.RELEASING, _P.DROPPED}),
    _P.STREAMING: frozenset({_P.RELEASING, _P.DROPPED}),
    _P.RELEASING: frozenset({_P.STORING, _P.DROPPED}),
    _P.STORING: frozenset({_P.ENDED, _P.DROPPED}),
    _P.ENDED: frozenset(),
    _P.DROPPED: frozenset(),
}


class IllegalPhase(ValueError):
    """A task was about to change between two phases that the table does not connect."""


@dataclass(frozen=True, slots=True)
class Finished:
    reason: str
    tokens_in: int
    tokens_out: int
    cut: bool = False
    """The engine would have gone on: it is stopped, and its slot seen free."""
    stop_sequence: str | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    error: ErrorBody


@dataclass(frozen=True, slots=True)
class Lost:
    """This replica cannot go on with it; the scheduler decides about another attempt."""

    reason: str
    again: str = ""
    """Why the node itself asks for another attempt, as the audit says it. Empty: the replica's record tells the
    scheduler."""


@dataclass(frozen=True, slots=True)
class Preempted:
    """Stopped for more urgent work. Its record goes back to the scheduler and its stream goes on in a later attempt."""

    urgent_task_id: str


Outcome = Finished | Cancelled | Failed | Lost | Preempted


class TaskCore:
    """Counts and phase of one attempt. Times are Unix milliseconds, except `decode_ms`, a duration."""

    def __init__(self, run: RunRecord, run_seq: int) -> None:
        self.run = run
        self.seq = run_seq
        self.phase = _P.CLAIMING
        self.outcome: Outcome | None = None
        self.tokens_in = run.tokens_in
        self.first = 0
        """Index of this attempt's first token: above 0 where it goes on from what was sent, or anew behind it."""
        self.tokens_out = 0
        """Index of its next token."""
        self.restarted_at = run.restarted_at
        self.sent_before = 0
        """Tokens that readers have from earlier attempts: the end counts the stream, not the attempt."""

    def claimed(self, run: RunRecord, seq: int) -> None:
        self._move(_P.CALLING)
        self.run, self.seq = run, seq

    def dropped(self) -> None:
        """Somebody else has it, or it is lost here."""
        self._move(_P.DROPPED)

    def starts_at(self, first: int, restarted_at: int | None = None) -> None:
        """The stream's tokens before `first` are of earlier attempts; those before `restarted_at` are void."""
        self.first = self.tokens_out = first
        self.restarted_at = restarted_at

    def charged(self, lost_ms: int) -> None:
        """Earlier attempts died after they had decoded for so long."""
        if self.run.lost:
            self.run = msgspec.structs.replace(self.run, decode_ms=self.run.decode_ms + lost_ms, lost=())

    def begun(self) -> None:
        self._move(_P.STREAMING)

    def tokens(self, count: int) -> int:
        """Take `count` more tokens; returns the index of the first."""
        if self.phase is not _P.STREAMING or self.outcome is not None:
            raise IllegalPhase(f"tokens in phase {self.phase}")
        first = self.tokens_out
        self.tokens_out += count
        return first

    def conclude(self, outcome: Outcome) -> bool:
        """The first outcome wins; false for every later one."""
        if self.phase is _P.RELEASING and isinstance(self.outcome, Preempted) and isinstance(outcome, Cancelled):
            self.outcome = outcome
            return True
        if self.outcome is not None or self.phase in (_P.CLAIMING, _P.ENDED, _P.DROPPED):
            return False
        self.outcome = outcome
        self._move(_P.RELEASING)
        return True

    def refuses_preemption(self, run_seq: int, *, tokens_sent: int) -> str:
        """Why this attempt runs on although it was asked to make way; empty when it must stop. Only what a later
        attempt can repeat token by token may be stopped (ORCH-3086)."""
        request = self.run.request
        if run_seq != self.seq:
            return "another claim was meant"
        if self.outcome is not None or self.phase not in (_P.CALLING, _P.STREAMING):
            return "it is ending"
        if request is None or request.workload is not Workload.COMPLETION:
            return "only a completion can be resumed"
        if request.failover is Failover.FAIL and tokens_sent:
            return "its stream is not to be interrupted"
        if request.tools and tokens_sent:
            return "tokens of a task with tools were sent, which no later attempt repeats"
        if request.determinism is not Determinism.STRICT and tokens_sent:
            return "tokens of a best_effort task were sent, which no later attempt repeats"
        return ""

    def released(self) -> None:
        """The engine's slot is free."""
        self._move(_P.STORING)

    def ended(self) -> None:
        self._move(_P.ENDED)

    def final_record(self, *, now_ms: int, decode_ms: int, cancel_ms: int | None = None) -> RunRecord:
        """The run record of the outcome; the request is not kept any longer. `decode_ms`: of this attempt."""
        outcome = self.outcome
        if isinstance(outcome, Finished):
            state, reason, error = TaskState.DONE, outcome.reason, None
        elif isinstance(outcome, Cancelled):
            state, reason, error = TaskState.CANCELLED, "cancelled", None
        elif isinstance(outcome, Failed):
            state, reason, error = TaskState.FAILED, "", outcome.error
        else:
            raise IllegalPhase(f"no final record for {outcome}")
        check_move(self.run.state, state)
        return msgspec.structs.replace(
            self.run,
            state=state,
            ended_ms=now_ms,
            tokens_in=self.tokens_in,
            tokens_out=max(self.tokens_out, self.sent_before, self.run.tokens_out),
            restarted_at=self.restarted_at,
            decode_ms=self.run.decode_ms + decode_ms,
            finish_reason=reason,
            stop_sequence=outcome.stop_sequence if isinstance(outcome, Finished) else None,
            cancel_ms=cancel_ms if isinstance(outcome, Cancelled) else None,
            error=error,
            request=None,
            trace=self.run.request is not None and self.run.request.trace,
        )

    def preempted_record(self, *, resume_from: int, decode_ms: int) -> RunRecord:
        """The run record of a preempted task: placed on no replica, for the scheduler to place again. The request is
        kept; `resume_from` tokens of its stream were sent, and this attempt decoded for `decode_ms`."""
        check_move(self.run.state, TaskState.PLACED)
        return msgspec.structs.replace(
            self._off_replica(decode_ms),
            attempt=self.run.attempt + 1,
            preemptions=self.run.preemptions + 1,
            tokens_in=self.tokens_in,
            tokens_out=resume_from,
            restarted_at=self.restarted_at,
        )

    def gives_back(self) -> bool:
        """Whether this lost attempt is given back at once. Only the first: a replica that garbles everything would use
        up all attempts in a blink, so the scheduler takes the later ones back in its own time."""
        lost = self.run.attempt - self.run.preemptions
        return isinstance(self.outcome, Lost) and bool(self.outcome.again) and lost == 1

    def given_back_record(self, *, decode_ms: int) -> RunRecord:
        """The run record of a task that is given back: placed on no replica, as if the scheduler had taken it back."""
        check_move(self.run.state, TaskState.PLACED)
        return msgspec.structs.replace(self._off_replica(decode_ms), attempt=self.run.attempt + 1)

    def _off_replica(self, decode_ms: int) -> RunRecord:
        return msgspec.structs.replace(
            self.run,
            state=TaskState.PLACED,
            replica_id="",
            node_id="",
            incarnation="",
            placed_ms=0,
            started_ms=0,
            decode_ms=self.run.decode_ms + decode_ms,
        )

    def _move(self, after: Phase) -> None:
        if after not in MOVES[self.phase]:
            raise IllegalPhase(f"a task cannot go from {self.phase} to {after}")
        self.phase = after


def claim_record(
    run: RunRecord,
    *,
    node_id: str,
    replica_id: str,
    incarnation: str,
    determinism_class: str,
    token_log: str,
    now_ms: int,
) -> RunRecord:
    """What a node stores to claim a task (ARCHITECTURE, invariant 2). Where the stream begins and on what is told by
    the first attempt alone. Raises IllegalMove for one that is not placed."""
    check_move(run.state, TaskState.RUNNING)
    first = run.attempt == 1
    return msgspec.structs.replace(
        run,
        state=TaskState.RUNNING,
        node_id=node_id,
        replica_id=replica_id,
        incarnation=incarnation,
        started_ms=now_ms,
        determinism_class=determinism_class if first else run.determinism_class,
        token_log=token_log if first else run.token_log,
    )


def error_body(
    code: ErrorCode, message: str, *, engine: Engine | None, pool_id: str, detail: str | None = None
) -> ErrorBody:
    retriable = ERRORS[code].retriable
    return ErrorBody(code=code, message=message, engine=engine, retriable=retriable, pool_id=pool_id, detail=detail)
