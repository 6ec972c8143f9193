"""Reads several subjects of a stream in one walk of the server through it.

A direct get looks at every message of the stream for one subject; hundreds of them one after the other keep the server
for seconds. A consumer for the moment has one filter per subject, walks once, and is deleted when it has given what was
stored when it was made.
"""

import asyncio
import logging
import secrets
from collections.abc import Collection
from typing import Final

import msgspec

from llorch_shared.bus.nats_link import Link
from llorch_shared.bus.nats_parser import parse_header
from llorch_shared.bus.nats_reads import moment
from llorch_shared.bus.nats_streams import ApiError, Streams
from llorch_shared.bus.port import BusError, Message, Unanswered

log = logging.getLogger(__name__)

PULL_MESSAGES: Final = 4000
"""Asked for at once: what the server may have on its way to a reader that is slower than it."""
STALLED_S: Final = 5.0
"""Longest silence: the server was killed, or the connection broke."""
FORGOTTEN_AFTER_S: Final = 10
"""When the server drops a consumer whose reader died."""


class Walk:
    """One of them. `run` it once."""

    def __init__(self, link: Link, streams: Streams, stream: str, subjects: Collection[str], within_s: float) -> None:
        self._link: Final = link
        self._streams: Final = streams
        self._stream: Final = stream
        self._subjects: Final = subjects
        self._within_s: Final = within_s
        self._name: Final = f"walk-{secrets.token_hex(6)}"
        self._found: list[Message] = []
        self._arrived: Final = asyncio.Event()
        self._trouble = ""

    async def run(self) -> list[Message]:
        """Raises NoStream, Unanswered, BusError."""
        inbox = self._link.new_inbox()
        subscription = await self._link.subscribe(inbox, sink=self._take)
        try:
            made = await self._streams.api(f"CONSUMER.CREATE.{self._stream}.{self._name}", self._config())
            await self._pull_all(made["num_pending"], inbox)
            await self._delete()
        finally:
            await subscription.close()
        return self._found

    def _config(self) -> dict[str, object]:
        since = {"deliver_policy": "by_start_time", "opt_start_time": moment(self._within_s)} if self._within_s else {}
        return {
            "stream_name": self._stream,
            "config": {
                "name": self._name,
                "ack_policy": "none",
                **since,
                "filter_subjects": sorted(self._subjects),
                "inactive_threshold": FORGOTTEN_AFTER_S * 1_000_000_000,
                "mem_storage": True,
                "num_replicas": 1,
            },
            "action": "create",
        }

    async def _pull_all(self, count: int, inbox: str) -> None:
        while (missing := count - len(self._found)) > 0:
            batch = min(missing, PULL_MESSAGES)
            self._link.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}",
                msgspec.json.encode({"batch": batch, "expires": int(STALLED_S * 1e9)}),
                reply=inbox,
            )
            await self._arrival(len(self._found) + batch)

    async def _arrival(self, count: int) -> None:
        while len(self._found) < count:
            if self._trouble:
                raise Unanswered(f"{self._stream} stopped after {len(self._found)} messages: {self._trouble}")
            self._arrived.clear()
            try:
                async with asyncio.timeout(STALLED_S):
                    await self._arrived.wait()
            except TimeoutError:
                raise Unanswered(f"{self._stream} stopped after {len(self._found)} messages") from None

    def _take(self, subject: bytes, reply: bytes, data: bytes, header: bytes) -> None:
        if header:
            status, self._trouble, headers = parse_header(header)
            if status:
                self._arrived.set()
                return
        else:
            headers = {}
        seq, stored_ms = _stored(reply)
        self._found.append(Message(subject=subject.decode(), data=data, headers=headers, seq=seq, stored_ms=stored_ms))
        self._arrived.set()

    async def _delete(self) -> None:
        """One that is left is forgotten by the server itself."""
        try:
            await self._streams.api(f"CONSUMER.DELETE.{self._stream}.{self._name}")
        except (ApiError, BusError) as error:
            log.debug("the consumer %s is left to the server: %s", self._name, error)


def _stored(reply: bytes) -> tuple[int, int]:
    """(stream sequence, stored at in ms) of
    `$JS.ACK.[domain.account.]stream.consumer.deliveries.seq.consumer_seq.nanoseconds.…`"""
    fields = reply.split(b".")
    at = 5 if len(fields) < 11 else 7
    return int(fields[at]), int(fields[at + 2]) // 1_000_000
