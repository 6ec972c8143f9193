"""The last steps of an attempt whose slot is free: store the record, then say so, then count it (ARCHITECTURE,
invariant 3). A node that lost the compare-and-set says nothing more."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from llorch_poold.backlog import BacklogUnread
from llorch_poold.core.audit import audit_of, preemption_of, requeue_of
from llorch_poold.core.task import Cancelled, Failed, Finished, Lost, Preempted, TaskCore
from llorch_poold.node_context import NodeContext, ReplicaFacts
from llorch_poold.task_voice import TaskVoice
from llorch_poold.token_stream import TokenStream
from llorch_poold.trace import write_trace
from llorch_shared import session_account
from llorch_shared.bus.port import BusError
from llorch_shared.errors import OrchError
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AuditRecord
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.session import SessionRecord, SessionTerms

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Measured:
    """`decode_s`: from the first token to the last. `first_token_ms`: from admission, if this attempt sent it.
    `cancel_ms`: from the stored wish to the free slot, of a cancel whose wish could be read. `preempt_asked_ms`: when
    the attempt was asked to make way, Unix milliseconds; 0 when nobody did."""

    decode_s: float
    first_token_ms: int | None
    cancel_ms: int | None = None
    preempt_asked_ms: int = 0


class AttemptEnd:
    """Of one attempt. `settle`, then `audit` off the path of the next task."""

    def __init__(
        self, node: NodeContext, facts: ReplicaFacts, core: TaskCore, stream: TokenStream, voice: TaskVoice
    ) -> None:
        self._node: Final = node
        self._facts: Final = facts
        self._core: Final = core
        self._stream: Final = stream
        self._voice: Final = voice
        self._audit: AuditRecord | None = None
        self._traced_session = ""
        """Of a task that has ended here and asked for its trace."""
        self._final: RunRecord | None = None

    async def settle(self, outcome: Finished | Cancelled | Failed | Preempted, measured: Measured) -> None:
        self._core.released()
        try:
            await self._stream.backlog.read()
        except BacklogUnread as error:
            log.warning("task %s ends with what its record says was sent: %s", self._core.run.task_id, error)
        self._core.sent_before = self._stream.backlog.count
        self._facts.pace.decoded(self._core.tokens_out - self._core.first - 1, measured.decode_s)
        if isinstance(outcome, Preempted):
            await self._make_way(outcome, measured)
        else:
            await self._finish(outcome, measured)

    async def give_back(self, outcome: Lost, decode_s: float) -> None:
        """Another attempt may begin at once. Not while the node may not speak: what readers lack of this attempt is
        published first. Nothing is said on the stream, where the next attempt announces itself."""
        await self._node.outlet.wait_open()
        self._core.released()
        record = self._core.given_back_record(decode_ms=round(decode_s * 1000))
        if await self._store(record):
            self._audit = requeue_of(record, self._core.seq, self._node.node_id, at_ms=now_ms(), reason=outcome.again)

    async def audit(self) -> None:
        """Record the end of this attempt, if it has stored one, settle it with its session, and keep the transcript of
        its stream where that is asked for."""
        if self._audit is not None:
            await self._node.audit.record(self._audit)
        if self._final is not None and self._final.session is not None:
            try:
                await self._node.sessions.settle(self._final)
            except (BusError, OrchError) as error:
                log.info("the scheduler settles %s with its session: %s", self._final.task_id, error)
        if self._traced_session:
            await write_trace(self._node, self._facts, self._core.run, self._traced_session)

    def warmed(self, terms: SessionTerms) -> None:
        """The task of this session has its first token. Told beside its tokens, and not again when that fails."""
        told = asyncio.create_task(self._tell_warm(terms), name=f"warm {terms.session_id}")
        self._node.settling.add(told)
        told.add_done_callback(self._node.settling.discard)

    async def _tell_warm(self, terms: SessionTerms) -> None:
        run, facts = self._core.run, self._facts

        def change(record: SessionRecord | None) -> SessionRecord | None:
            return None if record is None else session_account.warmed(record, facts.pool_id, facts.replica_id)

        try:
            await self._node.sessions.change(run.tenant, terms.session_id, change)
        except (BusError, OrchError) as error:
            log.info("session %s is told to be warm when its task ends: %s", terms.session_id, error)

    async def _finish(self, outcome: Finished | Cancelled | Failed, measured: Measured) -> None:
        record = self._core.final_record(
            now_ms=now_ms(), decode_ms=round(measured.decode_s * 1000), cancel_ms=measured.cancel_ms
        )
        request = self._core.run.request
        if not await self._store(record):
            return
        if request is not None and request.trace:
            self._traced_session = request.session_id
        self._audit = audit_of(record, self._core.seq, self._node.node_id)
        self._final = record
        self._stream.end(record, latency_first_token_ms=measured.first_token_ms, now=_loop_time())
        self._count(record)
        if isinstance(outcome, Cancelled):
            self._facts.metrics.canceled(outcome.reason, record.cancel_ms)

    async def _make_way(self, outcome: Preempted, measured: Measured) -> None:
        """Give the task back to the scheduler, then tell its readers where it goes on. In this order: from the frame
        on they take nothing of this attempt, and a node that lost the task meanwhile has no say."""
        before, resume_from = self._core.run, self._stream.backlog.sent.next_index(self._core.tokens_out)
        record = self._core.preempted_record(resume_from=resume_from, decode_ms=round(measured.decode_s * 1000))
        if not await self._store(record):
            return
        at_ms = now_ms()
        stop_ms = max(0, at_ms - measured.preempt_asked_ms)
        self._audit = preemption_of(
            before, record, self._core.seq, at_ms=at_ms, stop_ms=stop_ms, urgent_task_id=outcome.urgent_task_id
        )
        self._stream.preempted(record.attempt, resume_from, now=_loop_time())
        self._voice.tell(
            "task.preempted", f"made way in {stop_ms} ms and goes on from token {resume_from}", tokens_out=resume_from
        )

    async def _store(self, record: RunRecord) -> bool:
        """Whether the record of this attempt's end stands; if not, this attempt is over without a word."""
        seq = await self._node.runs.swap(record, self._core.seq)
        if seq is None:
            self._core.dropped()
            self._stream.forget()
            log.warning("task %s was taken over by another attempt; this one says nothing more", record.task_id)
            return False
        self._core.ended()
        self._core.run, self._core.seq = record, seq
        return True

    def _count(self, run: RunRecord) -> None:
        metrics = self._facts.metrics
        metrics.tokens_in.inc(run.tokens_in)
        metrics.tokens_out.inc(run.tokens_out)
        if run.tokens_out:
            metrics.decoded(run.priority, run.decode_ms)
        self._voice.tell(
            f"task.{run.state}",
            f"is {run.state}: {run.tokens_out} tokens in {run.decode_ms} ms",
            tokens_in=run.tokens_in,
            tokens_out=run.tokens_out,
            decode_time_ms=run.decode_ms,
            error_kind=run.error.code if run.error is not None else "",
        )


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
