"""One attempt of one task, from its placement to its terminal frame.

The order is the promise: claim by compare-and-set, only then call the engine; close the call and see the slot free,
then store the final record, only then publish the terminal frame. A node that lost a compare-and-set says nothing
more. Token callbacks run in the engine's socket reader: they encode, publish and keep, and do nothing else.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from llorch_poold.adapters.port import (
    EngineBusy,
    EngineFailure,
    Finish,
    Generation,
    GenerationCall,
    RequestRejected,
)
from llorch_poold.core.audit import audit_of
from llorch_poold.core.prefix import PrefixMismatch
from llorch_poold.core.seed import seed_of
from llorch_poold.core.task import (
    Cancelled,
    Failed,
    Finished,
    Lost,
    Outcome,
    Phase,
    TaskCore,
    claim_record,
    error_body,
)
from llorch_poold.node_context import NodeContext, ReplicaFacts
from llorch_poold.run_store import NotStorable
from llorch_poold.token_stream import BacklogUnread, CannotContinue, TokenStream
from llorch_shared.bus.port import BusError, Delivery
from llorch_shared.errors import ErrorCode
from llorch_shared.identifiers import is_correlation_id
from llorch_shared.logs import narrate
from llorch_shared.states import IllegalMove
from llorch_shared.wire.run import CANCEL_DECODER, Placement
from llorch_shared.wire.spec import TimeoutSpec

log = logging.getLogger(__name__)

BUSY_TRIES_MAX: Final = 5
BUSY_RETRY_S: Final = 0.05
READ_TRIES_MAX: Final = 5


class Host(Protocol):
    """The replica that runs a task."""

    def submit(self, call: GenerationCall, run: "TaskRun") -> Generation: ...

    async def free_slot(self, slot: int) -> None:
        """Returns when the engine itself says the slot is free; kills the engine when it does not let go."""

    def timeouts(self) -> TimeoutSpec: ...


class TaskRun:
    """`run` is its whole life. `cancel` and `lose` may come at any time."""

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
        self._loop: Final = asyncio.get_running_loop()
        self._concluded: Final = asyncio.Event()
        self._generation: Generation | None = None
        self._busy = False
        self._timers: list[asyncio.TimerHandle] = []
        self._first_token_at = 0.0
        self._last_token_at = 0.0
        self._first_token_ms: int | None = None
        self._cancel_requested_ms = 0
        self._submitted = False
        self.slot: Final = slot
        self.task_id: Final = placement.run.task_id

    @property
    def phase(self) -> Phase:
        return self._core.phase

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
            for timer in self._timers:
                timer.cancel()
            await asyncio.gather(acknowledged, return_exceptions=True)

    def cancel(self, reason: str, requested_ms: int = 0) -> None:
        """From here on no token of it is published. Too late when it has an outcome; too early before the claim, which
        looks for the stored wish itself."""
        self._cancel_requested_ms = requested_ms
        self._conclude(Cancelled(reason))

    def wished(self, data: bytes) -> None:
        """A wish names its task by its subject; what cannot be read of its payload is not needed to obey it."""
        try:
            wish = CANCEL_DECODER.decode(data)
        except msgspec.DecodeError:
            self.cancel("client")
        else:
            self.cancel(wish.reason, wish.requested_ms)

    def lose(self, reason: str) -> None:
        """The engine is gone, or must go."""
        self._conclude(Lost(reason))

    async def check_cancel(self) -> None:
        """Obey a wish that was stored while nobody listened."""
        if self._core.phase in (Phase.CLAIMING, Phase.DROPPED, Phase.ENDED):
            return
        for _ in range(READ_TRIES_MAX):
            try:
                message = await self._node.runs.cancel_wish(self.task_id)
            except BusError as error:
                log.debug("reading the cancel wish of %s: %s", self.task_id, error)
                if not self._node.bus.connected:
                    return
                continue
            if message is not None and not message.deleted:
                self.wished(message.data)
            return

    async def _claim(self) -> bool:
        facts = self._facts
        run = self._core.run
        try:
            record = claim_record(
                run,
                node_id=self._node.node_id,
                replica_id=facts.replica_id,
                incarnation=facts.incarnation,
                now_ms=_now_ms(),
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
            await self._stream.open()
        except CannotContinue as error:
            self._fail(ErrorCode.WORKER_RESET, str(error))
            return
        except BacklogUnread as error:
            self.lose(str(error))
            return
        call = GenerationCall(
            request=request,
            seed=seed_of(self.task_id, request.seed),
            slot=self.slot,
            correlation_id=run.correlation_id if is_correlation_id(run.correlation_id) else "-",
        )
        self._arm_timers()
        for number in range(BUSY_TRIES_MAX):
            if self._core.outcome is not None:
                return
            self._concluded.clear()
            self._busy = False
            self._submitted = True
            narrate(
                log,
                f"{self._facts.replica_id} asks its engine for {request.max_tokens} tokens, attempt {run.attempt}",
                actor="poold",
                action="engine.submit",
                target=self._facts.replica_id,
                seed=call.seed,
                **self._ids(),
            )
            self._generation = self._host.submit(call, self)
            await self._concluded.wait()
            if not self._busy or self._core.outcome is not None:
                return
            await asyncio.sleep(BUSY_RETRY_S * 2**number)
        self.lose("the engine stays busy although a slot should be free")

    def on_begin(self) -> None:
        if self._core.outcome is not None:
            return
        self._core.begun()
        self._stream.begin(self._core.tokens_in)
        self._facts.metrics.started(self._core.run.priority)

    def on_prompt(self, tokens_in: int) -> None:
        self._core.tokens_in = tokens_in
        request = self._core.run.request
        if request is not None and tokens_in > request.ctx:
            self._fail(ErrorCode.INVALID_PARAMS, f"the prompt has {tokens_in} tokens, the task's ctx is {request.ctx}")

    def on_tokens(self, texts: Sequence[str]) -> None:
        core = self._core
        if core.outcome is not None:
            return
        first = core.tokens(len(texts))
        self._last_token_at = self._loop.time()
        if first == 0:
            self._on_first_token()
        try:
            self._stream.tokens(first, texts)
        except PrefixMismatch as error:
            self._fail(ErrorCode.WORKER_RESET, f"the stream cannot be continued: {error}")

    def on_finish(self, finish: Finish) -> None:
        if self._core.outcome is not None:
            return
        self._core.tokens_in = finish.tokens_in
        try:
            self._stream.finish(finish.tokens_out)
        except PrefixMismatch as error:
            self._fail(ErrorCode.WORKER_RESET, f"the stream cannot be continued: {error}")
            return
        self._conclude(Finished(finish.reason, finish.tokens_in, finish.tokens_out))

    def on_failure(self, failure: EngineFailure) -> None:
        if isinstance(failure, RequestRejected):
            self._fail(ErrorCode.INVALID_PARAMS, str(failure))
        elif isinstance(failure, EngineBusy) and self._core.phase is Phase.CALLING:
            self._busy = True
            self._concluded.set()
        else:
            self.lose(str(failure))

    def _on_first_token(self) -> None:
        self._first_token_at = self._last_token_at
        self._first_token_ms = max(0, _now_ms() - self._core.run.admitted_ms)
        self._facts.metrics.first_token(self._core.run.priority, self._first_token_ms)

    def _arm_timers(self) -> None:
        timeouts = self._host.timeouts()
        self._last_token_at = self._loop.time()
        self._timers = [
            self._loop.call_later(
                timeouts.wall_ms / 1000,
                lambda: self._fail(ErrorCode.DECODE_TIMEOUT, f"the task held its slot for {timeouts.wall_ms} ms"),
            ),
            self._loop.call_later(timeouts.idle_ms / 1000, self._check_idle, timeouts.idle_ms),
        ]

    def _check_idle(self, idle_ms: int) -> None:
        silent_s = self._loop.time() - self._last_token_at
        left_s = idle_ms / 1000 - silent_s
        if left_s <= 0.001:
            self._fail(ErrorCode.DECODE_TIMEOUT, f"the engine was silent for {idle_ms} ms")
        else:
            self._timers[1] = self._loop.call_later(left_s, self._check_idle, idle_ms)

    def _fail(self, code: ErrorCode, message: str) -> None:
        facts = self._facts
        self._conclude(Failed(error_body(code, message, engine=facts.engine, pool_id=facts.pool_id)))

    def _conclude(self, outcome: Outcome) -> None:
        if not self._core.conclude(outcome):
            return
        if not isinstance(outcome, Finished) and self._generation is not None:
            self._generation.abort()
        self._concluded.set()

    async def _finish(self) -> None:
        outcome = self._core.outcome
        assert outcome is not None
        if self._submitted and not isinstance(outcome, Finished):
            await self._host.free_slot(self.slot)
        if isinstance(outcome, Cancelled) and self._cancel_requested_ms:
            self._facts.metrics.cancel_ms.observe(max(0, _now_ms() - self._cancel_requested_ms))
        if isinstance(outcome, Lost):
            self._core.dropped()
            narrate(
                log,
                f"task {self.task_id} is lost by replica {self._facts.replica_id}: {outcome.reason}",
                actor="poold",
                action="task.lost",
                target=self._facts.replica_id,
                level=logging.WARNING,
                **self._ids(),
            )
            return
        self._core.released()
        self._core.sent_before = self._stream.sent_before
        decode_ms = round((self._last_token_at - self._first_token_at) * 1000) if self._first_token_at else 0
        record = self._core.final_record(now_ms=_now_ms(), decode_ms=decode_ms)
        seq = await self._node.runs.swap(record, self._core.seq)
        if seq is None:
            self._core.dropped()
            self._stream.forget()
            log.warning("task %s was taken over by another attempt; this one says nothing more", self.task_id)
            return
        self._core.ended()
        self._core.run, self._core.seq = record, seq
        self._stream.end(record, latency_first_token_ms=self._first_token_ms, now=self._loop.time())
        self._count(outcome, decode_ms)

    def _count(self, outcome: Outcome, decode_ms: int) -> None:
        run, metrics = self._core.run, self._facts.metrics
        metrics.tokens_in.inc(run.tokens_in)
        metrics.tokens_out.inc(run.tokens_out)
        if run.tokens_out:
            metrics.decoded(run.priority, decode_ms)
        if isinstance(outcome, Cancelled):
            metrics.canceled(outcome.reason)
        narrate(
            log,
            f"task {self.task_id} is {run.state}: {run.tokens_out} tokens in {decode_ms} ms",
            actor="poold",
            action=f"task.{run.state}",
            target=self._facts.replica_id,
            tokens_in=run.tokens_in,
            tokens_out=run.tokens_out,
            decode_time_ms=decode_ms,
            error_kind=run.error.code if run.error is not None else "",
            **self._ids(),
        )

    async def audit(self) -> None:
        """Record the end, if there was one; the slot is free already."""
        if self._core.phase is Phase.ENDED:
            await self._node.audit.record(audit_of(self._core.run, self._core.seq, self._node.node_id))

    def _ids(self) -> dict[str, Any]:
        facts, run = self._facts, self._core.run
        return {
            "task_id": self.task_id,
            "job_id": self.task_id,
            "session_id": run.request.session_id if run.request is not None else "",
            "correlation_id": run.correlation_id,
            "pool_id": facts.pool_id,
            "replica_id": facts.replica_id,
            "engine": facts.engine,
            "engine_version": facts.engine_version,
        }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
