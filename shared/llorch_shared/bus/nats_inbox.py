"""Answers on their way back: one wildcard inbox for all of them, each matched to its question by a number."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from llorch_shared.bus.nats_parser import parse_header
from llorch_shared.bus.port import BusError, Denied, Unanswered


class Answer(NamedTuple):
    """What came back to an inbox. `status` is the server's (503: nobody there), 0 for an ordinary message."""

    subject: bytes
    data: bytes
    status: int
    description: str
    headers: dict[str, str]


def header_block(headers: Mapping[str, str]) -> bytes:
    """Raises ValueError for a line break in a name or value: it would let a caller forge headers."""
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if text.count("\n") != len(headers) or text.count("\r") != len(headers):
        raise ValueError("a header must not contain a line break")
    return b"NATS/1.0\r\n%b\r\n" % text.encode()


def expire(future: "asyncio.Future[Any]", words: str) -> None:
    """For `call_later`: cheaper than a task per timeout."""
    if not future.done():
        future.set_exception(Unanswered(words))


class Question:
    """One question with one answer."""

    __slots__ = ("_future", "_inbox", "_token", "subject")

    def __init__(self, inbox: "Inbox", token: bytes, subject: str) -> None:
        self._inbox: Final = inbox
        self._token: Final = token
        self.subject: Final = subject
        self._future: Final[asyncio.Future[tuple[bytes, bytes, bytes]]] = asyncio.get_running_loop().create_future()

    def arrived(self, subject: bytes, data: bytes, header: bytes) -> None:
        if not self._future.done():
            self._future.set_result((subject, data, header))

    def failed(self, error: BusError) -> None:
        if not self._future.done():
            self._future.set_exception(error)

    def close(self) -> None:
        self._inbox.done(self._token)

    async def answer(self, timeout_s: float) -> Answer:
        """Raises Unanswered, Denied."""
        loop = self._future.get_loop()
        words = f"no answer on {self.subject} in {timeout_s:.1f} s"
        handle = loop.call_later(timeout_s, expire, self._future, words)
        try:
            subject, data, header = await self._future
        finally:
            handle.cancel()
            self.close()
        if header:
            return Answer(subject, data, *parse_header(header))
        return Answer(subject, data, 0, "", {})


class Series:
    """One question with many answers, read one by one until the reader has enough."""

    def __init__(self, inbox: "Inbox", token: bytes, subject: str) -> None:
        self._inbox: Final = inbox
        self._token: Final = token
        self.subject: Final = subject
        self._answers: Final[asyncio.Queue[Answer | BusError]] = asyncio.Queue()

    def arrived(self, subject: bytes, data: bytes, header: bytes) -> None:
        status = parse_header(header) if header else (0, "", {})
        self._answers.put_nowait(Answer(subject, data, *status))

    def failed(self, error: BusError) -> None:
        self._answers.put_nowait(error)

    async def next(self, timeout_s: float) -> Answer:
        """Raises Unanswered when the next answer does not come, Denied when the question was forbidden."""
        if self._answers.empty():
            try:
                async with asyncio.timeout(timeout_s):
                    answer = await self._answers.get()
            except TimeoutError:
                raise Unanswered(f"no answer on {self.subject}") from None
        else:
            answer = self._answers.get_nowait()
        if isinstance(answer, BusError):
            raise answer
        return answer

    def close(self) -> None:
        self._inbox.done(self._token)


class Inbox:
    """Open questions of one connection."""

    def __init__(self, prefix: str) -> None:
        self.prefix: Final = f"{prefix}."
        self._size: Final = len(self.prefix)
        self._open: dict[bytes, Question | Series] = {}
        self._count = 0

    def subject(self) -> str:
        """A subject nobody else has. With one more token it is beyond this inbox's own wildcard."""
        self._count += 1
        return f"{self.prefix}{self._count}"

    def question(self, subject: str) -> tuple[Question, str]:
        """A question about to be sent to `subject`, and the reply subject to send with it."""
        self._count += 1
        token = b"%d" % self._count
        question = Question(self, token, subject)
        self._open[token] = question
        return question, f"{self.prefix}{self._count}"

    def series(self, subject: str) -> tuple[Series, str]:
        self._count += 1
        token = b"%d" % self._count
        series = Series(self, token, subject)
        self._open[token] = series
        return series, f"{self.prefix}{self._count}"

    def done(self, token: bytes) -> None:
        self._open.pop(token, None)

    def sink(self, subject: bytes, _reply: bytes, data: bytes, header: bytes) -> None:
        """An answer from the reader. One that nobody waits for any more is dropped."""
        if (waiting := self._open.get(subject[self._size :])) is not None:
            waiting.arrived(subject, data, header)

    def fail_all(self, error: BusError) -> None:
        for waiting in tuple(self._open.values()):
            waiting.failed(error)

    def deny(self, subject: str, words: str) -> None:
        """The server forbade what was sent to `subject` (lower case, as it reports it)."""
        for waiting in tuple(self._open.values()):
            if waiting.subject.lower() == subject:
                waiting.failed(Denied(words))
