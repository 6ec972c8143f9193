"""What a look at the audit stream can find wrong, and what to do about it."""

from enum import StrEnum
from typing import Final

import msgspec


class Fault(StrEnum):
    UNREADABLE = "unreadable"
    ALTERED = "altered"
    MISPLACED = "misplaced"
    MISSING = "missing"
    DOUBLED = "doubled"
    OUT_OF_ORDER = "out_of_order"
    BROKEN_LINK = "broken_link"
    AFTER_CLOSE = "after_close"
    MISCOUNTED = "miscounted"
    ENDED_TWICE = "ended_twice"
    ADMITTED_TWICE = "admitted_twice"
    ILLEGAL_MOVE = "illegal_move"
    END_MISSING = "end_missing"
    DIFFERS = "differs"
    RUN_GONE = "run_gone"
    LOST = "lost"
    SETTLED_TWICE = "settled_twice"
    SESSION_DIFFERS = "session_differs"
    UNSETTLED = "unsettled"


_STREAM: Final = (
    "the stream holds other than what was written: keep it (nats stream backup AUD FOLDER), find who can write to "
    "llorch.aud.> or to the disk, compare with an earlier backup"
)
_BOOKS: Final = "orchctl why TASK tells all that is known; keep the stream and report it as a fault of llama-orch"

TO_DO: Final[dict[Fault, str]] = {
    **dict.fromkeys(Fault, _STREAM),
    Fault.ENDED_TWICE: _BOOKS,
    Fault.ADMITTED_TWICE: _BOOKS,
    Fault.ILLEGAL_MOVE: _BOOKS,
    Fault.DIFFERS: _BOOKS,
    Fault.LOST: _BOOKS,
    Fault.RUN_GONE: _BOOKS,
    Fault.SETTLED_TWICE: _BOOKS,
    Fault.SESSION_DIFFERS: _BOOKS,
    Fault.UNSETTLED: "a scheduler settles what nobody else has within seconds: start one, and verify after a minute",
    Fault.END_MISSING: "start the node or scheduler that died again and verify after a minute: it audits what its "
    "earlier life has ended in the last ten minutes",
}


FINDINGS_KEPT: Final = 1_000


class Violation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    fault: Fault
    said: str
    seq: int = 0
    """In the audit stream."""
    subject: str = ""
    writer: str = ""
    task_id: str = ""


class Findings:
    """The first of what was found, and how many there are."""

    def __init__(self) -> None:
        self.kept: Final[list[Violation]] = []
        self.total = 0

    def add(self, violation: Violation) -> None:
        self.total += 1
        if len(self.kept) < FINDINGS_KEPT:
            self.kept.append(violation)
