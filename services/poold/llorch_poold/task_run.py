"""One attempt of one task, from its placement to its terminal frame.

The order is the promise: claim by compare-and-set, only then call the engine; close the call and see the slot free,
then store the final record, only then publish the terminal frame. A node that lost a compare-and-set says nothing
more. Token callbacks run in the engine's socket reader: they encode, publish and keep, and do nothing else.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from llorch_poold.adapters.port import (
    ContextFull,
    EngineBusy,
    EngineFailure,
    Finish,
    Generation,
    GenerationCall,
    RequestRejected,
)
from llorch_poold.attempt_clock import AttemptClock
from llorch_poold.attempt_end import AttemptEnd, Measured
from llorch_poold.core.audit import audit_of
from llorch_poold.core.budget import within
from llorch_poold.core.failover import Anew, Complete, GoOn, Refuse
from llorch_poold.core.prefix import PrefixMismatch
from llorch_poold.core.results import tokens_read
from llorch_poold.core.seed import seed_of
from llorch_poold.core.task import (
    Cancelled,
    Failed,
    Finished,
    Lost,
    Outcome,
    Phase,
    Preempted,
    TaskCore,
    claim_record,
    error_body,
)
from llorch_poold.node_context import CHAT_TEMPLATE, INTERRUPTIBLE_DECODE, TOOLS, NodeContext, ReplicaFacts
from llorch_poold.outlet import fence_clock
from llorch_poold.payload import PayloadUnusable, whole
from llorch_poold.prefill_line import Turn
from llorch_poold.run_store import NotStorable, is_overtaken
from llorch_poold.task_voice import TaskVoice
from llorch_poold.token_stream import BacklogUnread, TokenStream
from llorch_shared.bus.port import BusError, Delivery, Message
from llorch_shared.errors import ErrorCode, ResetDetail
from llorch_shared.identifiers import is_correlation_id
from llorch_shared.lifecycle import first_of
from llorch_shared.states import IllegalMove
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.run import CANCEL_DECODER, Placement, PreemptRequest
from llorch_shared.wire.spec import TimeoutSpec
from llorch_shared.wire.task import ChatMessage, TaskRequest, Tool, Workload

log = logging.getLogger(__name__)

BUSY_TRIES_MAX: Final = 5
BUSY_RETRY_S: Final = 0.05
READ_TRIES_MAX: Final = 5
BUDGET: Final = "budget"
"""Why a text ends that its session cannot pay for."""


class Host(Protocol):
    """The replica that runs a task."""

    def submit(self, call: GenerationCall, run: "TaskRun") -> Generation: ...

    @property
    def engine_lives(self) -> bool: ...

    def join_line(self, prompt: str) -> Turn | None:
        """Where the engine reads one long prompt at a time; None when there is no engine."""

    async def prompt_tokens(self, prompt: str) -> int:
        """Raises EngineBroke."""

    async def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        """Raises RequestRejected, EngineBroke."""

    async def free_slot(self, slot: int, patience_ms: int = 0) -> None:
        """Returns when the engine itself says the slot is free; kills the engine when it does not let go in its usual
        time, or in `patience_ms` if that is longer."""

    def timeouts(self) -> TimeoutSpec: ...


class TaskRun:
    """`run` is its whole life. `cancel`, `preempt` and `lose` may come at any time."""

    def __init__(
        self,
        node: NodeContext,
        host: Host,
        facts: ReplicaFacts,
        *,
        slot: int,
        placement: Placement,
        delivery: Delivery,
    ) -> None:
        self._node: Final = node
        self._host: Final = host
        self._facts: Final = facts
        self._delivery: Final = delivery
        self._core: Final = TaskCore(placement.run, placement.run_seq)
        self._stream: Final = TokenStream(node, facts, placement.run)
        self._voice: Final = TaskVoice(facts, placement.run)
        self._end: Final = AttemptEnd(node, facts, self._core, self._stream, self._voice)
        self._clock: Final = AttemptClock(lambda reason: self._fail(ErrorCode.DECODE_TIMEOUT, reason))
        self._concluded: Final = asyncio.Event()
        self._generation: Generation | None = None
        self._turn: Turn | None = None
        self._busy = False
        self._first_token_ms: int | None = None
        self._goes_on = False
        """The engine is given what was sent behind the prompt: its count of the prompt is not the task's."""
        self._by_input = placement.run.request is not None and placement.run.request.workload is not Workload.COMPLETION
        """Every token is the result of one input, and the inputs' tokens are counted as they are read."""
        self._read_before = 0
        """Tokens of the inputs whose results earlier attempts sent."""
        self._wish_stored_ms = 0
        """By the clock of the bus; 0 while the stored wish has not been read."""
        self._preemption: PreemptRequest | None = None
        """Heard before it was known what readers have."""
        self._preempt_asked_ms = 0
        self._submitted = False
        self._timed = False
        """Its session has a budget of decode time."""
        self._capped = False
        """The session's budget permits fewer tokens than the task asks for."""
        self.slot: Final = slot
        self.task_id: Final = placement.run.task_id

    @property
    def phase(self) -> Phase:
        return self._core.phase

    @property
    def left(self) -> bool:
        """The task is not this replica's any more, and has not ended here."""
        return self._core.phase is Phase.DROPPED or isinstance(self._core.outcome, Lost)

    async def run(self) -> None:
        """Claim, generate, end. Returns when this node has nothing more to do with the task."""
        if not await self._claim():
            self._core.dropped()
            return
        acknowledged = asyncio.create_task(self._acknowledge(), name=f"ack {self.task_id}")
        try:
            await self.check_cancel()
            if self._core.outcome is None:
                await self._generate()
            await self._finish()
        finally:
            self._clock.stop()
            if self._generation is not None:
                self._generation.abort()
            self._leave_line()
            await asyncio.gather(acknowledged, return_exceptions=True)

    def cancel(self, reason: str) -> None:
        """From here on no token of it is published. Too late when it has an outcome; too early before the claim, which
        looks for the stored wish itself."""
        self._conclude(Cancelled(reason))

    def wished(self, data: bytes) -> None:
        """A wish names its task by its subject; what cannot be read of its payload is not needed to obey it."""
        try:
            reason = CANCEL_DECODER.decode(data).reason
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            reason = "client"
        self.cancel(reason)

    def preempt(self, request: PreemptRequest) -> None:
        """Make way at once if a later attempt can say the same again, else run on: the scheduler only asked."""
        if not self._stream.opened and self._core.phase in (Phase.CLAIMING, Phase.CALLING):
            self._preemption, self._preempt_asked_ms = request, now_ms()
            return
        refusal = self._core.refuses_preemption(
            request.run_seq, tokens_sent=max(self._core.tokens_out, self._stream.sent_before)
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
        self.preempt(PreemptRequest(task_id=self.task_id, run_seq=self._core.seq))

    def lose(self, reason: str) -> None:
        """The engine is gone, or must go."""
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
        await self.check_cancel()

    async def check_cancel(self) -> None:
        """Obey a wish that was stored while nobody listened."""
        if self._core.phase in (Phase.CLAIMING, Phase.DROPPED, Phase.ENDED):
            return
        message = await self._stored_wish()
        if message is not None:
            self._wish_stored_ms = message.stored_ms
            self.wished(message.data)

    async def _stored_wish(self) -> Message | None:
        """None also when the bus does not tell."""
        for _ in range(READ_TRIES_MAX):
            try:
                message = await self._node.runs.cancel_wish(self.task_id)
            except BusError as error:
                log.debug("reading the cancel wish of %s: %s", self.task_id, error)
                if not self._node.bus.connected:
                    break
            else:
                return None if message is None or message.deleted else message
        return None

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
            seq = await self._node.runs.swap(record, self._core.seq)
        except (IllegalMove, NotStorable) as error:
            log.warning("task %s cannot be claimed: %s", self.task_id, error)
            seq = None
        if seq is None:
            await self._acknowledge()
            return False
        self._core.claimed(record, seq)
        await self._node.audit.record(audit_of(record, seq, self._node.node_id))
        return True

    async def _acknowledge(self) -> None:
        """A placement that comes again loses its compare-and-set, so a lost ack costs nothing but that."""
        try:
            await self._delivery.ack()
        except BusError as error:
            log.debug("the placement of %s stays unacknowledged: %s", self.task_id, error)

    async def _generate(self) -> None:
        run = self._core.run
        request = run.request
        if request is None:
            self._fail(ErrorCode.INTERNAL, "the run record carries no request")
            return
        if request.sampler_profile_version != self._facts.sampler_profile_version:
            self._fail(
                ErrorCode.INVALID_PARAMS,
                f"sampler profile {request.sampler_profile_version} is not the pool's, which is "
                f"{self._facts.sampler_profile_version}",
            )
            return
        try:
            request = await whole(self._node.bus, request)
        except PayloadUnusable as error:
            self._fail(error.code, str(error), error.detail)
            return
        except BusError as error:
            self.lose(f"its prompt cannot be read: {error}")
            return
        if request.messages is not None and CHAT_TEMPLATE not in self._facts.features:
            self._fail(
                ErrorCode.INVALID_PARAMS,
                f"the engine of pool {self._facts.pool_id} has no chat template for this model; send a prompt",
            )
            return
        if request.tools and TOOLS not in self._facts.features:
            self._fail(
                ErrorCode.INVALID_PARAMS,
                f"the chat template of pool {self._facts.pool_id}'s model takes no tools; send none",
            )
            return
        try:
            request = await self._resumed(await self._rendered(request))
        except RequestRejected as error:
            self._fail(ErrorCode.INVALID_PARAMS, str(error))
            return
        except (BacklogUnread, EngineFailure) as error:
            self.lose(str(error))
            return
        permitted = within(request, run.session, self._core.first)
        if permitted is None:
            self._conclude(Finished(BUDGET, self._core.tokens_in, 0))
            return
        self._capped = permitted is not request
        request = permitted
        if self._preemption is not None:
            self.preempt(self._preemption)
        call = GenerationCall(
            request=msgspec.structs.replace(request, prompt=None) if request.tools else request,
            seed=seed_of(self.task_id, request.seed),
            slot=self.slot,
            correlation_id=run.correlation_id if is_correlation_id(run.correlation_id) else "-",
            first=self._core.first if self._by_input else 0,
        )
        self._clock.start(self._host.timeouts())
        self._turn = self._host.join_line("" if self._by_input else request.prompt or "")
        for number in range(BUSY_TRIES_MAX):
            if not await self._may_ask():
                return
            self._concluded.clear()
            self._busy = False
            self._submitted = True
            says = f"asks {self._facts.replica_id} for {request.max_tokens} tokens, attempt {run.attempt}"
            self._voice.tell("engine.submit", says, seed=call.seed)
            self._clock.submitted()
            self._generation = self._host.submit(call, self)
            await self._concluded.wait()
            if not self._busy or self._core.outcome is not None:
                return
            await asyncio.sleep(BUSY_RETRY_S * 2**number)
        self.lose("the engine stays busy although a slot should be free")

    async def _may_ask(self) -> bool:
        """Not before the turn of its prompt. A node that slept since its claim asks no engine before it has read again
        whose the task is."""
        if self._turn is not None and not self._turn.has_come and self._core.outcome is None:
            self._concluded.clear()
            await first_of(self._turn.wait(), self._concluded.wait())
        if fence_clock() >= self._node.fence.until and self._core.outcome is None:
            self._concluded.clear()
            await first_of(self._node.outlet.wait_open(), self._concluded.wait())
        return self._core.outcome is None

    async def _rendered(self, request: TaskRequest) -> TaskRequest:
        """With the engine's own prompt instead of messages: a later attempt goes on behind it as behind any other.
        Beside tools the messages stay, for the engine is asked as a chat. Raises EngineFailure."""
        if request.messages is None:
            return request
        prompt = await self._host.render_chat(request.messages, request.tools)
        return msgspec.structs.replace(request, prompt=prompt, messages=request.messages if request.tools else None)

    async def _resumed(self, request: TaskRequest) -> TaskRequest:
        """What this attempt asks of the engine; concludes where nothing is to be asked. Raises BacklogUnread,
        EngineFailure."""
        decided = await self._stream.open(request)
        match decided:
            case Refuse():
                self._fail(ErrorCode.WORKER_RESET, decided.message, decided.detail)
            case Anew():
                self._core.starts_at(decided.first, decided.first)
            case GoOn() | Complete() if self._by_input:
                self._core.starts_at(self._stream.sent_before)
                self._core.tokens_in = self._read_before = tokens_read(self._stream.texts_before)
            case GoOn() | Complete():
                self._goes_on = True
                restarted_at = decided.restarted_at if isinstance(decided, Complete) else None
                self._core.starts_at(self._stream.sent_before, restarted_at)
                self._core.tokens_in = await self._host.prompt_tokens(request.prompt or "")
        if isinstance(decided, Complete):
            self._conclude(Finished("stop" if self._by_input else "length", self._core.tokens_in, 0))
        return decided.request if isinstance(decided, GoOn) else request

    def on_begin(self) -> None:
        if self._core.outcome is not None:
            return
        self._core.begun()
        self._stream.begin(self._core.tokens_in)
        self._facts.metrics.started(self._core.run.priority)

    def on_prompt(self, tokens_in: int) -> None:
        self._clock.alive()
        if self._by_input:
            self._core.tokens_in = self._read_before + tokens_in
            return
        if self._goes_on:
            return
        self._core.tokens_in = tokens_in
        request = self._core.run.request
        if request is not None and tokens_in > request.ctx:
            self._fail(ErrorCode.INVALID_PARAMS, f"the prompt has {tokens_in} tokens, the task's ctx is {request.ctx}")

    def on_tokens(self, texts: Sequence[str], more: Sequence[bytes] = ()) -> None:
        core = self._core
        if core.outcome is not None:
            return
        if self._timed and self._clock.is_spent:
            self._out_of_time()
            return
        first = core.tokens(len(texts))
        self._clock.token()
        if first == core.first:
            self._on_first_token()
        try:
            self._stream.tokens(first, texts, more)
        except PrefixMismatch as error:
            self._differs(error)

    def on_finish(self, finish: Finish) -> None:
        if self._core.outcome is not None:
            return
        if not (self._goes_on or self._by_input):
            self._core.tokens_in = finish.tokens_in
        try:
            self._stream.finish(finish.tokens_out)
        except PrefixMismatch as error:
            self._differs(error)
            return
        reason = BUDGET if self._capped and finish.reason == "length" else finish.reason
        self._conclude(Finished(reason, self._core.tokens_in, finish.tokens_out, stop_sequence=finish.stop_sequence))

    def on_failure(self, failure: EngineFailure) -> None:
        if isinstance(failure, ContextFull) and self._goes_on:
            self._conclude(Finished("length", self._core.tokens_in, 0))
        elif isinstance(failure, RequestRejected):
            self._fail(ErrorCode.INVALID_PARAMS, str(failure))
        elif isinstance(failure, EngineBusy) and self._core.phase is Phase.CALLING:
            self._busy = True
            self._concluded.set()
        else:
            self._conclude(Lost(str(failure), again="engine_failed"))

    def _leave_line(self) -> None:
        if self._turn is not None:
            self._turn.leave()

    def _on_first_token(self) -> None:
        self._leave_line()
        terms = self._core.run.session
        if terms is not None:
            if terms.time_max_ms is not None:
                self._timed = True
                self._clock.decodes_for(terms.time_max_ms, self._out_of_time)
            self._end.warmed(terms)
        self._facts.pace.first_token(self._clock.first_token_s)
        if not self._stream.sent_before:
            self._first_token_ms = max(0, now_ms() - self._core.run.admitted_ms)
            self._facts.metrics.first_token(self._core.run.priority, self._first_token_ms)

    def _out_of_time(self) -> None:
        """The session's budget of decode time is used up by this task."""
        self._conclude(Finished(BUDGET, self._core.tokens_in, self._core.tokens_out, cut=True))

    def _differs(self, error: PrefixMismatch) -> None:
        self._fail(ErrorCode.WORKER_RESET, f"the stream cannot be continued: {error}", ResetDetail.TOKENS_DIFFER)

    def _fail(self, code: ErrorCode, message: str, detail: str | None = None) -> None:
        facts = self._facts
        self._conclude(Failed(error_body(code, message, engine=facts.engine, pool_id=facts.pool_id, detail=detail)))

    def _conclude(self, outcome: Outcome) -> bool:
        if not self._core.conclude(outcome):
            return False
        if _stops_the_engine(outcome) and self._generation is not None:
            self._generation.abort()
        self._concluded.set()
        return True

    async def _finish(self) -> None:
        assert self._core.outcome is not None
        if self._submitted and _stops_the_engine(self._core.outcome):
            await self._host.free_slot(self.slot, self._host.timeouts().idle_ms if self._by_input else 0)
        self._leave_line()
        outcome = self._core.outcome
        if isinstance(outcome, Lost):
            await self._leave(outcome)
            return
        cancel_ms = await self._cancel_took_ms(now_ms()) if isinstance(outcome, Cancelled) else None
        measured = Measured(self._clock.decode_s, self._first_token_ms, cancel_ms, self._preempt_asked_ms)
        await self._end.settle(outcome, measured)

    async def _leave(self, outcome: Lost) -> None:
        says = f"is lost by replica {self._facts.replica_id}: {outcome.reason}"
        self._voice.tell("task.lost", says, level=logging.WARNING)
        try:
            if self._core.gives_back() and self._host.engine_lives:
                await self._end.give_back(outcome)
            else:
                self._core.dropped()
        finally:
            self._stream.lost(asyncio.get_running_loop().time())

    async def _cancel_took_ms(self, free_ms: int) -> int | None:
        """From the stored wish until the slot was free. It was stored by the clock of the bus, which may be ahead."""
        if not self._wish_stored_ms:
            message = await self._stored_wish()
            self._wish_stored_ms = message.stored_ms if message is not None else 0
        return max(0, free_ms - self._wish_stored_ms) if self._wish_stored_ms else None

    async def audit(self) -> None:
        """Record the end, if there was one; the slot is free already."""
        await self._end.audit()


def _stops_the_engine(outcome: Outcome) -> bool:
    return outcome.cut if isinstance(outcome, Finished) else True
