"""Compares what the audit tells of a task with its live run record. Pure.

An end on record and a final run record must agree in state, attempt, tokens, tenant, pool and the sequence at which the
run record was stored. A final run record must have its end on record, and no record may tell of a move that the run
record has not made. Not violations: run records that the stream RUN keeps no longer (72 hours, or its size: nothing as
old is there), tasks still under way, and ends younger than `SETTLE_MS`.
"""

from collections.abc import Iterator
from typing import Final

from llorch_ctl.core.audit_books import TaskBook
from llorch_ctl.core.findings import Fault
from llorch_shared.states import FINAL
from llorch_shared.wire.run import RunRecord

SETTLE_MS: Final = 20_000
"""An end is audited within a second; that of a process which died, some seconds after another has taken its place."""
RUN_KEPT_MS: Final = 72 * 3_600_000


def differences(book: TaskBook, run: RunRecord, run_seq: int, *, now_ms: int) -> Iterator[tuple[Fault, str]]:
    """`run_seq`: where the run record lies now."""
    end = book.end
    if book.run_seq > run_seq:
        said = f"a move to run record {book.run_seq} is on record, and the newest is {run_seq} ({run.state})"
        yield Fault.DIFFERS, said
    elif end is None and run.state in FINAL:
        if now_ms - run.ended_ms > SETTLE_MS:
            yield Fault.END_MISSING, f"it is {run.state}, and no record says so"
    elif end is not None:
        pairs = (
            ("state", end.state, run.state),
            ("run record", end.run_seq, run_seq),
            ("attempt", end.attempt, run.attempt),
            ("tokens_in", end.tokens_in, run.tokens_in),
            ("tokens_out", end.tokens_out, run.tokens_out),
            ("tenant", end.tenant, run.tenant),
            ("pool", end.pool_id, run.pool_id),
        )
        told = [f"{name} {audited}, live {live}" for name, audited, live in pairs if audited not in (None, live)]
        if told:
            yield Fault.DIFFERS, f"on record: {'; '.join(told)}"


def gone(book: TaskBook, *, runs_from_seq: int) -> Iterator[tuple[Fault, str]]:
    """Of a task that was placed and has no run record. `runs_from_seq`: the oldest sequence that RUN holds."""
    if book.run_seq >= runs_from_seq:
        yield Fault.RUN_GONE, f"its run record {book.run_seq} is gone, and older ones are kept"
