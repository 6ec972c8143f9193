"""Reads streams without a consumer: direct gets of one message, of the newest per subject, or of a range, in pages.

The library has neither batched form. Answers are taken by callback: `next_msg` costs twice as much per message.
Any copy of a stream answers a direct get, also one that has not stored yet what its leader acknowledged. The newest
message of one subject is what decisions are made from, so where there are copies it is asked of the leader. So is what
a range ends with: a server that was cut off may take minutes to get again what it lacks, and answers meanwhile.
"""

import base64
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from math import inf
from typing import Any, Final

import msgspec

from llorch_shared.bus.markers import is_marker
from llorch_shared.bus.nats_inbox import Answer
from llorch_shared.bus.nats_link import Link
from llorch_shared.bus.nats_parser import parse_header
from llorch_shared.bus.nats_streams import API_TIMEOUT_S, ApiError, Streams
from llorch_shared.bus.nats_watch import unix_ms
from llorch_shared.bus.port import BusError, Message, NoStream, Page, Unanswered
from llorch_shared.wall_clock import now_ms

log = logging.getLogger(__name__)

READ_TIMEOUT_S: Final = 5.0
LEADER_TIMEOUT_S: Final = 1.0
"""For what a copy may lack: while nobody leads, what the copy has must do."""
PAGE_MESSAGES: Final = 1000
PAGE_BYTES: Final = 8 * 1024 * 1024
SUBJECTS_MAX: Final = 1024
"""Subjects of which the server gives the newest message in one answer; beyond it refuses (413)."""
SNAPSHOT_MESSAGES_MAX: Final = 1_000_000
_PAGE_ATTEMPTS: Final = 3

_NO_RESPONDERS: Final = 503
_NOT_FOUND: Final = 404
_END_OF_BATCH: Final = 204
_TOO_MANY: Final = 413
_NO_MESSAGE: Final = 10037


def read_message(answer: Answer) -> Message:
    """A stored message from the answer to a direct get."""
    headers = answer.headers
    return Message(
        subject=headers.get("Nats-Subject", ""),
        data=answer.data,
        headers=headers,
        seq=int(headers.get("Nats-Sequence", "0")),
        deleted=is_marker(headers),
        stored_ms=unix_ms(stamp) if (stamp := headers.get("Nats-Time-Stamp")) else 0,
    )


def moment(seconds_ago: float) -> str:
    """As the server reads it, by its own clock."""
    return datetime.fromtimestamp(now_ms() / 1000 - seconds_ago, UTC).isoformat()


class Reads:
    """Stored messages through one link."""

    def __init__(self, link: Link, streams: Streams, *, copies: int) -> None:
        self._link: Final = link
        self._streams: Final = streams
        self._copies: Final = copies

    async def last(self, stream: str, subject: str) -> Message | None:
        if self._copies > 1:
            return await self._last_of_leader(stream, subject)
        answer = await self._link.ask(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", timeout_s=READ_TIMEOUT_S)
        if answer.status == _NOT_FOUND:
            return None
        _check(answer, stream)
        return read_message(answer)

    async def _last_of_leader(self, stream: str, subject: str) -> Message | None:
        return await self._of_leader(stream, {"last_by_subj": subject}, API_TIMEOUT_S)

    async def _of_leader(self, stream: str, which: Mapping[str, Any], timeout_s: float) -> Message | None:
        try:
            reply = await self._streams.api(f"STREAM.MSG.GET.{stream}", which, timeout_s=timeout_s)
        except ApiError as error:
            if error.err_code == _NO_MESSAGE:
                return None
            raise
        found = reply["message"]
        headers = parse_header(base64.b64decode(found["hdrs"]))[2] if found.get("hdrs") else {}
        return Message(
            subject=found["subject"],
            data=base64.b64decode(found.get("data", "")),
            headers=headers,
            seq=found["seq"],
            deleted=is_marker(headers),
            stored_ms=unix_ms(found["time"]),
        )

    async def snapshot(self, stream: str, subject_filter: str) -> list[Message]:
        """One question where the server allows it (1,024 subjects). Above that the stream is read in pages and the
        newest of each subject kept: in our buckets nearly every message is the newest of its subject."""
        found = await self._page(stream, {"multi_last": [subject_filter], "batch": SUBJECTS_MAX})
        if found is not None:
            messages, pending = found
            if pending == 0:
                newest = {message.subject: message for message in messages}
                after = messages[-1].seq if messages else 0
                lacking = await self._lacking(stream, subject_filter, after, SNAPSHOT_MESSAGES_MAX, inf)
                if not lacking.messages:
                    return messages
                newest |= {message.subject: message for message in lacking.messages}
                return sorted(newest.values(), key=lambda message: message.seq)
        newest = {}
        for message in await self.replay(stream, subject_filter, 1, SNAPSHOT_MESSAGES_MAX):
            newest[message.subject] = message
        return sorted(newest.values(), key=lambda message: message.seq)

    async def replay(self, stream: str, subject_filter: str, from_seq: int, limit: int) -> list[Message]:
        messages: list[Message] = []
        while len(messages) < limit:
            batch = min(PAGE_MESSAGES, limit - len(messages))
            page = await self._next(stream, subject_filter, from_seq, batch, PAGE_BYTES)
            messages += page.messages
            if not page.more:
                break
            from_seq = page.messages[-1].seq + 1
        return messages

    async def page(self, stream: str, subject_filter: str, from_seq: int, bytes_max: int) -> Page:
        return await self._next(stream, subject_filter, from_seq, PAGE_MESSAGES, bytes_max)

    async def _next(self, stream: str, subject_filter: str, from_seq: int, batch: int, bytes_max: int) -> Page:
        found = await self._page(
            stream,
            {"seq": max(1, from_seq), "next_by_subj": subject_filter, "batch": batch, "max_bytes": bytes_max},
        )
        if found is None:
            raise BusError(f"{stream}: the server cannot read {subject_filter}")
        messages, pending = found
        if messages and pending > 0:
            return Page(messages, more=True)
        size = sum(len(message.data) for message in messages)
        after = messages[-1].seq if messages else from_seq - 1
        lacking = await self._lacking(stream, subject_filter, after, batch - len(messages), bytes_max - size)
        return Page([*messages, *lacking.messages], more=lacking.more)

    async def _lacking(self, stream: str, subject_filter: str, after_seq: int, limit: int, bytes_max: float) -> Page:
        """What the leader has stored by now behind the last message of the copy that has answered: nothing, but where
        that copy lags behind."""
        messages: list[Message] = []
        if self._copies == 1:
            return Page(messages, more=False)
        try:
            last = await self._of_leader(stream, {"last_by_subj": subject_filter}, LEADER_TIMEOUT_S)
            while last is not None and last.seq > after_seq:
                if len(messages) >= limit or bytes_max <= 0:
                    return Page(messages, more=True)
                which = {"seq": after_seq + 1, "next_by_subj": subject_filter}
                if (found := await self._of_leader(stream, which, LEADER_TIMEOUT_S)) is None:
                    break
                messages.append(found)
                after_seq = found.seq
                bytes_max -= len(found.data)
        except BusError as error:
            log.info("what a copy of %s may lack is not told: %s", stream, error)
        return Page(messages, more=False)

    async def _page(self, stream: str, body: Mapping[str, Any]) -> tuple[list[Message], int] | None:
        """(messages, how many are left); None when the filter matches too many subjects. A page cut
        off by a reconnect is asked for again."""
        for attempt in range(_PAGE_ATTEMPTS):
            try:
                return await self._page_once(stream, body)
            except Unanswered:
                if attempt == _PAGE_ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    async def _page_once(self, stream: str, body: Mapping[str, Any]) -> tuple[list[Message], int] | None:
        answers = await self._link.ask_for_many(
            f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(body), timeout_s=READ_TIMEOUT_S
        )
        messages: list[Message] = []
        try:
            while True:
                answer = await answers.next(READ_TIMEOUT_S)
                if answer.status == _END_OF_BATCH:
                    return messages, int(answer.headers.get("Nats-Num-Pending", "0"))
                if answer.status == _NOT_FOUND:
                    return messages, 0
                if answer.status == _TOO_MANY:
                    return None
                _check(answer, stream)
                messages.append(read_message(answer))
        finally:
            answers.close()


def _check(answer: Answer, stream: str) -> None:
    if answer.status == _NO_RESPONDERS:
        raise NoStream(f"stream {stream} does not answer")
    if answer.status:
        raise BusError(f"{stream}: {answer.status} {answer.description}")
