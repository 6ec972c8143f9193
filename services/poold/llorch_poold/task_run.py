"""One attempt of one task, from its placement to its terminal frame.

The order is the promise: claim by compare-and-set, only then call the engine (which may render a conversation
meanwhile); close the call and see the slot free, then store the final record, only then publish the terminal frame. A
node that lost a compare-and-set says nothing more.

Not here: what is asked of the engine (`attempt_request.py`), the call itself (`engine_call.py`), and how it comes to be
known that the task is to be cancelled (`cancellation.py`).
"""

import asyncio
import logging
from typing import Final, Protocol

from llorch_poold.attempt_end import AttemptEnd, Measured
from llorch_poold.attempt_request import AttemptRequest, PromptReader
from llorch_poold.cancellation import Cancellation
from llorch_poold.core.audit import audit_of
from llorch_poold.core.slot_memory import Session
from llorch_poold.core.task import Cancelled, Lost, Outcome, Phase, Preempted, TaskCore, claim_record
from llorch_poold.engine_call import EngineCall, SlotHolder
from llorch_poold.node_context import INTERRUPTIBLE_DECODE, NodeContext, ReplicaFacts
from llorch_poold.run_store import NotStorable, is_overtaken
from llorch_poold.task_voice import TaskVoice
from llorch_poold.token_stream import TokenStream
from llorch_shared.bus.port import BusError, Delivery
from llorch_shared.states import IllegalMove
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.run import Placement, PreemptRequest, RunRecord

log = logging.getLogger(__name__)


class Host(PromptReader, SlotHolder, Protocol):
    """The replica that runs a task."""

    @property
    def engine_lives(self) -> bool: ...


class TaskRun:
    """`run` is its whole life. A wish to cancel, `preempt` and `lose` may come at any time."""

    def __init__(
        self,
        node: NodeContext,
        host: Host,
        facts: ReplicaFacts,
        *,
        slot: int,
        placement: Placement,
        delivery: Delivery | None,
    ) -> None:
        """`delivery`: None for what was signalled."""
        self._node: Final = node
        self._host: Final = host
        self._facts: Final = facts
        self._placement: Final = placement
        self._delivery: Final = delivery
        self._core: Final = TaskCore(placement.run, placement.run_seq)
        self._stream: Final = TokenStream(node, facts, placement.run)
        self._voice: Final = TaskVoice(facts, placement.run)
        self._end: Final = AttemptEnd(node, facts, self._core, self._stream, self._voice)
        self._wanted: Final = AttemptRequest(
            node, host, facts, core=self._core, stream=self._stream, conclude=self._conclude
        )
        self._call: Final = EngineCall(
            node,
            host,
            facts,
            core=self._core,
            stream=self._stream,
            voice=self._voice,
            wanted=self._wanted,
            slot=slot,
            conclude=self._conclude,
            speaks=self._speaks,
        )
        self.cancellation: Final = Cancellation(node, self._core, self._conclude)
        self._acknowledging: asyncio.Task[None] | None = None
        self._auditing: asyncio.Task[None] | None = None
        """Of the claim, beside the call of the engine."""
        self._preemption: PreemptRequest | None = None
        """Heard before it was known what readers have."""
        self._leaves = False
        """The replica drains since before the claim stood."""
        self._lost = ""
        """Why it was lost before the claim stood: the engine that is there by then is another."""
        self._preempt_asked_ms = 0
        self.slot: Final = slot
        self.task_id: Final = placement.run.task_id
        self.session: Final = session_of(placement.run)

    @property
    def phase(self) -> Phase:
        return self._core.phase

    @property
    def generated(self) -> bool:
        """It had a token here."""
        return self._core.tokens_out > self._core.first

    def is_of(self, placement: Placement) -> bool:
        """Whether it was begun by this very placement, wherever its record stands by now."""
        return self._placement.run == placement.run

    @property
    def left(self) -> bool:
        """The task is not this replica's any more, and has not ended here."""
        return self._core.phase is Phase.DROPPED or isinstance(self._core.outcome, Lost)

    async def run(self) -> None:
        """Claim, generate, end. Returns when this node has nothing more to do with the task."""
        self.cancellation.begin()
        self._wanted.begin()
        try:
            if not await self._claim():
                self._core.dropped()
                return
            await self.cancellation.claimed()
            await self._attempt()
        finally:
            self.cancellation.close()
            self._wanted.close()

    async def _attempt(self) -> None:
        try:
            if self._core.outcome is None:
                await self._generate()
            await self._finish()
        finally:
            self._call.close()
            assert self._auditing is not None, "it is claimed"
            await asyncio.gather(self._begin_acknowledging(), self._auditing, return_exceptions=True)

    def preempt(self, request: PreemptRequest) -> None:
        """Make way at once if a later attempt can say the same again, else run on: the scheduler only asked."""
        if not self._stream.opened and self._core.phase in (Phase.CLAIMING, Phase.CALLING):
            self._preemption, self._preempt_asked_ms = request, now_ms()
            return
        refusal = self._core.refuses_preemption(
            request.run_seq, tokens_sent=max(self._core.tokens_out, self._stream.backlog.count)
        )
        if INTERRUPTIBLE_DECODE not in self._facts.features:
            refusal = refusal or "its engine has not shown that it can be interrupted"
        if refusal:
            self._voice.tell("task.preempt_refused", f"is not preempted: {refusal}")
            return
        self._preempt_asked_ms = self._preempt_asked_ms or now_ms()
        self._conclude(Preempted(request.urgent_task_id))

    def hand_over(self) -> None:
        """The replica drains: make way as for a more urgent task, so that no attempt counts as lost."""
        self._leaves = self._core.phase is Phase.CLAIMING
        self.preempt(PreemptRequest(task_id=self.task_id, run_seq=self._core.seq))

    def lose(self, reason: str) -> None:
        """The engine is gone, or must go."""
        if self._core.phase is Phase.CLAIMING:
            self._lost = reason
        self._conclude(Lost(reason))

    def let_go(self, reason: str) -> bool:
        """The node was cut off for too long. Returns whether the attempt ends by it: what has an outcome keeps it."""
        return self._conclude(Lost(reason, again="node_cut_off"))

    async def reconnected(self) -> None:
        """What was written while nobody here listened: another attempt has the task, or somebody wants it cancelled.
        Raises BusError when nobody tells whose it is."""
        stored, core = await self._node.runs.current(self.task_id), self._core
        holds = core.phase not in (Phase.CLAIMING, Phase.ENDED, Phase.DROPPED)
        if holds and is_overtaken(stored, core.run, core.seq, storing=core.phase is Phase.STORING):
            self._stream.forget()
            self.lose("another attempt took it over while this node was cut off")
        await self.cancellation.reconnected()

    async def _claim(self) -> bool:
        facts = self._facts
        run = self._core.run
        try:
            record = claim_record(
                run,
                node_id=self._node.node_id,
                replica_id=facts.replica_id,
                incarnation=facts.incarnation,
                determinism_class=facts.determinism_class,
                token_log=self._node.token_log.mark,
                now_ms=now_ms(),
            )
            seq = await self._node.runs.claim(record, self._placement)
        except (IllegalMove, NotStorable) as error:
            log.warning("task %s cannot be claimed: %s", self.task_id, error)
            seq = None
        if seq is None:
            await self._acknowledge()
            return False
        self._core.claimed(record, seq)
        if self._lost:
            self._conclude(Lost(self._lost))
        if self._leaves:
            self._preemption = PreemptRequest(task_id=self.task_id, run_seq=seq)
        self._auditing = asyncio.create_task(
            self._node.audit.record(audit_of(record, seq, self._node.node_id)), name=f"claimed {self.task_id}"
        )
        return True

    def _speaks(self) -> None:
        """It has its first token, for which the server had better things to do than to forget the placement."""
        self._begin_acknowledging()
        if self._core.run.session is not None:
            self._end.warmed(self._core.run.session)

    def _begin_acknowledging(self) -> asyncio.Task[None]:
        if self._acknowledging is None:
            self._acknowledging = asyncio.create_task(self._acknowledge(), name=f"ack {self.task_id}")
        return self._acknowledging

    async def _acknowledge(self) -> None:
        """A placement that comes again loses its compare-and-set, so a lost ack costs nothing but that."""
        if self._delivery is None:
            return
        try:
            await self._delivery.ack()
        except BusError as error:
            log.debug("the placement of %s stays unacknowledged: %s", self.task_id, error)

    async def _generate(self) -> None:
        request = await self._wanted.prepare()
        if request is None:
            return
        if self._preemption is not None:
            self.preempt(self._preemption)
        await self._call.make(request)

    def _conclude(self, outcome: Outcome) -> bool:
        if not self._core.conclude(outcome):
            return False
        self._call.concluded(outcome)
        return True

    async def _finish(self) -> None:
        assert self._core.outcome is not None
        await self._call.release(self._core.outcome)
        outcome = self._core.outcome
        if isinstance(outcome, Lost):
            await self._leave(outcome)
            return
        cancel_ms = await self.cancellation.took_ms(now_ms()) if isinstance(outcome, Cancelled) else None
        measured = Measured(self._call.decode_s, self._call.first_token_ms, cancel_ms, self._preempt_asked_ms)
        await self._end.settle(outcome, measured)

    async def _leave(self, outcome: Lost) -> None:
        says = f"is lost by replica {self._facts.replica_id}: {outcome.reason}"
        self._voice.tell("task.lost", says, level=logging.WARNING)
        try:
            if self._core.gives_back() and self._host.engine_lives:
                await self._end.give_back(outcome, self._call.decode_s)
            else:
                self._core.dropped()
        finally:
            self._stream.lost(asyncio.get_running_loop().time())

    async def audit(self) -> None:
        """Record the end, if there was one; the slot is free already."""
        await self._end.audit()


def session_of(run: RunRecord) -> Session:
    """Whose text its prompt and answer are."""
    return Session(run.tenant, run.request.session_id.lower() if run.request is not None else "")
