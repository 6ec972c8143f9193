"""Verifies the audit stream of a running system: its chains, what follows from it about every task, and whether the
live run records say the same. Reads only.

The stream is read up to where it ended at the start, the run records after that, so a task that moves meanwhile is
further in its run record than on record. What looks wrong with a task is looked at once more, alone and whole, before
it is told. The rules are in `core/audit_chains.py`, `core/audit_books.py` and `core/audit_compare.py`.
"""

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from llorch_ctl import audit_pages
from llorch_ctl.core.audit_books import Books, TaskBook
from llorch_ctl.core.audit_chains import Chains
from llorch_ctl.core.audit_compare import RUN_KEPT_MS, differences, gone
from llorch_ctl.core.audit_report import Report, report
from llorch_ctl.core.audit_sessions import SessionBooks, unsettled
from llorch_ctl.core.findings import Fault, Findings, Violation
from llorch_shared import streams, subjects
from llorch_shared.audit_times import first_since
from llorch_shared.bus.port import Bus, BusError, Message
from llorch_shared.states import FINAL
from llorch_shared.wire.audit import AUDIT_DECODER, AuditRecord
from llorch_shared.wire.run import LOCATED_DECODER, RunRecord, decode_run
from llorch_shared.wire.session import SESSION_DECODER, SessionRecord
from llorch_shared.wire.task import TaskRef
from llorch_shared.wire.version import Unreadable

RECORDS_OF_TASK_MAX: Final = 10_000

Told = Callable[[str, int, int], None]
"""What is read, how much of it is, how much there is."""


class Verification:
    """`run` once."""

    def __init__(self, bus: Bus, *, now_ms: int, told: Told) -> None:
        self._bus: Final = bus
        self._now_ms: Final = now_ms
        self._told: Final = told
        self._findings: Final = Findings()
        self._books: Final = Books()
        self._sessions: Final = SessionBooks()
        self._from_ms = 0
        """When the first record that is read was stored; 0 when the stream is whole."""
        self._newer = 0
        self._compared = 0
        self._under_way = 0
        self._unknown = 0
        self._silent: Final[set[int]] = set()
        """Shards whose scheduler does not answer."""

    async def run(self, *, since_ms: int = 0) -> Report:
        """`since_ms`: look at what was stored from then on, Unix milliseconds. Raises BusError."""
        state = await self._bus.stream_state(streams.AUD)
        from_seq = await first_since(self._bus, since_ms) if since_ms else max(1, state.first_seq)
        self._from_ms = since_ms
        chains = Chains(self._findings, cut=from_seq > 1)
        read = await self._read_audits(chains, from_seq, state.last_seq)
        runs = await self._compare_runs()
        await self._explain_runless()
        await self._compare_accounts()
        return report(
            self._books,
            chains,
            self._findings,
            self._sessions,
            records=read,
            newer=self._newer,
            runs=runs,
            compared=self._compared,
            under_way=self._under_way,
            unknown=self._unknown,
        )

    async def _read_audits(self, chains: Chains, from_seq: int, to_seq: int) -> int:
        read = 0
        async for page in audit_pages.audits(self._bus, from_seq, to_seq):
            if not read and page and from_seq > 1:
                self._from_ms = max(self._from_ms, page[0].stored_ms)
            for message in page:
                sound = chains.read(message.seq, message.subject, message.data)
                if sound and (record := self._readable(message)) is not None:
                    self._add(self._books.add(message.seq, record))
                    self._add(self._sessions.add(message.seq, record))
            read += len(page)
            self._told("audit records", read, to_seq - from_seq + 1)
        chains.finish()
        return read

    def _readable(self, message: Message) -> AuditRecord | None:
        """None for what a newer release wrote."""
        try:
            return AUDIT_DECODER.decode(message.data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._newer += 1
            return None

    async def _compare_runs(self) -> int:
        seen = 0
        total = (await self._bus.stream_state(streams.RUN)).messages
        async for page in audit_pages.runs(self._bus):
            for message in page:
                await self._compare(message)
            seen += len(page)
            self._told("run records", seen, max(seen, total))
        return seen

    async def _compare(self, message: Message) -> None:
        run = _run_of(message)
        if run is None:
            return
        self._sessions.saw(run)
        if run.session is not None and run.state in FINAL:
            await self._is_settled(run)
        book = self._books.tasks.get(run.task_id)
        if book is None and (run.state not in FINAL or run.ended_ms <= self._from_ms):
            return
        if book is None:
            book = await self._book(run.task_id)
            faults = list(book.faults())
        else:
            faults = list(book.faults())
            self._books.judged(run.task_id)
        self._compared += run.state in FINAL
        self._under_way += run.state not in FINAL
        if faults or any(differences(book, run, message.seq, now_ms=self._now_ms)):
            await self._look_again(run.task_id)

    async def _is_settled(self, run: RunRecord) -> None:
        assert run.session is not None
        account = await self._account(run.tenant, run.session.session_id)
        if (found := unsettled(run, account, now_ms=self._now_ms)) is not None:
            self._findings.add(found)

    async def _account(self, tenant: str, session_id: str) -> SessionRecord | None:
        message = await self._bus.last(streams.SES, subjects.session(tenant, session_id))
        return None if message is None or message.deleted else _account_of(message)

    async def _compare_accounts(self) -> None:
        seen: set[str] = set()
        async for page in audit_pages.accounts(self._bus):
            for message in page:
                account = _account_of(message)
                if message.deleted or message.subject in seen or account is None:
                    continue
                seen.add(message.subject)
                for task_id in self._sessions.missing(account):
                    stored = await self._bus.last(streams.RUN, subjects.run(task_id))
                    if stored is not None and (run := _run_of(stored)) is not None:
                        self._sessions.saw(run)
                self._add(self._sessions.compare(account))

    async def _look_again(self, task_id: str) -> None:
        """Alone: first what is on record, then the run record, which can only be further."""
        book = await self._book(task_id)
        found = list(book.faults())
        message = await self._bus.last(streams.RUN, subjects.run(task_id))
        run = None if message is None or message.deleted else _run_of(message)
        if run is not None and message is not None:
            found += differences(book, run, message.seq, now_ms=self._now_ms)
        self._add(Violation(fault=fault, said=said, seq=book.seq, task_id=task_id) for fault, said in found)

    async def _explain_runless(self) -> None:
        """Tasks on record that have no run record: it is kept no longer, or they still wait."""
        kept_from = (await self._bus.stream_state(streams.RUN)).first_seq
        for task_id in list(self._books.tasks):
            book = self._books.tasks[task_id]
            self._add(self._books.judged(task_id))
            if book.run_seq:
                if any(gone(book, runs_from_seq=kept_from)):
                    await self._look_for_run(task_id, book, kept_from)
            elif not book.ends:
                await self._look_in_queue(task_id, book)

    async def _look_for_run(self, task_id: str, book: TaskBook, kept_from: int) -> None:
        message = await self._bus.last(streams.RUN, subjects.run(task_id))
        if message is not None:
            await self._look_again(task_id)
            return
        faults = gone(book, runs_from_seq=kept_from)
        self._add(Violation(fault=fault, said=said, seq=book.seq, task_id=task_id) for fault, said in faults)

    async def _look_in_queue(self, task_id: str, book: TaskBook) -> None:
        """A task that was admitted and nothing more waits, or has moved since, or is so old that nobody knows it."""
        waits = await self._waits(task_id, subjects.shard_of(book.pool_id))
        if waits is None or self._now_ms - book.last_ms > RUN_KEPT_MS:
            self._unknown += 1
        elif waits or await self._bus.last(streams.RUN, subjects.run(task_id)) is not None:
            self._under_way += 1
        else:
            said = "it was accepted, has no run record, and its scheduler does not know it"
            self._findings.add(Violation(fault=Fault.LOST, said=said, seq=book.seq, task_id=task_id))

    async def _waits(self, task_id: str, shard: int) -> bool | None:
        """None when nobody answers."""
        if shard in self._silent:
            return None
        try:
            answer = await self._bus.request(subjects.locate(shard), msgspec.json.encode(TaskRef(task_id=task_id)))
            return LOCATED_DECODER.decode(answer.data).found
        except (BusError, msgspec.MsgspecError):
            self._silent.add(shard)
            return None

    async def _book(self, task_id: str) -> TaskBook:
        """All that is on record of one task."""
        books = Books()
        for message in await self._bus.replay(streams.AUD, subjects.audits_of_task(task_id), limit=RECORDS_OF_TASK_MAX):
            try:
                self._add(books.add(message.seq, AUDIT_DECODER.decode(message.data)))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
        return books.tasks.get(task_id) or TaskBook()

    def _add(self, violations: Iterable[Violation]) -> None:
        for violation in violations:
            self._findings.add(violation)


def _account_of(message: Message) -> SessionRecord | None:
    """None for what this release cannot read."""
    try:
        return SESSION_DECODER.decode(message.data)
    except msgspec.DecodeError:
        return None


def _run_of(message: Message) -> RunRecord | None:
    """None for what a newer release wrote."""
    try:
        return decode_run(message.data, message.headers)
    except Unreadable:
        return None
