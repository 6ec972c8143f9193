"""The bus in memory: `MemoryServer` is the server, `MemoryBus` a connection to it. For tests of services without a
network, held to the NATS side by one test suite.

`MemoryServer(clock)` may have a test's own clock; then `server.tick()` makes what is due happen. `server.kill()` and
`server.start()` stand for a restart of the server, `bus.break_connection()` for the loss of one connection.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import count, islice
from typing import Final

from llorch_shared.bus.memory_connection import MemoryConnection
from llorch_shared.bus.memory_consumer import MemoryConsumer
from llorch_shared.bus.memory_server import Interest, MemoryServer
from llorch_shared.bus.memory_streams import MemoryStream, matches
from llorch_shared.bus.port import (
    BusError,
    Denied,
    Duplicate,
    Handler,
    Message,
    NoResponder,
    NoStream,
    Page,
    RawHandler,
    Responder,
    Stored,
    StreamState,
    Subscription,
    TooLarge,
    Unanswered,
)

__all__ = ["MemoryBus", "MemoryServer"]

log = logging.getLogger(__name__)

PAYLOAD_BYTES_MAX: Final = 1024 * 1024
BATCH_MESSAGES_MAX: Final = 500
_INBOX: Final = "_INBOX.memory."


class MemoryBus(MemoryConnection):
    """`Bus` on a `MemoryServer`. `denied` are subject patterns that this user may not publish to."""

    def __init__(self, server: MemoryServer, *, name: str = "test", denied: Sequence[str] = ()) -> None:
        super().__init__(server, name)
        self._denied_patterns: Final = tuple(denied)
        self._inboxes: Final = count(1)

    def _check(self, subject: str, data: bytes) -> None:
        if not subject or any(character <= " " for character in subject):
            raise ValueError(f"{subject!r} is not a subject")
        if len(data) > PAYLOAD_BYTES_MAX:
            raise TooLarge(f"{len(data)} bytes on {subject}: the server takes {PAYLOAD_BYTES_MAX}")

    def _forbidden(self, subject: str) -> bool:
        if any(matches(pattern, subject) for pattern in self._denied_patterns):
            self._denied = f'permissions violation for publish to "{subject}"'
            return True
        return False

    def publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._check(subject, data)
        _check_headers(headers)
        if not self.connected or self._forbidden(subject):
            return
        self.server.route(Message(subject=subject, data=data, headers=dict(headers or {})))
        if (stream := self.server.stream_for(subject)) is not None:
            try:
                _, message = stream.store(subject, data, dict(headers or {}), self.server.now())
            except BusError as error:
                log.debug("not stored: %s", error)
                return
            if message is not None:
                self.server.stored(stream, message)

    async def flush(self) -> None:
        await self.wait_connected(10)
        await asyncio.sleep(0)

    async def store(
        self,
        subject: str,
        data: bytes,
        *,
        msg_id: str = "",
        expect_seq: int | None = None,
        ttl_s: float = 0,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 5.0,
    ) -> Stored:
        self._check(subject, data)
        _check_headers(headers)
        await self.wait_connected(timeout_s)
        if self._forbidden(subject):
            raise Denied(self._denied)
        sent = {**(headers or {}), **({"Nats-Msg-Id": msg_id} if msg_id else {})}
        heard = self.server.route(Message(subject=subject, data=data, headers=sent))
        if (stream := self.server.stream_for(subject)) is None:
            if heard:
                raise Unanswered(f"no answer on {subject}")
            raise NoStream(f"no stream takes {subject}")
        ack, message = stream.store(
            subject, data, sent, self.server.now(), msg_id=msg_id, expect_seq=expect_seq, ttl_s=ttl_s
        )
        if message is not None:
            self.server.stored(stream, message)
        if stream.config.get("no_ack") or self.server.answers_lost > 0:
            self.server.answers_lost = max(0, self.server.answers_lost - 1)
            raise Unanswered(f"no answer on {subject}")
        return ack

    async def store_batch(
        self, messages: Sequence[tuple[str, bytes]], *, new: Collection[str] = (), msg_id: str = ""
    ) -> None:
        if not messages:
            return
        if len(messages) > BATCH_MESSAGES_MAX:
            raise ValueError(f"{len(messages)} messages in one batch; at most {BATCH_MESSAGES_MAX}")
        await self.wait_connected(5)
        stream = self.server.stream_for(messages[0][0])
        if stream is None:
            raise NoStream(f"no stream takes {messages[0][0]}")
        if not stream.config.get("allow_atomic"):
            raise BusError("atomic publish is disabled (10174)")
        if stream.knows(msg_id, self.server.now()):
            raise Duplicate("atomic publish batch contains duplicate message id (10201)")
        for number, (subject, data) in enumerate(messages):
            if not stream.takes(subject):
                raise BusError(f"{subject} is not of the stream {stream.name}")
            self._check(subject, data)
            stream.check(subject, data, 0 if subject in new else None, more=number)
        for number, (subject, data) in enumerate(messages):
            of_batch = msg_id if number == 0 else ""
            _, message = stream.store(subject, data, {}, self.server.now(), msg_id=of_batch)
            if message is not None:
                self.server.stored(stream, message)
        if self.server.answers_lost > 0:
            self.server.answers_lost -= 1
            raise Unanswered("no answer to the batch")

    async def request(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, timeout_s: float = 2.0
    ) -> Message:
        self._check(subject, data)
        await self.wait_connected(timeout_s)
        inbox = f"{_INBOX}{self.name}.{next(self._inboxes)}"
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def arrived(message: Message) -> None:
            if not answer.done():
                answer.set_result(message)

        listening = Interest(self.server, self, inbox, arrived, "")
        self.server.interests.append(listening)
        try:
            if not self.server.route(Message(subject=subject, data=data, headers=dict(headers or {}), reply=inbox)):
                raise NoResponder(f"nobody answers {subject}")
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise Unanswered(f"no answer on {subject} in {timeout_s:.1f} s") from None
        finally:
            await listening.close()

    async def serve(
        self, subject: str, responder: Responder, *, queue: str = "", concurrency: int = 64
    ) -> Subscription:
        free = asyncio.Semaphore(concurrency)

        async def answer(message: Message) -> None:
            try:
                async with free:
                    data, headers = await responder(message)
                if message.reply and self.connected:
                    self.server.route(Message(subject=message.reply, data=data, headers=dict(headers)))
            except BusError as error:
                log.info("a request on %s is not answered: %s", subject, error)
            except Exception:
                log.exception("answering a request on %s failed", subject)

        return self._listen(subject, lambda message: self.spawn(answer(message)), queue)

    def _listen(self, subject: str, handler: Handler, queue: str = "") -> Interest:
        self._check(subject, b"")
        interest = Interest(self.server, self, subject, handler, queue)
        self.server.interests.append(interest)
        return interest

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        await self.wait_connected(10)
        return self._listen(subject, handler)

    async def tail(self, subject: str, handler: RawHandler) -> Subscription:
        await self.wait_connected(10)
        return self._listen(subject, lambda message: handler(message.subject.encode(), message.data))

    async def _readable(self, stream: str) -> MemoryStream:
        await self.wait_connected(5)
        found = self.server.named(stream)
        if not found.config.get("allow_direct"):
            raise NoStream(f"stream {stream} does not answer")
        return found

    async def last(self, stream: str, subject: str) -> Message | None:
        return (await self._readable(stream)).last(subject)

    async def snapshot(self, stream: str, subject_filter: str) -> Sequence[Message]:
        found = await self._readable(stream)
        newest = {message.subject: message for message in found.select(subject_filter)}
        return sorted(newest.values(), key=lambda message: message.seq)

    async def replay(
        self, stream: str, subject_filter: str, *, from_seq: int = 1, limit: int = 100_000
    ) -> Sequence[Message]:
        found = await self._readable(stream)
        return list(islice(found.select(subject_filter, from_seq), limit))

    async def page(self, stream: str, subject_filter: str, *, from_seq: int = 1, bytes_max: int) -> Page:
        found = await self._readable(stream)
        messages: list[Message] = []
        size = 0
        for message in found.select(subject_filter, from_seq):
            if size >= bytes_max:
                return Page(messages, more=True)
            messages.append(message)
            size += len(message.data)
        return Page(messages, more=False)

    async def gather(self, stream: str, subjects: Collection[str], *, within_s: float = 0) -> Sequence[Message]:
        found = await self._readable(stream)
        since = self.server.now() - within_s if within_s else 0.0
        return [
            message
            for message in found.select(">")
            if message.subject in subjects and found.kept[message.seq].stored_at >= since
        ]

    async def remove(self, stream: str, seq: int) -> bool:
        await self.wait_connected(5)
        return self.server.named(stream).remove(seq) is not None

    async def stream_state(self, stream: str) -> StreamState:
        await self.wait_connected(5)
        return self.server.named(stream).state()

    async def counts(self, stream: str, subject_filter: str) -> Mapping[str, int]:
        await self.wait_connected(5)
        return Counter(message.subject for message in self.server.named(stream).select(subject_filter))

    async def consumer(self, stream: str, durable: str) -> MemoryConsumer:
        await self.wait_connected(5)
        self.server.durable(stream, durable)
        return MemoryConsumer(self, stream, durable)


def _check_headers(headers: Mapping[str, str] | None) -> None:
    for name, value in (headers or {}).items():
        if any(character in "\r\n" for character in name + value):
            raise ValueError("a header must not contain a line break")
