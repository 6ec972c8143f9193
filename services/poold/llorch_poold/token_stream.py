"""The frames of one attempt: encoded once, published and kept in the same breath, never sent twice.

A later attempt first announces itself, then learns what readers already have, and goes on as `core.failover` decides.
What they have is not sent again; what the token log has lost of it is (ARCHITECTURE, invariant 4).
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Final

import msgspec

from llorch_poold.core.budget import left_after
from llorch_poold.core.failover import Anew, Begin, Complete, GoOn, Plan, Refuse, Repeat, plan
from llorch_poold.core.prefix import PrefixGuard, Sent, sent_before
from llorch_poold.core.retention import KeptFrames
from llorch_poold.core.seed import seed_of
from llorch_poold.node_context import NodeContext, ReplicaFacts
from llorch_shared import subjects
from llorch_shared.bus.port import BusError
from llorch_shared.decode_times import decode_times
from llorch_shared.streaming.endings import terminal_frame
from llorch_shared.token_mark import holds
from llorch_shared.wire.frames import (
    MESSAGE_BYTES_MAX,
    Metrics,
    Started,
    encode_metrics,
    encode_started,
    encode_token,
)
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.session import SessionRemaining
from llorch_shared.wire.task import TaskRequest

log = logging.getLogger(__name__)

READ_TRIES_MAX: Final = 5
READ_RETRY_FIRST_S: Final = 0.01
READ_RETRY_FACTOR: Final = 3
_NO_FACTS: Final = Metrics()


class BacklogUnread(Exception):
    """The bus does not tell what readers already have."""


class TokenStream:
    """`tokens` is the hot path: it runs in the engine's socket reader, for every read."""

    def __init__(self, node: NodeContext, facts: ReplicaFacts, run: RunRecord) -> None:
        self._node: Final = node
        self._facts: Final = facts
        self._run: Final = run
        self._attempt: Final = run.attempt
        self._subject: Final = subjects.tokens(run.lane, run.task_id)
        self._guard: PrefixGuard | None = None
        self._sent = Sent(started=False, tokens={})
        self._known = False
        """What was sent is certainly all that readers can have."""
        self._in_log = 0
        self._looked_back = run.attempt == 1
        self._decoded_ms: dict[int, int] = {}
        self._kept: KeptFrames | None = None

    @cached_property
    def _announcement(self) -> bytes:
        """Of a later attempt."""
        run = self._run
        return encode_metrics(
            Metrics(
                attempt=run.attempt,
                kv_migrated=False,
                kv_warmth=False,
                on_time_probability=run.on_time_probability,
                preempted=False if run.preemptions else None,
            )
        )

    @property
    def sent_before(self) -> int:
        """Tokens that readers have from earlier attempts. Known after `look_back`."""
        return self._sent.count

    @property
    def texts_before(self) -> Iterable[str]:
        """The texts of these."""
        return self._sent.tokens.values()

    @property
    def opened(self) -> bool:
        """Whether tokens may be published."""
        return self._kept is not None

    def next_index(self, taken: int) -> int:
        """The next token this stream will carry, once this attempt has produced `taken`."""
        return self._sent.next_index(taken)

    async def look_back(self) -> None:
        """Learn what was sent before, once. Raises BacklogUnread."""
        if not self._looked_back:
            kept = self._node.retention.get(self._run.task_id)
            own = kept is not None and kept.attempt == self._attempt - 1 and not kept.dropped
            log_has, holds_all = await self._backlog()
            self._sent = sent_before([*(kept.parts if kept is not None and own else ()), *log_has])
            self._in_log = len(sent_before(log_has).tokens)
            self._known = own or holds_all
            self._looked_back = True

    @property
    def lost_ms(self) -> int:
        """What the attempts decoded that are not in the record's time, after a look back."""
        return sum(self._decoded_ms.get(attempt, 0) for attempt in self._run.lost)

    async def open(self, request: TaskRequest) -> Plan:
        """Look back, decide, and start keeping. Raises BacklogUnread."""
        decided: Plan = Begin()
        if self._attempt > 1:
            await self.look_back()
            same_class = self._run.determinism_class in ("", self._facts.determinism_class)
            decided = plan(request, self._sent, known=self._known, same_class=same_class)
        if isinstance(decided, Refuse):
            return decided
        self._keep_what_was_sent()
        if isinstance(decided, Repeat | Complete | GoOn | Anew) and self._in_log < len(self._sent.tokens):
            self._publish_again()
        if isinstance(decided, Repeat) and self._sent.tokens:
            self._guard = PrefixGuard(self._sent.tokens)
            self._publish(self._going_on(tokens_out=self._sent.count))
        elif isinstance(decided, GoOn):
            self._publish(self._going_on(resume_from=decided.first))
        elif isinstance(decided, Anew):
            self._publish(self._going_on(restarted_at=decided.first))
        return decided

    def _keep_what_was_sent(self) -> None:
        """As this attempt would have sent it: the earlier attempts' copies are theirs."""
        run, sent = self._run, self._sent
        self._kept = self._node.retention.open(run.task_id, self._subject, self._attempt)
        if sent.started:
            self._kept.add(encode_started(self._started(0)))
        if self._attempt > 1:
            self._kept.add(self._announcement)
        for index, text in sorted(sent.tokens.items()):
            if index == sent.restarted_at:
                self._kept.add(self._going_on(restarted_at=index))
            self._kept.add(encode_token(self._attempt, index, text, sent.more.get(index, b"")))

    def _publish_again(self) -> None:
        """The log has lost some of what this node has: readers that join late must find it."""
        if self._kept is not None:
            for data in self._kept.messages():
                self._node.outlet.publish(self._subject, data)

    def _going_on(
        self, *, resume_from: int | None = None, restarted_at: int | None = None, tokens_out: int | None = None
    ) -> bytes:
        """Where the stream stands: who comes from another gateway sees by it that nothing is missing."""
        return encode_metrics(
            Metrics(
                attempt=self._attempt,
                kv_migrated=False,
                kv_warmth=False,
                resume_from=resume_from,
                restarted_at=restarted_at,
                tokens_out=tokens_out,
            )
        )

    async def _backlog(self) -> tuple[Sequence[bytes], bool]:
        """What the token log has of this stream up to our own announcement, and whether that is all that was ever
        stored of it. Readers take nothing of an earlier attempt that comes after the announcement, so a node that was
        asleep when it lost the task cannot add to what is read here. The server takes a moment to store it; one that
        is sent again is the same to readers."""
        delay = READ_RETRY_FIRST_S
        for _ in range(READ_TRIES_MAX):
            await self._node.outlet.wait_open()
            self._node.outlet.publish(self._subject, self._announcement)
            try:
                messages = await self._node.backlogs.read(self._subject)
                stored = [message.data for message in messages]
                log_state = await self._node.token_log.state()
            except BusError as error:
                log.info("reading the earlier tokens of %s: %s", self._run.task_id, error)
            else:
                if self._announcement in stored:
                    self._decoded_ms = decode_times(messages) if self._run.lost else {}
                    return stored, holds(log_state, self._run.token_log)
            await asyncio.sleep(delay)
            delay *= READ_RETRY_FACTOR
        raise BacklogUnread("the bus does not tell which tokens were already sent")

    def begin(self, tokens_in: int) -> None:
        if not (self._sent.started or self._sent.tokens):
            self._publish(encode_started(self._started(tokens_in)))
            self._publish_facts()

    def tokens(self, first: int, texts: Sequence[str], more: Sequence[bytes] = ()) -> None:
        """Tokens `first`, `first + 1`, …: all of one read in one message. `more`: as `TokenSink.on_tokens` has it.
        Raises PrefixMismatch."""
        attempt = self._attempt
        if self._guard is not None:
            self._guarded(self._guard, first, texts, more)
        elif more:
            each = zip(texts, more, strict=True)
            self._publish_tokens([encode_token(attempt, index, *token) for index, token in enumerate(each, first)])
        elif len(texts) == 1:
            self._publish(encode_token(attempt, first, texts[0]))
        else:
            self._publish_tokens([encode_token(attempt, index, text) for index, text in enumerate(texts, first)])

    def finish(self, count: int) -> None:
        """The attempt ended after `count` tokens. Raises PrefixMismatch when readers have more."""
        if self._guard is not None:
            self._guard.end(count)

    def end(self, final: RunRecord, *, latency_first_token_ms: int | None, now: float) -> None:
        """The terminal frame of a stored final record, and before it what its session has left."""
        if (left := left_after(final)) is not None and final.error is None:
            self._publish(encode_metrics(_with_budget(Metrics(attempt=self._attempt), left)))
        self._publish(terminal_frame(final, latency_first_token_ms=latency_first_token_ms))
        self._node.retention.end(self._run.task_id, now)

    def preempted(self, attempt: int, resume_from: int, *, now: float) -> None:
        """Say that the stream goes on later, as `attempt`. Only after that attempt's record is stored: from here on
        readers take nothing of an earlier one. Not kept: it would be untrue when it is published again."""
        frame = encode_metrics(Metrics(attempt=attempt, preempted=True, resume_from=resume_from))
        self._node.outlet.publish(self._subject, frame)
        self._node.retention.end(self._run.task_id, now)

    def lost(self, now: float) -> None:
        """This attempt is over without an end. What it said is kept for a while, for the next attempt to go on from."""
        if self._kept is not None and self._node.retention.get(self._run.task_id) is self._kept:
            self._node.retention.end(self._run.task_id, now)

    def forget(self) -> None:
        """Another attempt speaks for the task now."""
        if self._kept is not None and self._node.retention.get(self._run.task_id) is self._kept:
            self._node.retention.forget(self._run.task_id)

    def _guarded(self, guard: PrefixGuard, first: int, texts: Sequence[str], more: Sequence[bytes]) -> None:
        fresh = guard.take(first, texts)
        if guard.passed:
            self._guard = None
        events: list[bytes] = []
        previous = -2
        for index, text in fresh:
            if index != previous + 1 and events:
                self._publish_tokens(events)
                events = []
            events.append(encode_token(self._attempt, index, text, more[index - first] if more else b""))
            previous = index
        if events:
            self._publish_tokens(events)

    def _publish_tokens(self, events: list[bytes]) -> None:
        """Consecutive token events in as few messages as their size allows."""
        data = b"".join(events)
        half = len(events) // 2
        if len(data) <= MESSAGE_BYTES_MAX or half == 0:
            self._publish(data)
            return
        self._publish_tokens(events[:half])
        self._publish_tokens(events[half:])

    def _publish(self, data: bytes) -> None:
        self._node.outlet.publish(self._subject, data)
        if self._kept is not None:
            self._kept.add(data)

    def _publish_facts(self) -> None:
        """What is known about the task besides its tokens (ORCH-3081, 3100); nothing when nothing is known."""
        run = self._run
        facts = Metrics(
            queue_depth=self._node.loads.queue_depth(run.pool_id),
            on_time_probability=run.on_time_probability,
            kv_warmth=run.kv_warmth,
        )
        if run.session is not None:
            facts = _with_budget(facts, run.session.remaining)
        if facts != _NO_FACTS:
            self._publish(encode_metrics(facts))

    def _started(self, tokens_in: int) -> Started:
        facts, run = self._facts, self._run
        return Started(
            queue_position=run.queue_position,
            predicted_start_ms=run.predicted_start_ms,
            engine=facts.engine,
            engine_version=facts.engine_version,
            pool_id=facts.pool_id,
            replica_id=facts.replica_id,
            node_id=self._node.node_id,
            device=facts.device,
            model_digest=facts.model_digest,
            sampler_profile_version=facts.sampler_profile_version,
            seed=seed_of(run.task_id, run.request.seed if run.request is not None else None),
            attempt=self._attempt,
            tokens_in=tokens_in or None,
        )


def _with_budget(facts: Metrics, left: SessionRemaining) -> Metrics:
    return msgspec.structs.replace(
        facts,
        tokens_budget_remaining=left.tokens_budget_remaining,
        time_budget_remaining_ms=left.time_budget_remaining_ms,
        cost_budget_remaining=left.cost_budget_remaining,
    )
