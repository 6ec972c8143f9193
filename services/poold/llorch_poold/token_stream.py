"""The frames of one attempt: encoded once, published and kept in the same breath, never sent twice.

A later attempt first announces itself, then learns what readers already have (`backlog.py`), and goes on as
`core.failover` decides. What they have is not sent again; what the token log has lost of it is (ARCHITECTURE,
invariant 4).
"""

from collections.abc import Sequence
from typing import Final

from llorch_poold.attempt_frames import AttemptFrames, made_way
from llorch_poold.backlog import Backlog
from llorch_poold.core.budget import left_after
from llorch_poold.core.failover import Anew, Begin, Complete, GoOn, Plan, Refuse, Repeat, plan
from llorch_poold.core.prefix import PrefixGuard
from llorch_poold.core.retention import KeptFrames
from llorch_poold.node_context import NodeContext, ReplicaFacts
from llorch_shared import subjects
from llorch_shared.streaming.endings import terminal_frame
from llorch_shared.wire.frames import MESSAGE_BYTES_MAX, encode_token
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import TaskRequest


class TokenStream:
    """`tokens` is the hot path: it runs in the engine's socket reader, for every read."""

    def __init__(self, node: NodeContext, facts: ReplicaFacts, run: RunRecord) -> None:
        self._node: Final = node
        self._facts: Final = facts
        self._run: Final = run
        self._attempt: Final = run.attempt
        self._subject: Final = subjects.tokens(run.lane, run.task_id)
        self._frames: Final = AttemptFrames(node.node_id, facts, run)
        self.backlog: Final = Backlog(node, run, self._subject, self._frames)
        self._guard: PrefixGuard | None = None
        self._kept: KeptFrames | None = None

    @property
    def opened(self) -> bool:
        """Whether tokens may be published."""
        return self._kept is not None

    async def open(self, request: TaskRequest) -> Plan:
        """Look back, decide, and start keeping. Raises BacklogUnread."""
        decided: Plan = Begin()
        if self._attempt > 1:
            await self.backlog.read()
            same_class = self._run.determinism_class in ("", self._facts.determinism_class)
            decided = plan(request, self.backlog.sent, known=self.backlog.known, same_class=same_class)
        if isinstance(decided, Refuse):
            return decided
        self._keep_what_was_sent()
        if isinstance(decided, Repeat | Complete | GoOn | Anew) and self.backlog.log_lacks_some:
            self._publish_again()
        if isinstance(decided, Repeat) and self.backlog.sent.tokens:
            self._guard = PrefixGuard(self.backlog.sent.tokens)
            self._publish(self._frames.going_on(tokens_out=self.backlog.count))
        elif isinstance(decided, GoOn):
            self._publish(self._frames.going_on(resume_from=decided.first))
        elif isinstance(decided, Anew):
            self._publish(self._frames.going_on(restarted_at=decided.first))
        return decided

    def _keep_what_was_sent(self) -> None:
        """As this attempt would have sent it: the earlier attempts' copies are theirs."""
        run, sent = self._run, self.backlog.sent
        self._kept = self._node.retention.open(run.task_id, self._subject, self._attempt)
        if sent.started:
            self._kept.add(self._frames.started(0))
        if self._attempt > 1:
            self._kept.add(self._frames.announcement)
        for index, text in sorted(sent.tokens.items()):
            if index == sent.restarted_at:
                self._kept.add(self._frames.going_on(restarted_at=index))
            self._kept.add(encode_token(self._attempt, index, text, sent.more.get(index, b"")))

    def _publish_again(self) -> None:
        """The log has lost some of what this node has: readers that join late must find it."""
        if self._kept is not None:
            for data in self._kept.messages():
                self._node.outlet.publish(self._subject, data)

    def begin(self, tokens_in: int) -> None:
        sent = self.backlog.sent
        if not (sent.started or sent.tokens):
            self._publish(self._frames.started(tokens_in))
            if known := self._frames.known(queue_depth=self._node.loads.queue_depth(self._run.pool_id)):
                self._publish(known)

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
            self._publish(self._frames.budget(left))
        self._publish(terminal_frame(final, latency_first_token_ms=latency_first_token_ms))
        self._node.retention.end(self._run.task_id, now)

    def preempted(self, attempt: int, resume_from: int, *, now: float) -> None:
        """Say that the stream goes on later, as `attempt`. Only after that attempt's record is stored: from here on
        readers take nothing of an earlier one. Not kept: it would be untrue when it is published again."""
        self._node.outlet.publish(self._subject, made_way(attempt, resume_from))
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
