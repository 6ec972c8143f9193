"""The engine call of one attempt: its turn, its tries while the engine is busy, its limits, and what comes back.

The callbacks run in the engine's socket reader: they encode, publish and keep, and do nothing else.
"""

import asyncio
from collections.abc import Callable, Sequence
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
    TokenSink,
)
from llorch_poold.attempt_clock import AttemptClock
from llorch_poold.attempt_request import BUDGET, AttemptRequest, Conclude, failed
from llorch_poold.core.budget import time_left_ms
from llorch_poold.core.prefix import PrefixMismatch
from llorch_poold.core.seed import seed_of
from llorch_poold.core.task import Finished, Lost, Outcome, Phase, TaskCore
from llorch_poold.node_context import NodeContext, ReplicaFacts
from llorch_poold.outlet import fence_clock
from llorch_poold.prefill_line import Turn
from llorch_poold.task_voice import TaskVoice
from llorch_poold.token_stream import TokenStream
from llorch_shared.errors import ErrorCode, ResetDetail
from llorch_shared.identifiers import is_correlation_id
from llorch_shared.lifecycle import first_of
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.spec import TimeoutSpec
from llorch_shared.wire.task import TaskRequest

BUSY_TRIES_MAX: Final = 5
BUSY_RETRY_S: Final = 0.05


class SlotHolder(Protocol):
    """An engine, asked for the work of one slot."""

    def submit(self, call: GenerationCall, sink: TokenSink) -> Generation: ...

    def join_line(self, prompt: str) -> Turn | None:
        """Where the engine reads one long prompt at a time; None when there is no engine."""

    async def free_slot(self, slot: int, patience_ms: int = 0) -> None:
        """Returns when the engine itself says the slot is free; kills the engine when it does not let go in its usual
        time, or in `patience_ms` if that is longer."""

    def timeouts(self) -> TimeoutSpec: ...


class EngineCall:
    """`make`, then `release`; `concluded` whenever the attempt has an outcome, `close` in any case. `speaks` is
    called at the first token."""

    def __init__(
        self,
        node: NodeContext,
        host: SlotHolder,
        facts: ReplicaFacts,
        *,
        core: TaskCore,
        stream: TokenStream,
        voice: TaskVoice,
        wanted: AttemptRequest,
        slot: int,
        conclude: Conclude,
        speaks: Callable[[], None],
    ) -> None:
        self._node: Final = node
        self._host: Final = host
        self._facts: Final = facts
        self._core: Final = core
        self._stream: Final = stream
        self._voice: Final = voice
        self._wanted: Final = wanted
        self._slot: Final = slot
        self._conclude: Final = conclude
        self._speaks: Final = speaks
        self._clock: Final = AttemptClock(lambda reason: self._fail(ErrorCode.DECODE_TIMEOUT, reason))
        self._answered: Final = asyncio.Event()
        self._generation: Generation | None = None
        self._turn: Turn | None = None
        self._busy = False
        self._submitted = False
        self._timed = False
        """Its session has a budget of decode time."""
        self.first_token_ms: int | None = None
        """From admission, if this attempt sent the first token."""

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return self._clock.decode_s

    async def make(self, request: TaskRequest) -> None:
        """Returns when the attempt has an outcome."""
        run, by_input = self._core.run, self._wanted.by_input
        call = GenerationCall(
            request=msgspec.structs.replace(request, prompt=None) if request.tools else request,
            seed=seed_of(run.task_id, request.seed),
            slot=self._slot,
            correlation_id=run.correlation_id if is_correlation_id(run.correlation_id) else "-",
            first=self._core.first if by_input else 0,
        )
        self._clock.start(self._host.timeouts())
        self._turn = self._host.join_line("" if by_input else request.prompt or "")
        for number in range(BUSY_TRIES_MAX):
            if not await self._may_ask():
                return
            self._answered.clear()
            self._busy = False
            self._submitted = True
            self._clock.submitted()
            self._generation = self._host.submit(call, self)
            says = f"asks {self._facts.replica_id} for {request.max_tokens} tokens, attempt {run.attempt}"
            self._voice.tell("engine.submit", says, seed=call.seed)
            await self._answered.wait()
            if not self._busy or self._core.outcome is not None:
                return
            await asyncio.sleep(BUSY_RETRY_S * 2**number)
        self._conclude(Lost("the engine stays busy although a slot should be free"))

    async def _may_ask(self) -> bool:
        """Not before the turn of its prompt. A node that slept since its claim asks no engine before it has read again
        whose the task is."""
        if self._turn is not None and not self._turn.has_come and self._core.outcome is None:
            self._answered.clear()
            await first_of(self._turn.wait(), self._answered.wait())
        if fence_clock() >= self._node.fence.until and self._core.outcome is None:
            self._answered.clear()
            await first_of(self._node.outlet.wait_open(), self._answered.wait())
        return self._core.outcome is None

    def concluded(self, outcome: Outcome) -> None:
        if _stops_the_engine(outcome) and self._generation is not None:
            self._generation.abort()
        self._answered.set()

    async def release(self, outcome: Outcome) -> None:
        """Returns when the slot is free."""
        if self._submitted and _stops_the_engine(outcome):
            await self._host.free_slot(self._slot, self._host.timeouts().idle_ms if self._wanted.by_input else 0)
        self._leave_line()

    def close(self) -> None:
        self._clock.stop()
        if self._generation is not None:
            self._generation.abort()
        self._leave_line()

    def on_begin(self) -> None:
        if self._core.outcome is not None:
            return
        self._core.begun()
        self._stream.begin(self._core.tokens_in)
        self._facts.metrics.started(self._core.run.priority)

    def on_prompt(self, tokens_in: int) -> None:
        self._clock.alive()
        if self._wanted.by_input:
            self._core.tokens_in = self._wanted.read_before + tokens_in
            return
        if self._wanted.goes_on:
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
        if not (self._wanted.goes_on or self._wanted.by_input):
            self._core.tokens_in = finish.tokens_in
        try:
            self._stream.finish(finish.tokens_out)
        except PrefixMismatch as error:
            self._differs(error)
            return
        reason = BUDGET if self._wanted.capped and finish.reason == "length" else finish.reason
        self._conclude(Finished(reason, self._core.tokens_in, finish.tokens_out, stop_sequence=finish.stop_sequence))

    def on_failure(self, failure: EngineFailure) -> None:
        if isinstance(failure, ContextFull) and self._wanted.goes_on:
            self._conclude(Finished("length", self._core.tokens_in, 0))
        elif isinstance(failure, RequestRejected):
            self._fail(ErrorCode.INVALID_PARAMS, str(failure))
        elif isinstance(failure, EngineBusy) and self._core.phase is Phase.CALLING:
            self._busy = True
            self._answered.set()
        else:
            self._conclude(Lost(str(failure), again="engine_failed"))

    def _on_first_token(self) -> None:
        self._leave_line()
        terms = self._core.run.session
        if terms is not None:
            limit_ms = time_left_ms(terms, self._core.run.decode_ms)
            if limit_ms is not None:
                self._timed = True
                self._clock.decodes_for(limit_ms, self._out_of_time)
        self._speaks()
        self._facts.pace.first_token(self._clock.first_token_s)
        if not self._stream.backlog.count:
            self.first_token_ms = max(0, now_ms() - self._core.run.admitted_ms)
            self._facts.metrics.first_token(self._core.run.priority, self.first_token_ms)

    def _leave_line(self) -> None:
        if self._turn is not None:
            self._turn.leave()

    def _out_of_time(self) -> None:
        """The session's budget of decode time is used up by this task."""
        self._conclude(Finished(BUDGET, self._core.tokens_in, self._core.tokens_out, cut=True))

    def _differs(self, error: PrefixMismatch) -> None:
        self._fail(ErrorCode.WORKER_RESET, f"the stream cannot be continued: {error}", ResetDetail.TOKENS_DIFFER)

    def _fail(self, code: ErrorCode, message: str, detail: str | None = None) -> None:
        self._conclude(failed(self._facts, code, message, detail))


def _stops_the_engine(outcome: Outcome) -> bool:
    return outcome.cut if isinstance(outcome, Finished) else True
