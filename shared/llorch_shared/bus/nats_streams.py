"""The JetStream API as raw JSON: ensure streams and durables, store, read back. No consumers' messages here.

Raw, because the client library drops configuration fields it does not know, cannot read in batches, and reports a full
stream and a missing JetStream with one exception. Answers are judged by the server's `err_code`.
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from llorch_shared.bus.nats_inbox import Answer, header_block
from llorch_shared.bus.nats_link import Link
from llorch_shared.bus.port import (
    BusError,
    Full,
    Message,
    NoStream,
    Stored,
    StreamState,
    TooLarge,
    Unanswered,
    WrongSequence,
)
from llorch_shared.streams import Durable, Stream, Topology

API_TIMEOUT_S: Final = 5.0
BATCH_MESSAGES_MAX: Final = 500
PAGE_MESSAGES: Final = 1000
PAGE_BYTES: Final = 8 * 1024 * 1024
SNAPSHOT_MESSAGES_MAX: Final = 1_000_000
_PAGE_ATTEMPTS: Final = 3
_ENSURE_ATTEMPTS: Final = 5

_NO_RESPONDERS: Final = 503
_NOT_FOUND: Final = 404
_END_OF_BATCH: Final = 204
_TOO_MANY: Final = 413

_STREAM_NOT_FOUND: Final = 10059
_STREAM_NAME_IN_USE: Final = 10058
_CONSUMER_NOT_FOUND: Final = 10014
_FULL: Final = frozenset({10077, 10023, 10047, 10028, 10122})
"""Limits of the stream, then of storage: the publish was refused and nothing is stored."""
_WRONG_SEQUENCE: Final = frozenset({10071, 10164})
_TOO_LARGE: Final = 10054
_NO_STREAM: Final = frozenset({_STREAM_NOT_FOUND, _CONSUMER_NOT_FOUND, 10008, 10009, 10039, 10076})
"""Not found, or JetStream itself is not (yet) there."""

_SEQ: Final = "Nats-Sequence"
_SUBJECT: Final = "Nats-Subject"
_PENDING: Final = "Nats-Num-Pending"


class _Refusal(msgspec.Struct, frozen=True):
    err_code: int = 0
    code: int = 0
    description: str = ""


class _Ack(msgspec.Struct, frozen=True):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Refusal | None = None


_ACK: Final = msgspec.json.Decoder(_Ack)


def refused(refusal: _Refusal) -> BusError:
    """The port's exception for an error of the server."""
    words = f"{refusal.description} ({refusal.err_code or refusal.code})"
    if refusal.err_code in _FULL:
        return Full(words)
    if refusal.err_code in _WRONG_SEQUENCE:
        return WrongSequence(words)
    if refusal.err_code == _TOO_LARGE:
        return TooLarge(words)
    if refusal.err_code in _NO_STREAM:
        return NoStream(words)
    return BusError(words)


def is_marker(headers: Mapping[str, str]) -> bool:
    """An expiry or delete marker of a bucket key."""
    return "Nats-Marker-Reason" in headers or headers.get("KV-Operation") in ("DEL", "PURGE")


def read_message(answer: Answer) -> Message:
    """A stored message from the answer to a direct get."""
    headers = answer.headers
    return Message(
        subject=headers.get(_SUBJECT, ""),
        data=answer.data,
        headers=headers,
        seq=int(headers.get(_SEQ, "0")),
        deleted=is_marker(headers),
    )


class ApiError(BusError):
    """An error of the JetStream API that has no meaning in the port; carries the server's err_code."""

    def __init__(self, words: str, err_code: int) -> None:
        super().__init__(words)
        self.err_code = err_code


class Streams:
    """JetStream through one link."""

    def __init__(self, link: Link) -> None:
        self._link: Final = link

    async def api(self, call: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One call of `$JS.API`. Raises NoStream, Unanswered, ApiError."""
        data = msgspec.json.encode(body) if body is not None else b""
        answer = await self._link.ask(f"$JS.API.{call}", data, timeout_s=API_TIMEOUT_S)
        if answer.status == _NO_RESPONDERS:
            raise NoStream(f"nobody answers {call}")
        reply: dict[str, Any] = msgspec.json.decode(answer.data)
        if (error := reply.get("error")) is not None:
            refusal = msgspec.convert(error, _Refusal)
            known = refused(refusal)
            raise ApiError(str(known), refusal.err_code) if type(known) is BusError else known
        return reply

    async def ensure(self, topology: Topology) -> None:
        """Create what is missing, change what differs. Several processes may do so at once."""
        for stream in topology.streams:
            await self._ensure_stream(stream)
        for durable in topology.durables:
            await self._ensure_durable(durable)

    async def _ensure_stream(self, stream: Stream) -> None:
        for attempt in range(_ENSURE_ATTEMPTS):
            found = await self.found(f"STREAM.INFO.{stream.name}")
            try:
                if found is None:
                    await self.api(f"STREAM.CREATE.{stream.name}", stream.config)
                elif not _agrees(found, stream.config):
                    await self.api(f"STREAM.UPDATE.{stream.name}", {**found, **stream.config})
                return
            except (ApiError, NoStream) as error:
                raced = isinstance(error, NoStream) or error.err_code == _STREAM_NAME_IN_USE
                if not raced or attempt == _ENSURE_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.05 * (attempt + 1))

    async def _ensure_durable(self, durable: Durable) -> None:
        found = await self.found(f"CONSUMER.INFO.{durable.stream}.{durable.name}")
        if found is None or not _agrees(found, durable.config):
            config = {**(found or {}), **durable.config}
            await self.api(
                f"CONSUMER.CREATE.{durable.stream}.{durable.name}",
                {"stream_name": durable.stream, "config": config},
            )

    async def found(self, call: str) -> dict[str, Any] | None:
        """Configuration in an INFO answer, None where there is no such thing. Raises NoStream without JetStream."""
        answer = await self._link.ask(f"$JS.API.{call}", b"", timeout_s=API_TIMEOUT_S)
        if answer.status == _NO_RESPONDERS:
            raise NoStream("JetStream does not answer")
        reply: dict[str, Any] = msgspec.json.decode(answer.data)
        if (error := reply.get("error")) is None:
            config: dict[str, Any] = reply["config"]
            return config
        refusal = msgspec.convert(error, _Refusal)
        if refusal.err_code in (_STREAM_NOT_FOUND, _CONSUMER_NOT_FOUND):
            return None
        raise refused(refusal)

    async def state(self, stream: str) -> StreamState:
        state = (await self.api(f"STREAM.INFO.{stream}"))["state"]
        return StreamState(messages=state["messages"], first_seq=state["first_seq"], last_seq=state["last_seq"])

    async def store(self, subject: str, data: bytes, headers: Mapping[str, str], timeout_s: float) -> Stored:
        block = header_block(headers) if headers else b""
        answer = await self._link.ask(subject, data, block, timeout_s=timeout_s)
        if answer.status == _NO_RESPONDERS:
            raise NoStream(f"no stream takes {subject}")
        try:
            ack = _ACK.decode(answer.data)
        except msgspec.DecodeError as error:
            raise BusError(f"the answer to a store on {subject} is not an ack") from error
        if ack.error is not None:
            raise refused(ack.error)
        return Stored(ack.stream, ack.seq, ack.duplicate)

    async def store_batch(self, messages: Sequence[tuple[str, bytes]], timeout_s: float) -> None:
        if not messages:
            return
        if len(messages) > BATCH_MESSAGES_MAX:
            raise ValueError(f"{len(messages)} messages in one batch; at most {BATCH_MESSAGES_MAX}")
        await self._link.wait_connected(timeout_s)
        batch = secrets.token_hex(12)
        last = len(messages)
        for number, (subject, data) in enumerate(messages[:-1], start=1):
            self._link.publish(
                subject, data, header_block({"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)})
            )
        headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(last), "Nats-Batch-Commit": "1"}
        await self.store(*messages[-1], headers, timeout_s)

    async def last(self, stream: str, subject: str) -> Message | None:
        answer = await self._link.ask(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", timeout_s=API_TIMEOUT_S)
        if answer.status == _NOT_FOUND:
            return None
        self._check(answer, stream)
        return read_message(answer)

    async def snapshot(self, stream: str, subject_filter: str) -> list[Message]:
        """One question where the server allows it (1,024 subjects). Above that the stream is read in pages and the
        newest of each subject kept: in our buckets nearly every message is the newest of its subject."""
        found = await self._page(stream, {"multi_last": [subject_filter], "batch": PAGE_MESSAGES + 24})
        if found is not None:
            messages, pending, _ = found
            if pending == 0:
                return messages
        newest: dict[str, Message] = {}
        for message in await self.replay(stream, subject_filter, 1, SNAPSHOT_MESSAGES_MAX):
            newest[message.subject] = message
        return sorted(newest.values(), key=lambda message: message.seq)

    async def replay(self, stream: str, subject_filter: str, from_seq: int, limit: int) -> list[Message]:
        messages: list[Message] = []
        seq = max(1, from_seq)
        while len(messages) < limit:
            batch = min(PAGE_MESSAGES, limit - len(messages))
            found = await self._page(
                stream, {"seq": seq, "next_by_subj": subject_filter, "batch": batch, "max_bytes": PAGE_BYTES}
            )
            if found is None:
                raise BusError(f"{stream}: the server cannot read {subject_filter}")
            page, pending, _ = found
            messages += page
            if not page or pending == 0:
                break
            seq = page[-1].seq + 1
        return messages

    async def _page(self, stream: str, body: Mapping[str, Any]) -> tuple[list[Message], int, int] | None:
        """(messages, how many are left, last sequence); None when the filter matches too many subjects. A page cut
        off by a reconnect is asked for again."""
        for attempt in range(_PAGE_ATTEMPTS):
            try:
                return await self._page_once(stream, body)
            except Unanswered:
                if attempt == _PAGE_ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    async def _page_once(self, stream: str, body: Mapping[str, Any]) -> tuple[list[Message], int, int] | None:
        answers = await self._link.ask_for_many(
            f"$JS.API.DIRECT.GET.{stream}", msgspec.json.encode(body), timeout_s=API_TIMEOUT_S
        )
        messages: list[Message] = []
        try:
            while True:
                answer = await answers.next(API_TIMEOUT_S)
                if answer.status == _END_OF_BATCH:
                    return messages, int(answer.headers.get(_PENDING, "0")), int(answer.headers.get(_SEQ, "0"))
                if answer.status == _NOT_FOUND:
                    return messages, 0, 0
                if answer.status == _TOO_MANY:
                    return None
                self._check(answer, stream)
                messages.append(read_message(answer))
        finally:
            answers.close()

    @staticmethod
    def _check(answer: Answer, stream: str) -> None:
        if answer.status == _NO_RESPONDERS:
            raise NoStream(f"stream {stream} does not answer")
        if answer.status:
            raise BusError(f"{stream}: {answer.status} {answer.description}")


def _agrees(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """The server leaves out what is zero or empty."""
    return all(found.get(key) == value or (not value and not found.get(key)) for key, value in wanted.items())
