"""What the services may ask of the bus, and how it can fail. Nothing here knows NATS.

BusError
├─ Full             the stream is at its limit: the publish was refused, nothing is stored
│  └─ SubjectFull   so is the bound of this one subject, the stream itself may have room
├─ WrongSequence    compare-and-set lost: somebody else wrote first
├─ Duplicate        a batch stands already under its message id: nothing is stored twice
├─ NoStream         no stream takes this subject (not created yet, or its leader is being elected)
├─ TooLarge         the payload is over the server's limit
├─ NoResponder      nobody answers this request subject
├─ Denied           the server forbids it to this user
└─ Unanswered       no answer in time; the publish may still have been stored: repeat it with the same msg_id
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from llorch_shared.bus.topology import Topology

ASKED_BY_HEADER: Final = "Nats-Request-Info"
"""By which the server says whose account a request came from; empty where somebody has tampered with it."""
DISCONNECTED: Final = "disconnected"
"""The problem of a connection that does not stand."""


class BusError(Exception):
    """A bus operation did not do what was asked."""


class Full(BusError): ...


class SubjectFull(Full): ...


class WrongSequence(BusError): ...


class Duplicate(BusError): ...


class NoStream(BusError): ...


class TooLarge(BusError): ...


class NoResponder(BusError): ...


class Denied(BusError): ...


class Unanswered(BusError): ...


class Message(msgspec.Struct, frozen=True, gc=False):
    """`seq` is the stream sequence where the message came from a stream or was republished by one, else 0. `deleted`
    marks the expiry or deletion of a bucket key: data is empty, and seq is what a new write must expect."""

    subject: str
    data: bytes
    headers: Mapping[str, str] = {}
    seq: int = 0
    reply: str = ""
    deleted: bool = False
    stored_ms: int = 0
    """When the stream stored it, Unix milliseconds; set on what was read or came from a durable where the
    server tells it, else 0."""


@dataclass(frozen=True, slots=True)
class Page:
    """`more`: whether there are messages behind these."""

    messages: Sequence[Message]
    more: bool


@dataclass(frozen=True, slots=True)
class Stored:
    stream: str
    seq: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class StreamState:
    messages: int
    first_seq: int
    last_seq: int
    life: str = ""
    """When the server made it, who leads its copies and since when: a stream in memory has another life after each
    restart, and one without acknowledgements lacks what was published while nobody led."""
    leader: str = ""
    """The server that leads its copies; empty where there is only one server."""


class Delivery(Protocol):
    """One message of a durable, until it is acknowledged."""

    @property
    def message(self) -> Message: ...

    async def ack(self) -> None:
        """Acknowledge and wait until the server has processed it: only then is its place in a bounded stream free.
        Raises Unanswered when the server does not confirm: after a reset, or when it was killed and has forgotten that
        it delivered. The message then comes again."""

    def drop_payload(self) -> None:
        """Keep what an acknowledgement needs. For those who hold many and have read them."""


class Consumer(Protocol):
    async def fetch(self, limit: int, wait_s: float) -> Sequence[Delivery]:
        """Up to `limit` messages: what has arrived, as soon as anything has; none after `wait_s`. Never raises for an
        empty stream, a reconnect or a leader change, and never drops what it already holds. Raises NoStream when the
        durable does not exist."""

    async def reset(self) -> None:
        """Have everything that is not acknowledged delivered again, now (takeover)."""

    async def close(self) -> None: ...


class Subscription(Protocol):
    async def close(self) -> None: ...


Handler = Callable[[Message], None]
"""Runs in the reader: must not block. Hand over to a queue or an event."""

RawHandler = Callable[[bytes, bytes], None]
"""(subject, payload) of a subject without headers: the hot path."""

Responder = Callable[[Message], Awaitable[tuple[bytes, Mapping[str, str]]]]
"""Answers a request with payload and headers. Raises a BusError, Unanswered among them, when it has no answer to give:
the caller's timeout tells it so, and nobody is alarmed."""


class Bus(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def connected(self) -> bool: ...

    @property
    def problem(self) -> str:
        """Why this connection is not to be trusted: empty, `disconnected`, or what the server forbids. One that may no
        longer hear what it subscribed to does not stand, until it may."""

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Called after each reconnect, once the ensured topology stands again."""

    def on_disconnect(self, callback: Callable[[], None]) -> None: ...

    def on_cluster_change(self, callback: Callable[[], None]) -> None:
        """Called when the server of this connection has lost or found another of its cluster. This connection stands,
        but what passed between the two servers may be lost, and nobody is told."""

    async def ensure(self, topology: Topology) -> None:
        """Create or update streams and durables; remembered, and ensured again after every reconnect. A stream's bound
        per subject is raised, never lowered (`topology.changed`): nothing that was accepted is deleted."""

    async def forget(self, topology: Topology) -> None:
        """Stop ensuring it. Does not delete anything."""

    def publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Fire and forget. Dropped while disconnected."""

    async def hang_up(self) -> None:
        """Break this connection, dropping what the server has not taken yet, and make a new one as after any loss."""

    async def flush(self) -> None:
        """Wait until the server has what was published before."""

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
        """Publish into a stream and wait for its ack. `expect_seq` compares the subject's last sequence (0: none yet).
        Raises Full, WrongSequence, NoStream, TooLarge, Denied, Unanswered."""

    async def store_batch(
        self, messages: Sequence[tuple[str, bytes]], *, new: Collection[str] = (), msg_id: str = ""
    ) -> None:
        """Store at most 500 messages of one stream that allows atomic batches: all or none. Raises WrongSequence when
        one of the subjects in `new` holds a message already, Duplicate when `msg_id` was stored within the dedupe
        window, which is told first."""

    async def request(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, timeout_s: float = 2.0
    ) -> Message:
        """Raises NoResponder, Unanswered."""

    async def serve(
        self, subject: str, responder: Responder, *, queue: str = "", concurrency: int = 64
    ) -> Subscription:
        """Answer requests, at most `concurrency` at once; members of one `queue` share them."""

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """Core subscription; in effect at the server when this returns."""

    async def tail(self, subject: str, handler: RawHandler) -> Subscription:
        """Core subscription for the hot path: no headers, no per-message objects; in effect when this returns."""

    async def last(self, stream: str, subject: str) -> Message | None:
        """The newest message of one subject. Expiry and delete markers are returned with `deleted` set."""

    async def snapshot(self, stream: str, subject_filter: str) -> Sequence[Message]:
        """The newest message of every matching subject, in sequence order, markers included (`deleted`)."""

    async def replay(
        self, stream: str, subject_filter: str, *, from_seq: int = 1, limit: int = 100_000
    ) -> Sequence[Message]:
        """Stored messages of a subject or wildcard from a sequence on, in sequence order."""

    async def page(self, stream: str, subject_filter: str, *, from_seq: int = 1, bytes_max: int) -> Page:
        """The first of what `replay` gives, up to `bytes_max` and one message. For each page the server looks twice at
        every message of the stream from there on, whatever its subject: few pages, and late in the stream, are what
        makes it quick."""

    async def gather(self, stream: str, subjects: Collection[str], *, within_s: float = 0) -> Sequence[Message]:
        """What is stored on any of these subjects, in sequence order; with `within_s`, what was stored in the last so
        many seconds. The server walks through the stream once, not once per subject. Raises NoStream, Unanswered."""

    async def remove(self, stream: str, seq: int) -> bool:
        """Delete one stored message; false when it is not there. Raises NoStream, Unanswered, BusError."""

    async def stream_state(self, stream: str) -> StreamState: ...

    async def counts(self, stream: str, subject_filter: str) -> Mapping[str, int]:
        """How many messages are stored on each matching subject. The server looks at subjects alone, at no message.
        Raises NoStream, Unanswered, BusError."""

    async def consumer(self, stream: str, durable: str) -> Consumer: ...

    async def close(self) -> None:
        """Send what is buffered, then leave. Safe to call twice."""
