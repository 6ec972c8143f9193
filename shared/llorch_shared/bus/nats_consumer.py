"""Takes messages of a durable: an own pull loop, because the library's loses what it holds when it raises.

One pull request is out at a time, for at most `PULL_S`. What arrives is held until `fetch` hands it over; a pull whose
connection broke is asked again at once after the reconnect.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from llorch_shared.bus.markers import is_marker
from llorch_shared.bus.nats_link import Link, LinkSubscription
from llorch_shared.bus.nats_parser import parse_header
from llorch_shared.bus.nats_streams import Streams
from llorch_shared.bus.nats_topology import TopologyKeeper
from llorch_shared.bus.port import Delivery, Message, NoStream, Unanswered

log = logging.getLogger(__name__)

PULL_S: Final = 1.0
"""Longest pull. Shorter than the scheduler's lease: a stopped process has none out when its successor resets the
durable, so no message goes to the dead. A pull that got lost without a word costs at most this and the grace."""
PULL_GRACE_S: Final = 1.0
PULL_MESSAGES_MAX: Final = 2000
ACK_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 0.1

_NO_RESPONDERS: Final = 503
_ACK: Final = b"+ACK"


def _ack_fields(reply: bytes) -> tuple[int, int]:
    """(stream sequence, stored at in ms) of
    `$JS.ACK.[domain.account.]stream.consumer.deliveries.seq.consumer_seq.nanoseconds.…`"""
    fields = reply.split(b".")
    at = 5 if len(fields) < 11 else 7
    return int(fields[at]), int(fields[at + 2]) // 1_000_000


class NatsDelivery:
    """Acks are not fenced: the server takes one from whoever sends it, so an ack proves nothing about ownership."""

    __slots__ = ("_link", "message")

    def __init__(self, link: Link, message: Message) -> None:
        self._link: Final = link
        self.message = message

    def drop_payload(self) -> None:
        message = self.message
        self.message = Message(subject=message.subject, data=b"", seq=message.seq, reply=message.reply)

    async def ack(self) -> None:
        """Sent once more when the connection broke meanwhile: a second ack of the same message changes nothing."""
        generation = self._link.generation
        try:
            await self._link.ask(self.message.reply, _ACK, timeout_s=ACK_TIMEOUT_S)
        except Unanswered:
            if self._link.generation == generation and self._link.connected:
                raise
            await self._link.ask(self.message.reply, _ACK, timeout_s=ACK_TIMEOUT_S)


class NatsConsumer:
    def __init__(self, link: Link, streams: Streams, topology: TopologyKeeper, stream: str, durable: str) -> None:
        self._link: Final = link
        self._streams: Final = streams
        self._topology: Final = topology
        self._stream: Final = stream
        self._durable: Final = durable
        self._inbox = ""
        self._subscription: LinkSubscription | None = None
        self._held: deque[NatsDelivery] = deque()
        self._arrived: Final = asyncio.Event()
        self._pull = 0
        self._asked = 0
        """Messages the pull that is out may still bring."""
        self._pull_ends = 0.0
        self._generation = 0
        self._missing = False
        self._loop: Final = asyncio.get_running_loop()

    async def open(self) -> None:
        """Raises NoStream when the durable does not exist."""
        if await self._streams.found(f"CONSUMER.INFO.{self._stream}.{self._durable}") is None:
            raise NoStream(f"{self._stream} has no durable {self._durable}")
        await self._open_inbox()

    async def _open_inbox(self) -> None:
        """A new inbox; what is still on its way to the old one is not for us any more, nor is the pull that is out."""
        inbox = self._link.new_inbox()
        subscription = await self._link.subscribe(f"{inbox}.*", sink=self._on_message)
        if self._subscription is not None:
            await self._subscription.close()
        self._inbox, self._subscription = inbox, subscription
        self._held.clear()
        self._asked = 0

    async def fetch(self, limit: int, wait_s: float) -> Sequence[Delivery]:
        """As soon as there is anything: does not wait for a full batch."""
        deadline = self._loop.time() + wait_s
        if wait_s <= 0 and not self._held and await self._topology.wait_standing(PULL_GRACE_S):
            self._request(limit, 0)
            await self._wait(PULL_GRACE_S)
        while not self._held:
            left = deadline - self._loop.time()
            if left <= 0 or not await self._topology.wait_standing(left):
                break
            if self._missing:
                await self._check_exists(left)
            if not self._is_out():
                self._request(limit, left)
            await self._wait(min(left, self._pull_ends - self._loop.time()))
        return [self._held.popleft() for _ in range(min(limit, len(self._held)))]

    async def _wait(self, timeout_s: float) -> None:
        """Until a message arrived, the pull ended, or the connection came back."""
        self._arrived.clear()
        if self._held:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        except TimeoutError:
            return

    def wake(self) -> None:
        """The connection came back: a waiting fetch asks again."""
        self._arrived.set()

    def _is_out(self) -> bool:
        return self._asked > 0 and self._generation == self._link.generation and self._loop.time() < self._pull_ends

    def _request(self, limit: int, left: float) -> None:
        expires = min(max(left, 0), PULL_S)
        batch = max(1, min(limit, PULL_MESSAGES_MAX))
        body: dict[str, object] = {"batch": batch}
        if expires < 0.001:
            body["no_wait"] = True
        else:
            body["expires"] = int(expires * 1e9)
        self._pull += 1
        self._asked = batch
        self._generation = self._link.generation
        self._pull_ends = self._loop.time() + expires + PULL_GRACE_S
        sent = self._link.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._durable}",
            msgspec.json.encode(body),
            reply=f"{self._inbox}.{self._pull}",
        )
        if not sent:
            self._asked = 0

    def _on_message(self, subject: bytes, reply: bytes, data: bytes, header: bytes) -> None:
        status, words, headers = parse_header(header) if header else (0, "", {})
        if status:
            self._on_status(subject, status, words)
            return
        seq, stored_ms = _ack_fields(reply)
        message = Message(
            subject=subject.decode(),
            data=data,
            headers=headers,
            seq=seq,
            reply=reply.decode(),
            deleted=bool(headers) and is_marker(headers),
            stored_ms=stored_ms,
        )
        self._held.append(NatsDelivery(self._link, message))
        self._asked = max(0, self._asked - 1)
        self._arrived.set()

    def _on_status(self, subject: bytes, status: int, words: str) -> None:
        """The end of a pull, whatever the reason; one that is not the newest says nothing new."""
        if subject.rpartition(b".")[2] != b"%d" % self._pull or status == 100:
            return
        self._asked = 0
        if status == _NO_RESPONDERS or "Consumer Deleted" in words or "Consumer not found" in words:
            self._missing = True
        elif status not in (404, 408, 409):
            log.warning("pull of %s.%s: %s %s", self._stream, self._durable, status, words)
        self._arrived.set()

    async def _check_exists(self, left: float) -> None:
        """Nobody answered a pull: either the durable is gone, or JetStream is not there for a moment."""
        try:
            found = await self._streams.found(f"CONSUMER.INFO.{self._stream}.{self._durable}")
        except (NoStream, Unanswered):
            await asyncio.sleep(min(_RETRY_S, left))
            return
        if found is None:
            raise NoStream(f"{self._stream} has no durable {self._durable}")
        self._missing = False

    async def reset(self) -> None:
        """From the first message on: in a work queue, what is stored is not acknowledged. The durable's own idea of it
        may be ahead: a server that was killed, or had a full disk, may have kept an acknowledgement and not the removal
        of its message, and would never deliver it."""
        await self._open_inbox()
        await self._streams.api(f"CONSUMER.RESET.{self._stream}.{self._durable}", {"seq": 1})

    async def close(self) -> None:
        """What is held and was not handed over goes back to the server at once."""
        if self._subscription is not None:
            await self._subscription.close()
            self._subscription = None
        while self._held:
            self._link.publish(self._held.popleft().message.reply, b"-NAK")
