"""The port on nats-server: joins the parts, decides nothing itself.

nats_client    the library's connection: TLS, authentication, reconnect, server pool
nats_parser    reads the socket            nats_link      writes it, asks, subscribes
nats_denials   what the server forbids     nats_listening subscriptions that were taken away
nats_inbox     matches answers             nats_streams   ensures streams, stores
nats_reads     reads streams               nats_consumer  pulls from durables
nats_topology  keeps it standing
"""

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Final

from llorch_shared.bus.markers import is_marker
from llorch_shared.bus.nats_consumer import NatsConsumer
from llorch_shared.bus.nats_inbox import header_block
from llorch_shared.bus.nats_link import Link, LinkSubscription
from llorch_shared.bus.nats_outbox import SendLimit
from llorch_shared.bus.nats_parser import Sink, parse_header
from llorch_shared.bus.nats_reads import Reads
from llorch_shared.bus.nats_streams import API_TIMEOUT_S, Streams
from llorch_shared.bus.nats_topology import TopologyKeeper
from llorch_shared.bus.nats_walk import Walk
from llorch_shared.bus.nats_watch import ServerWatch
from llorch_shared.bus.port import (
    DISCONNECTED,
    BusError,
    Handler,
    Message,
    NoResponder,
    Page,
    RawHandler,
    Responder,
    Stored,
    StreamState,
    Subscription,
)
from llorch_shared.bus.topology import Topology
from llorch_shared.metrics import Metrics
from llorch_shared.settings import NatsSettings, Secret

log = logging.getLogger(__name__)

SERVE_BACKLOG: Final = 16
"""Requests waiting per running one; more are not answered, and the caller's timeout tells it so."""


async def connect(
    settings: NatsSettings,
    *,
    name: str,
    password: Secret | None = None,
    metrics: Metrics | None = None,
    on_closed: Callable[[], None] | None = None,
    send_limit: SendLimit | None = None,
    others_first: bool = False,
) -> "NatsBus":
    """Connect, for as long as it takes: a line every few seconds says what is in the way; cancel to stop trying.

    `name` is `service` or `service/instance`; the inbox is `_INBOX_<service>.<instance>` unless the settings name
    another, so that permissions can keep one service, and one node, from reading another's answers. `on_closed` is
    told when the connection has ended for good. `send_limit`: of what must not be sent late.
    `others_first`: streams that are missing are left to others for a moment, for who may not make any.
    """
    prefix = settings.inbox_prefix or f"_INBOX_{name.replace('.', '_').replace('/', '.')}"
    link = Link(name, inbox_prefix=prefix, metrics=metrics, send_limit=send_limit)
    bus = NatsBus(link, copies=settings.replicas, servers=settings.url.count(",") + 1, others_first=others_first)
    if on_closed is not None:
        link.closed = on_closed
    try:
        await link.connect(settings, password=password)
    except BaseException:
        await link.close()
        raise
    return bus


INBOXES: Final = "_"
"""How every inbox begins, and none of our subjects. Nobody's question makes this process publish anything else."""


class NatsBus:
    """`Bus` on nats-server. Made by `connect`."""

    def __init__(self, link: Link, *, copies: int = 1, servers: int = 1, others_first: bool = False) -> None:
        self.name: Final = link.name
        self._link: Final = link
        self._streams: Final = Streams(link, others_first=others_first)
        self._reads: Final = Reads(link, self._streams, copies=copies)
        self._topology: Final = TopologyKeeper(link.name, self._streams)
        self._watch: Final = ServerWatch(link.name, self._streams, leave=link.hang_up if servers > 1 else None)
        self._on_disconnect: list[Callable[[], None]] = []
        self._consumers: weakref.WeakSet[NatsConsumer] = weakref.WeakSet()
        self._tasks: set[asyncio.Task[None]] = set()
        self._topology.stands = self._stands
        link.up = lambda: self._topology.up(first=link.generation == 1)
        link.down = self._down

    @property
    def connected(self) -> bool:
        return self._link.connected

    @property
    def problem(self) -> str:
        if denied := self._link.denied:
            return denied
        if not self._link.connected:
            return DISCONNECTED
        return "" if self._topology.standing.is_set() else "restoring streams"

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        self._topology.on_return(callback)

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        self._on_disconnect.append(callback)

    def on_cluster_change(self, callback: Callable[[], None]) -> None:
        self._link.on_cluster_change(callback)

    def _down(self) -> None:
        self._topology.down()
        for callback in self._on_disconnect:
            try:
                callback()
            except Exception:
                log.exception("a disconnect callback failed")

    def _stands(self) -> None:
        for consumer in tuple(self._consumers):
            consumer.wake()

    async def ensure(self, topology: Topology) -> None:
        await self._topology.ensure(topology)
        if topology.streams:
            self._watch.start(topology.streams[0].name)

    async def forget(self, topology: Topology) -> None:
        self._topology.forget(topology)

    async def hang_up(self) -> None:
        await self._link.hang_up()

    def publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._link.publish(subject, data, header_block(headers) if headers else b"")

    async def flush(self) -> None:
        await self._link.flush()

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
        sent = dict(headers) if headers else {}
        if msg_id:
            sent["Nats-Msg-Id"] = msg_id
        if expect_seq is not None:
            sent["Nats-Expected-Last-Subject-Sequence"] = str(expect_seq)
        if ttl_s:
            sent["Nats-TTL"] = f"{round(ttl_s * 1000)}ms"
        return await self._streams.store(subject, data, sent, timeout_s)

    async def store_batch(
        self, messages: Sequence[tuple[str, bytes]], *, new: Collection[str] = (), msg_id: str = ""
    ) -> None:
        await self._streams.store_batch(messages, new, msg_id, API_TIMEOUT_S)

    async def request(
        self, subject: str, data: bytes, *, headers: Mapping[str, str] | None = None, timeout_s: float = 2.0
    ) -> Message:
        block = header_block(headers) if headers else b""
        answer = await self._link.ask(subject, data, block, timeout_s=timeout_s)
        if answer.status == 503:
            raise NoResponder(f"nobody answers {subject}")
        return Message(subject=answer.subject.decode(), data=answer.data, headers=answer.headers)

    async def serve(
        self, subject: str, responder: Responder, *, queue: str = "", concurrency: int = 64
    ) -> Subscription:
        free = asyncio.Semaphore(concurrency)
        waiting = 0

        async def answer(message: Message) -> None:
            nonlocal waiting
            try:
                async with free:
                    data, headers = await responder(message)
                if message.reply.startswith(INBOXES):
                    self._link.publish(message.reply, data, header_block(headers) if headers else b"")
            except BusError as error:
                log.info("a request on %s is not answered: %s", subject, error)
            except Exception:
                log.exception("answering a request on %s failed", subject)
            finally:
                waiting -= 1

        def accept(message: Message) -> None:
            nonlocal waiting
            if waiting >= concurrency * SERVE_BACKLOG:
                log.warning("%s: too many requests on %s, one not answered", self.name, subject)
                self._link.count("requests_full")
                return
            waiting += 1
            task = asyncio.create_task(answer(message), name=f"answer {subject}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return await self._link.subscribe(subject, queue, sink=_message_sink(accept))

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        return await self._link.subscribe(subject, sink=_message_sink(handler))

    async def tail(self, subject: str, handler: RawHandler) -> LinkSubscription:
        return await self._link.subscribe(subject, raw=handler)

    async def last(self, stream: str, subject: str) -> Message | None:
        return await self._reads.last(stream, subject)

    async def snapshot(self, stream: str, subject_filter: str) -> Sequence[Message]:
        return await self._reads.snapshot(stream, subject_filter)

    async def replay(
        self, stream: str, subject_filter: str, *, from_seq: int = 1, limit: int = 100_000
    ) -> Sequence[Message]:
        return await self._reads.replay(stream, subject_filter, from_seq, limit)

    async def page(self, stream: str, subject_filter: str, *, from_seq: int = 1, bytes_max: int) -> Page:
        return await self._reads.page(stream, subject_filter, from_seq, bytes_max)

    async def gather(self, stream: str, subjects: Collection[str], *, within_s: float = 0) -> Sequence[Message]:
        return await Walk(self._link, self._streams, stream, subjects, within_s).run()

    async def remove(self, stream: str, seq: int) -> bool:
        return await self._streams.remove(stream, seq)

    async def stream_state(self, stream: str) -> StreamState:
        return await self._streams.state(stream)

    async def counts(self, stream: str, subject_filter: str) -> Mapping[str, int]:
        return await self._streams.counts(stream, subject_filter)

    async def consumer(self, stream: str, durable: str) -> NatsConsumer:
        consumer = NatsConsumer(self._link, self._streams, self._topology, stream, durable)
        await consumer.open()
        self._consumers.add(consumer)
        return consumer

    async def close(self) -> None:
        self._topology.stop()
        await self._watch.stop()
        for task in tuple(self._tasks):
            task.cancel()
        for consumer in tuple(self._consumers):
            await consumer.close()
        await self._link.close()


def _message_sink(handler: Handler) -> Sink:
    def sink(subject: bytes, reply: bytes, data: bytes, header: bytes) -> None:
        if not header:
            handler(Message(subject=subject.decode(), data=data, reply=reply.decode()))
            return
        _, _, headers = parse_header(header)
        seq = headers.get("Nats-Sequence", "0")
        handler(
            Message(
                subject=subject.decode(),
                data=data,
                headers=headers,
                seq=int(seq) if seq.isdigit() else 0,
                reply=reply.decode(),
                deleted=is_marker(headers),
            )
        )

    return sink
