"""Checks the chains of the audit stream, record by record in the order of the stream, in memory of some bytes a writer.

The rules, for what `llorch_shared.audit_chain` writes:
- every chained record is, to the byte, what its hash was made of, and lies at the subject that it names;
- a writer's numbers follow each other without gap, repeat or exchange, and each `prev` is the hash before;
- a closing record counts what came before it, and nothing of its writer follows.
Not violations: a beginning that the stream no longer keeps or that was not read (`cut`); a life without a closing
record, which runs, or was killed; records of earlier releases, which have no chain. Not found: a missing end of a life
without a closing record, a whole life that is gone, a chain made anew from some place to its end.
"""

from typing import Final

import msgspec

from llorch_ctl.core.findings import Fault, Findings, Violation
from llorch_shared import subjects
from llorch_shared.audit_chain import HASH_CHARACTERS, is_sound
from llorch_shared.wire.audit import AuditEvent

GAP_TOLD_MAX: Final = 1_000
"""Missing numbers of one gap that are remembered, to tell an exchange from a removal."""


class _Link(msgspec.Struct, frozen=True, kw_only=True):
    """Of a record of any release."""

    event: str
    task_id: str
    detail: dict[str, msgspec.Raw] = {}
    writer: str | None = None
    number: int | None = None
    prev: str | None = None
    hash: str | None = None


class _Writer:
    __slots__ = ("closed", "hash", "missing", "number")

    def __init__(self, number: int, last_hash: str | None) -> None:
        self.number = number
        self.hash = last_hash
        """None where the record before cannot be trusted."""
        self.missing: dict[int, int] = {}
        """Number → where in the stream it was missed."""
        self.closed = False


_LINK: Final = msgspec.json.Decoder(_Link)


class Chains:
    def __init__(self, findings: Findings, *, cut: bool) -> None:
        """`cut`: the stream has been read from a place where lives may be under way already."""
        self._findings: Final = findings
        self._cut: Final = cut
        self._writers: Final[dict[str, _Writer]] = {}
        self.chained = 0
        self.unchained = 0

    @property
    def writers(self) -> int:
        return len(self._writers)

    @property
    def closed(self) -> int:
        return sum(writer.closed for writer in self._writers.values())

    def read(self, seq: int, subject: str, data: bytes) -> bool:
        """Whether this is what somebody wrote there: nothing can be concluded from anything else."""
        try:
            link = _LINK.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._found(Fault.UNREADABLE, f"is no audit record: {error}", seq, subject)
            return False
        belongs = _belongs(link, subject)
        if not belongs:
            said = f"is {link.event} of {link.task_id} and lies elsewhere"
            self._found(Fault.MISPLACED, said, seq, subject, link.writer)
        if link.writer is None and link.number is None and link.prev is None and link.hash is None:
            self.unchained += 1
            return belongs
        self.chained += 1
        if not _is_whole(link, subject, data):
            self._found(Fault.ALTERED, "is not what its hash was made of", seq, subject, link.writer)
            self._distrust(link)
            return False
        self._follow(link, seq, subject)
        return belongs

    def finish(self) -> None:
        """After the last record: what is missing is missing for good."""
        for name, writer in self._writers.items():
            places: dict[int, list[int]] = {}
            for number, seq in writer.missing.items():
                places.setdefault(seq, []).append(number)
            for seq, numbers in places.items():
                span = f"{numbers[0]} to {numbers[-1]} are" if len(numbers) > 1 else f"{numbers[0]} is"
                self._found(Fault.MISSING, f"number {span} missing before this one", seq, "", name)
            writer.missing = {}

    def _follow(self, link: _Link, seq: int, subject: str) -> None:
        name, number = link.writer or "", link.number or 0
        writer = self._writers.get(name)
        if writer is None:
            begun = number - 1 if self._cut else 0
            writer = self._writers[name] = _Writer(begun, None if self._cut and begun else "")
        if number <= writer.number:
            if writer.missing.pop(number, None) is not None:
                self._found(Fault.OUT_OF_ORDER, f"number {number} comes after {writer.number}", seq, subject, name)
            else:
                self._found(Fault.DOUBLED, f"number {number} is there already", seq, subject, name)
            return
        if writer.closed:
            self._found(Fault.AFTER_CLOSE, f"number {number} comes after the closing record", seq, subject, name)
        gap = range(writer.number + 1, number)
        if gap:
            writer.missing.update(dict.fromkeys([*gap[: GAP_TOLD_MAX - 1], gap[-1]], seq))
        elif writer.hash is not None and link.prev != writer.hash:
            said = f"number {number} was not written after the record before it"
            self._found(Fault.BROKEN_LINK, said, seq, subject, name)
        writer.number, writer.hash = number, link.hash
        if link.event == AuditEvent.WRITER_CLOSED:
            writer.closed = True
            if link.detail.get("records") != msgspec.Raw(b"%d" % (number - 1)):
                self._found(Fault.MISCOUNTED, f"closes after {number - 1} records, not as it says", seq, subject, name)

    def _distrust(self, link: _Link) -> None:
        """An altered record keeps its place in the chain if it fits there; nothing can be linked to its hash."""
        writer = self._writers.get(link.writer or "")
        if writer is not None and link.number == writer.number + 1:
            writer.number, writer.hash = link.number, None

    def _found(self, fault: Fault, said: str, seq: int, subject: str, writer: str | None = "") -> None:
        self._findings.add(Violation(fault=fault, said=said, seq=seq, subject=subject, writer=writer or ""))


def _belongs(link: _Link, subject: str) -> bool:
    try:
        return subject == subjects.audit(link.event, link.task_id)
    except ValueError:
        return False


def _is_whole(link: _Link, subject: str, data: bytes) -> bool:
    return (
        bool(link.writer)
        and bool(link.number and link.number > 0)
        and link.prev is not None
        and len(link.prev) == (HASH_CHARACTERS if link.number != 1 else 0)
        and is_sound(subject, data)
    )
