"""Rebuilds from audit records alone what sessions have spent, and compares with their accounts and with the run
records of the tasks they paid for. Pure.

A task is settled once on record, for what its run record says, and an account has spent the sum of what is settled.
Records are read before run records, these before accounts, so each can only be further than the one before. Not
violations: settlements that are not on record because their writer was killed between the account and the record, whose
amounts are then taken from the run records; accounts and run records that are kept no longer (72 hours).
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from llorch_ctl.core.audit_compare import SETTLE_MS
from llorch_ctl.core.findings import Fault, Violation
from llorch_shared.states import FINAL
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.session import NANO, SessionRecord

TASKS_HELD_MAX: Final = 200_000
LINES_MAX: Final = 1_000


class Paid(NamedTuple):
    tokens: int
    time_ms: int
    seq: int = 0
    """Of its record in the audit stream; 0 for what a run record says."""


class SessionLine(msgspec.Struct, frozen=True, kw_only=True):
    tenant: str
    session: str
    tasks: int
    """That were settled."""
    tokens: int
    time_ms: int
    cost: float


class SessionBooks:
    """What is remembered is bounded: beyond it the longest known tasks are let go, and their sessions not compared."""

    def __init__(self, *, tasks_held_max: int = TASKS_HELD_MAX) -> None:
        self._held_max: Final = tasks_held_max
        self._settled: Final[OrderedDict[str, Paid]] = OrderedDict()
        self._runs: Final[OrderedDict[str, Paid]] = OrderedDict()
        self.lines: Final[list[SessionLine]] = []
        self.compared = 0
        self.unrecorded = 0
        """Settlements that are not on record."""

    def add(self, seq: int, record: AuditRecord) -> Iterator[Violation]:
        if record.event is not AuditEvent.SESSION_SETTLED:
            return
        if record.task_id in self._settled:
            yield _violation(Fault.SETTLED_TWICE, "it was paid for already", seq, record.task_id)
            return
        paid = Paid(_number(record, "tokens"), _number(record, "time_ms"), seq)
        _hold(self._settled, record.task_id, paid, self._held_max)

    def saw(self, run: RunRecord) -> None:
        if run.session is not None and run.state in FINAL:
            _hold(self._runs, run.task_id, Paid(run.tokens_out, run.decode_ms), self._held_max)

    def missing(self, account: SessionRecord) -> list[str]:
        """Tasks it paid for of which neither a record nor a run record has been seen."""
        return [task for task in account.settled if task not in self._settled and task not in self._runs]

    def compare(self, account: SessionRecord) -> Iterator[Violation]:
        """An account as it stands now."""
        paid = [self._paid(task) for task in account.settled]
        for task in account.settled:
            told, live = self._settled.get(task), self._runs.get(task)
            if told is None:
                self.unrecorded += 1
            elif live is not None and (told.tokens, told.time_ms) != (live.tokens, live.time_ms):
                took = f"{live.tokens} tokens in {live.time_ms} ms"
                said = f"{told.tokens} tokens in {told.time_ms} ms were paid for, and it took {took}"
                yield _violation(Fault.SESSION_DIFFERS, said, told.seq, task)
        known = [each for each in paid if each is not None]
        if len(known) < len(paid):
            return
        self.compared += 1
        tokens, time_ms = sum(each.tokens for each in known), sum(each.time_ms for each in known)
        spent = account.spent
        if (spent.tokens, spent.time_ms) != (tokens, time_ms):
            said = (
                f"session {account.session_id} of {account.tenant} has spent {spent.tokens} tokens and {spent.time_ms} "
                f"ms, and its tasks took {tokens} and {time_ms}"
            )
            yield Violation(fault=Fault.SESSION_DIFFERS, said=said)
        elif spent.nano != tokens * account.nano_per_token:
            said = f"session {account.session_id} of {account.tenant} has another cost than its tokens"
            yield Violation(fault=Fault.SESSION_DIFFERS, said=said)
        if len(self.lines) < LINES_MAX:
            self.lines.append(
                SessionLine(
                    tenant=account.tenant,
                    session=account.session_id,
                    tasks=len(paid),
                    tokens=tokens,
                    time_ms=time_ms,
                    cost=spent.nano / NANO,
                )
            )

    def _paid(self, task: str) -> Paid | None:
        return self._settled.get(task) or self._runs.get(task)


def unsettled(run: RunRecord, account: SessionRecord | None, *, now_ms: int) -> Violation | None:
    """An end that its session should have paid for by now."""
    if run.session is None or run.state not in FINAL or account is None:
        return None
    if run.task_id in account.settled or now_ms - run.ended_ms <= SETTLE_MS:
        return None
    return _violation(Fault.UNSETTLED, f"session {account.session_id} has not paid for it", 0, run.task_id)


def _violation(fault: Fault, said: str, seq: int, task_id: str) -> Violation:
    return Violation(fault=fault, said=said, seq=seq, task_id=task_id)


def _hold(held: OrderedDict[str, Paid], task: str, paid: Paid, most: int) -> None:
    held[task] = paid
    if len(held) > most:
        held.popitem(last=False)


def _number(record: AuditRecord, name: str) -> int:
    found = record.detail.get(name)
    return found if isinstance(found, int) else 0
