"""What `orchctl audit verify` tells, as data."""

import msgspec

from llorch_ctl.core.audit_books import Books
from llorch_ctl.core.audit_chains import Chains
from llorch_ctl.core.audit_sessions import SessionBooks, SessionLine
from llorch_ctl.core.findings import Findings, Violation


class UsageLine(msgspec.Struct, frozen=True, kw_only=True):
    tenant: str
    pool: str
    tasks: int
    """That have ended."""
    tokens_in: int
    tokens_out: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    clean: bool
    records: int
    """Audit records that were read."""
    unchained: int
    """Records of earlier releases."""
    newer: int
    """Records that this release cannot read: a newer one wrote them."""
    writers: int
    writers_closed: int
    """The others run, or were killed."""
    tasks: int
    under_way: int
    unknown: int
    """Accepted tasks of which nothing more can be told: their scheduler does not answer, or they are too old."""
    ends: dict[str, int]
    unrecorded_moves: int
    """Moves whose process was killed, or lost its office, before it could say so; the moves after it are on record."""
    unadmitted: int
    """Tasks without an admission record: their gateway was killed, or the admission lies before what was read."""
    runs: int
    """Run records that are kept."""
    compared: int
    """Ended tasks whose run record was compared."""
    usage: list[UsageLine]
    sessions: list[SessionLine]
    """Accounts that are kept, and what they have spent; the first thousand."""
    sessions_compared: int
    unrecorded_settlements: int
    """Of writers that were killed before they could say so; their amounts are those of the run records."""
    violations: int
    first: list[Violation]
    """The first of them, in the order of the stream."""


def report(
    books: Books,
    chains: Chains,
    findings: Findings,
    sessions: SessionBooks,
    *,
    records: int,
    newer: int,
    runs: int,
    compared: int,
    under_way: int,
    unknown: int,
) -> Report:
    return Report(
        clean=findings.total == 0,
        records=records,
        unchained=chains.unchained,
        newer=newer,
        writers=chains.writers,
        writers_closed=chains.closed,
        tasks=books.seen,
        under_way=under_way,
        unknown=unknown,
        ends={str(state): count for state, count in sorted(books.ends.items())},
        unrecorded_moves=books.unrecorded,
        unadmitted=books.unadmitted,
        runs=runs,
        compared=compared,
        usage=[
            UsageLine(tenant=tenant, pool=pool, tasks=each.tasks, tokens_in=each.tokens_in, tokens_out=each.tokens_out)
            for (tenant, pool), each in sorted(books.usage.items())
        ],
        sessions=sessions.lines,
        sessions_compared=sessions.compared,
        unrecorded_settlements=sessions.unrecorded,
        violations=findings.total,
        first=sorted(findings.kept, key=lambda violation: violation.seq),
    )
