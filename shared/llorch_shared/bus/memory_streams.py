"""Streams and durables of the in-memory bus: the server's rules without a server. No tasks and no clock; time is an
argument, in seconds. What the rules are was measured on nats-server; tests/shared/bus holds both sides to one suite.
"""

import heapq
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from llorch_shared.bus.markers import is_marker
from llorch_shared.bus.port import BusError, Full, Message, Stored, StreamState, SubjectFull, WrongSequence

_SECOND: Final = 1_000_000_000
DEDUPE_DEFAULT_S: Final = 120.0
_LIVES: Final = count(1)


def matches(pattern: str, subject: str) -> bool:
    """NATS wildcards: `*` is one token, `>` the rest."""
    if pattern == subject:
        return True
    wanted, given = pattern.split("."), subject.split(".")
    for at, part in enumerate(wanted):
        if part == ">":
            return len(given) > at
        if at >= len(given) or part not in ("*", given[at]):
            return False
    return len(wanted) == len(given)


def transform(source: str, destination: str, subject: str) -> str:
    """The subject under which the server republishes: `{{wildcard(n)}}` and a trailing `>` are filled in."""
    given = subject.split(".")
    wild = [given[at] for at, part in enumerate(source.split(".")) if part == "*" and at < len(given)]
    out: list[str] = []
    for part in destination.split("."):
        if part == ">":
            out += given[source.split(".").index(">") :]
        elif part.startswith("{{wildcard("):
            out.append(wild[int(part.removeprefix("{{wildcard(").removesuffix(")}}")) - 1])
        else:
            out.append(part)
    return ".".join(out)


@dataclass(slots=True)
class Kept:
    """One stored message."""

    message: Message
    stored_at: float


@dataclass(slots=True)
class MemoryStream:
    name: str
    config: dict[str, Any]
    kept: dict[int, Kept] = field(default_factory=dict)
    newest: dict[str, deque[int]] = field(default_factory=dict)
    """Subject to the sequences it holds, oldest first."""
    last_seq: int = 0
    held_bytes: int = 0
    dedupe: dict[str, tuple[int, float]] = field(default_factory=dict)
    durables: dict[str, "MemoryDurable"] = field(default_factory=dict)
    expiries: list[tuple[float, int]] = field(default_factory=list)
    """Heap of (when, sequence)."""
    life: str = field(default_factory=lambda: str(next(_LIVES)))

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """As on the server, a lowered limit per subject deletes; a lowered limit of a stream that refuses keeps."""
        self.config = dict(config)
        for subject in tuple(self.newest):
            self._trim_subject(subject)

    def takes(self, subject: str) -> bool:
        return any(matches(pattern, subject) for pattern in self.config.get("subjects", ()))

    def store(
        self,
        subject: str,
        data: bytes,
        headers: Mapping[str, str],
        now: float,
        *,
        msg_id: str = "",
        expect_seq: int | None = None,
        ttl_s: float = 0,
    ) -> tuple[Stored, Message | None]:
        """The order of the server's checks: duplicate, expected sequence, limits. Returns the message unless it was a
        duplicate. Raises Full, WrongSequence."""
        self.check_config(ttl_s)
        if self.knows(msg_id, now):
            return Stored(self.name, self.dedupe[msg_id][0], True), None
        self.check(subject, data, expect_seq)
        message = self._append(subject, data, headers, now, ttl_s)
        if msg_id:
            self.dedupe[msg_id] = (message.seq, now)
        return Stored(self.name, message.seq), message

    def knows(self, msg_id: str, now: float) -> bool:
        """Whether it was stored within the dedupe window."""
        window = self.config.get("duplicate_window", 0) / _SECOND or DEDUPE_DEFAULT_S
        return bool(msg_id) and (known := self.dedupe.get(msg_id)) is not None and now - known[1] < window

    def check_config(self, ttl_s: float) -> None:
        if ttl_s and not self.config.get("allow_msg_ttl"):
            raise BusError("per-message TTL is disabled (10166)")
        if 0 < ttl_s < 1:
            raise BusError("invalid per-message TTL (10165)")

    def check(self, subject: str, data: bytes, expect_seq: int | None, more: int = 0) -> None:
        """`more`: messages of the same atomic batch before this one."""
        held = self.newest.get(subject, ())
        if expect_seq is not None and expect_seq != (held[-1] if held else 0):
            raise WrongSequence(f"wrong last sequence: {held[-1] if held else 0} (10071)")
        if self.config.get("discard") != "new":
            return
        per_subject = self.config.get("max_msgs_per_subject", 0)
        if 0 < per_subject <= len(held):
            if self.config.get("discard_new_per_subject"):
                raise SubjectFull("maximum messages per subject exceeded (10077)")
            return
        if 0 < self.config.get("max_msgs", 0) <= len(self.kept) + more:
            raise Full("maximum messages exceeded (10077)")
        if 0 < self.config.get("max_bytes", 0) < self.held_bytes + _size(subject, data):
            raise Full("maximum bytes exceeded (10077)")

    def _append(self, subject: str, data: bytes, headers: Mapping[str, str], now: float, ttl_s: float) -> Message:
        self.last_seq += 1
        marked = is_marker(headers)
        message = Message(subject=subject, data=data, headers=headers, seq=self.last_seq, deleted=marked)
        age_s = self.config.get("max_age", 0) / _SECOND
        ends = [now + span for span in (ttl_s, age_s) if span > 0]
        self.kept[self.last_seq] = Kept(message, now)
        if ends:
            heapq.heappush(self.expiries, (min(ends), self.last_seq))
        self.newest.setdefault(subject, deque()).append(self.last_seq)
        self.held_bytes += _size(subject, data)
        self._trim_subject(subject)
        if headers.get("Nats-Rollup") == "sub" and self.config.get("allow_rollup_hdrs"):
            for seq in tuple(self.newest[subject])[:-1]:
                self.remove(seq)
        if self.config.get("discard") == "new":
            return message
        limit_msgs, limit_bytes = self.config.get("max_msgs", 0), self.config.get("max_bytes", 0)
        while self.kept and (0 < limit_msgs < len(self.kept) or 0 < limit_bytes < self.held_bytes):
            self.remove(next(iter(self.kept)))
        return message

    def _trim_subject(self, subject: str) -> None:
        per_subject = self.config.get("max_msgs_per_subject", 0)
        while 0 < per_subject < len(self.newest[subject]):
            self.remove(self.newest[subject][0])

    def remove(self, seq: int) -> Message | None:
        kept = self.kept.pop(seq, None)
        if kept is None:
            return None
        subject = kept.message.subject
        self.newest[subject].remove(seq)
        if not self.newest[subject]:
            del self.newest[subject]
        self.held_bytes -= _size(subject, kept.message.data)
        for durable in self.durables.values():
            durable.pending.pop(seq, None)
        return kept.message

    def next_expiry(self) -> float:
        return self.expiries[0][0] if self.expiries else 0.0

    def expire(self, now: float) -> list[Message]:
        """Remove what is over its time; returns the markers that were stored for it."""
        markers: list[Message] = []
        marker_ttl = self.config.get("subject_delete_marker_ttl", 0) / _SECOND
        while self.expiries and self.expiries[0][0] <= now:
            message = self.remove(heapq.heappop(self.expiries)[1])
            if message and marker_ttl and not message.deleted and message.subject not in self.newest:
                headers = {"Nats-Marker-Reason": "MaxAge", "Nats-TTL": f"{marker_ttl:g}s"}
                markers.append(self._append(message.subject, b"", headers, now, marker_ttl))
        return markers

    def restart(self, now: float) -> None:
        """What a killed server forgets: the ids of messages that are gone, and deliveries (it may remember these)."""
        self.dedupe = {
            kept.message.headers["Nats-Msg-Id"]: (seq, kept.stored_at)
            for seq, kept in self.kept.items()
            if "Nats-Msg-Id" in kept.message.headers
        }
        for durable in self.durables.values():
            durable.reset()
        self.expire(now)

    def last(self, subject: str) -> Message | None:
        held = self.newest.get(subject)
        return self.kept[held[-1]].message if held else None

    def select(self, pattern: str, from_seq: int = 1) -> Iterator[Message]:
        for seq in [seq for seq in self.kept if seq >= from_seq]:
            if matches(pattern, self.kept[seq].message.subject):
                yield self.kept[seq].message

    def state(self) -> StreamState:
        first = next(iter(self.kept)) if self.kept else (self.last_seq + 1 if self.last_seq else 0)
        return StreamState(messages=len(self.kept), first_seq=first, last_seq=self.last_seq, life=self.life)


@dataclass(slots=True)
class MemoryDurable:
    stream: MemoryStream
    config: dict[str, Any]
    position: int = 0
    """Highest sequence that was delivered at least once."""
    pending: dict[int, float] = field(default_factory=dict)
    """By sequence: when it is delivered again, unless it is acknowledged."""
    again: list[tuple[float, int]] = field(default_factory=list)
    """Heap of (due, sequence) to deliver again."""

    def take(self, limit: int, now: float) -> list[Message]:
        """At most `limit` messages, due ones first."""
        taken: list[Message] = []
        wait_s = self.config.get("ack_wait", 30 * _SECOND) / _SECOND
        while self.again and self.again[0][0] <= now and len(taken) < limit:
            due, seq = heapq.heappop(self.again)
            if self.pending.get(seq) != due or seq not in self.stream.kept:
                continue
            self._deliver(seq, now + wait_s, taken)
        held_max = self.config.get("max_ack_pending", 1000)
        pattern = self.config.get("filter_subject", ">")
        for message in self.stream.select(pattern, self.position + 1):
            if len(taken) >= limit or (0 < held_max <= len(self.pending)):
                break
            self.position = message.seq
            self._deliver(message.seq, now + wait_s, taken)
        return taken

    def _deliver(self, seq: int, due: float, taken: list[Message]) -> None:
        self.pending[seq] = due
        heapq.heappush(self.again, (due, seq))
        taken.append(self.stream.kept[seq].message)

    def next_due(self) -> float:
        return self.again[0][0] if self.again else 0.0

    def ack(self, seq: int) -> bool:
        """False when it is not pending here (never delivered, acknowledged, or reset): the server does not answer."""
        if self.pending.pop(seq, None) is None:
            return False
        if self.stream.config.get("retention") == "workqueue":
            self.stream.remove(seq)
        return True

    def reset(self) -> None:
        """Everything not acknowledged is new again."""
        unacknowledged = set(self.pending)
        self.pending.clear()
        self.again.clear()
        if unacknowledged:
            self.position = min(self.position, min(unacknowledged) - 1)


def _size(subject: str, data: bytes) -> int:
    return len(subject) + len(data) + 22
