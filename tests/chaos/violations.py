"""What the checker can find, and how it says so."""

from enum import StrEnum

import msgspec


class Kind(StrEnum):
    LOST = "lost"
    """Accepted, and without an end."""
    ENDED_TWICE = "ended twice"
    """A final record was changed, or a task has two audited ends."""
    ADMITTED_TWICE = "admitted twice"
    """Two admissions of one task id are on the record."""
    REFUSED_LATER = "refused later"
    """Accepted, and then unknown, refused, dropped or expired."""
    FAILED_WITHOUT_CAUSE = "failed without cause"
    CANCELLED_UNASKED = "cancelled unasked"
    RECEIPT_UNTRUE = "receipt untrue"
    """A cancel's receipt for a task that was not final."""
    RUNS_ON = "runs on"
    """An engine went on with a task after its cancel's receipt."""
    RAN_AFTER_END = "ran after end"
    """An engine began a task after its end, and finished it: twice run to a result."""
    NOT_RUN = "not run"
    """Done, and no engine has generated all of it."""
    UNEQUAL_RUNS = "unequal runs"
    """Two attempts with another seed or length."""
    RESTART_UNTOLD = "restart untold"
    """The output began anew, and a reader was not told where, or was told at another place than it is."""
    GAP = "gap"
    DOUBLED = "doubled"
    WRONG_TEXT = "wrong text"
    """Not what the engine said."""
    SHORT = "short"
    """The task is done, and its stream ended with fewer tokens."""
    EXTRA = "extra"
    """More tokens than the end counts."""
    AFTER_END = "after end"
    """An event after the terminal one."""
    AFTER_RECEIPT = "after receipt"
    """A token on an open stream after the same gateway's receipt of the cancel."""
    WITHOUT_END = "without end"
    """The task is final, and its reader never got a terminal event."""
    END_UNTRUE = "end untrue"
    """The terminal event says something else than the record."""
    NOT_AUDITED = "not audited"
    AUDIT_UNTRUE = "audit untrue"
    LOG_UNTRUE = "log untrue"
    """The token log differs from the engine's words, from itself or from the record."""
    TIME_UNTRUE = "time untrue"
    """A record or an audit says a time at which that cannot have been, or times in another order than they happened."""
    COUNTER_UNTRUE = "counter untrue"
    UNSETTLED = "unsettled"
    """Something did not come to rest after the last fault."""
    ODD = "odd"
    """An answer outside the protocol."""


class Violation(msgspec.Struct, frozen=True, kw_only=True, order=True):
    kind: Kind
    task: str
    """Empty for what belongs to no task."""
    explanation: str
