"""The JetStream API as raw JSON: ensure streams and durables, and store. Reading is in `nats_reads`.

Raw, because the client library drops configuration fields it does not know, and reports a full
stream and a missing JetStream with one exception. Answers are judged by the server's `err_code`.
"""

import asyncio
import logging
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from llorch_shared.bus.nats_inbox import header_block
from llorch_shared.bus.nats_link import Link
from llorch_shared.bus.nats_watch import hear
from llorch_shared.bus.port import (
    BusError,
    Denied,
    Duplicate,
    Full,
    NoStream,
    Stored,
    StreamState,
    SubjectFull,
    TooLarge,
    Unanswered,
    WrongSequence,
)
from llorch_shared.bus.topology import Durable, Stream, Topology, changed
from llorch_shared.wall_clock import steady_ns

log = logging.getLogger(__name__)

API_TIMEOUT_S: Final = 5.0
INFO_TIMEOUT_S: Final = 2.0
"""A question that an election swallowed is asked again; it changes nothing."""
BATCH_MESSAGES_MAX: Final = 500
OTHERS_FIRST_S: Final = 2.0
_LOOK_AGAIN_S: Final = 0.1
_ENSURE_ATTEMPTS: Final = 5

_NO_RESPONDERS: Final = 503

_STREAM_NOT_FOUND: Final = 10059
_STREAM_NAME_IN_USE: Final = 10058
_CONSUMER_NOT_FOUND: Final = 10014
_FULL: Final = frozenset({10077, 10023, 10047, 10028, 10122})
"""Limits of the stream, then of storage: the publish was refused and nothing is stored."""
_PER_SUBJECT: Final = "per subject"
"""In the description alone: the server has one code for every limit of a stream."""
_WRONG_SEQUENCE: Final = frozenset({10071, 10164})
_DUPLICATE: Final = 10201
"""Of a batch; a single message is acknowledged as a duplicate."""
_IN_PROCESS: Final = 10158
"""The copies have not agreed yet on an earlier try with the same message id."""
_TOO_LARGE: Final = frozenset({10054, 10097})
"""The message, or its headers alone: a stream takes 64 KiB of these."""
_NO_MESSAGE: Final = frozenset({10037, 10057})
_NO_STREAM: Final = frozenset({_STREAM_NOT_FOUND, _CONSUMER_NOT_FOUND, 10005, 10008, 10009, 10039, 10076})
"""Not found, or JetStream itself is not (yet) there: a cluster that starts has too few peers to place a stream on."""


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
        return SubjectFull(words) if _PER_SUBJECT in refusal.description else Full(words)
    if refusal.err_code in _WRONG_SEQUENCE:
        return WrongSequence(words)
    if refusal.err_code == _DUPLICATE:
        return Duplicate(words)
    if refusal.err_code == _IN_PROCESS:
        return Unanswered(words)
    if refusal.err_code in _TOO_LARGE:
        return TooLarge(words)
    if refusal.err_code in _NO_STREAM:
        return NoStream(words)
    return BusError(words)


class ApiError(BusError):
    """An error of the JetStream API that has no meaning in the port; carries the server's err_code."""

    def __init__(self, words: str, err_code: int) -> None:
        super().__init__(words)
        self.err_code = err_code


class Streams:
    """JetStream through one link. `others_first`: leave it to others for a moment to make streams that are missing."""

    def __init__(self, link: Link, *, others_first: bool = False) -> None:
        self._link: Final = link
        self._patience_s: Final = OTHERS_FIRST_S if others_first else 0.0

    async def api(
        self, call: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = API_TIMEOUT_S
    ) -> dict[str, Any]:
        """One call of `$JS.API`. Raises NoStream, Unanswered, ApiError."""
        data = msgspec.json.encode(body) if body is not None else b""
        reply = await self._ask(call, data, timeout_s)
        if (error := reply.get("error")) is not None:
            refusal = msgspec.convert(error, _Refusal)
            known = refused(refusal)
            raise ApiError(str(known), refusal.err_code) if type(known) is BusError else known
        return reply

    async def _ask(self, call: str, data: bytes, timeout_s: float) -> dict[str, Any]:
        asked_ns = steady_ns()
        answer = await self._link.ask(f"$JS.API.{call}", data, timeout_s=timeout_s)
        if answer.status == _NO_RESPONDERS:
            raise NoStream(f"nobody answers {call}")
        reply: dict[str, Any] = msgspec.json.decode(answer.data)
        hear(self._link.name, reply, asked_ns)
        return reply

    async def ensure(self, topology: Topology) -> None:
        """Create what is missing, change what differs. Several processes may do so at once."""
        patient_until = asyncio.get_running_loop().time() + self._patience_s
        for stream in topology.streams:
            await self._ensure_stream(stream, patient_until)
        for durable in topology.durables:
            await self._ensure_durable(durable)

    async def _ensure_stream(self, stream: Stream, patient_until: float) -> None:
        clock = asyncio.get_running_loop().time
        while clock() < patient_until:
            if await self.found(f"STREAM.INFO.{stream.name}") is not None:
                break
            await asyncio.sleep(_LOOK_AGAIN_S)
        for attempt in range(_ENSURE_ATTEMPTS):
            found = await self.found(f"STREAM.INFO.{stream.name}")
            try:
                if found is None:
                    await self.api(f"STREAM.CREATE.{stream.name}", stream.config)
                elif not _agrees(found, config := changed(found, stream.config)):
                    await self._change_stream(stream.name, config)
                return
            except (ApiError, NoStream) as error:
                raced = isinstance(error, NoStream) or error.err_code == _STREAM_NAME_IN_USE
                if not raced or attempt == _ENSURE_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(0.05 * (attempt + 1))

    async def _change_stream(self, name: str, config: Mapping[str, Any]) -> None:
        """Of services whose users may not, none waits for the one whose user may: the stream serves as it is."""
        try:
            await self.api(f"STREAM.UPDATE.{name}", config)
        except Denied as error:
            log.warning("%s stays as it is, others may change it: %s", name, error, extra={"action": "bus.denied"})

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
        reply = await self._ask(call, b"", INFO_TIMEOUT_S)
        if (error := reply.get("error")) is None:
            config: dict[str, Any] = reply["config"]
            return config
        refusal = msgspec.convert(error, _Refusal)
        if refusal.err_code in (_STREAM_NOT_FOUND, _CONSUMER_NOT_FOUND):
            return None
        raise refused(refusal)

    async def state(self, stream: str) -> StreamState:
        info = await self.api(f"STREAM.INFO.{stream}", timeout_s=INFO_TIMEOUT_S)
        state, cluster = info["state"], info.get("cluster", {})
        leader = cluster.get("leader", "")
        life = f"{info['created']}@{leader}@{cluster.get('leader_since', '')}" if leader else info["created"]
        return StreamState(state["messages"], state["first_seq"], state["last_seq"], life, leader)

    async def counts(self, stream: str, subject_filter: str) -> dict[str, int]:
        """Of the leader, so that what it has acknowledged is counted."""
        found: dict[str, int] = {}
        while True:
            asked = {"subjects_filter": subject_filter, "offset": len(found)}
            info = await self.api(f"STREAM.INFO.{stream}", asked, timeout_s=INFO_TIMEOUT_S)
            page = info["state"].get("subjects") or {}
            found.update(page)
            if not page or len(found) >= info.get("total", 0):
                return found

    async def remove(self, stream: str, seq: int) -> bool:
        try:
            await self.api(f"STREAM.MSG.DELETE.{stream}", {"seq": seq, "no_erase": True})
        except ApiError as error:
            if error.err_code not in _NO_MESSAGE:
                raise
            return False
        return True

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

    async def store_batch(
        self, messages: Sequence[tuple[str, bytes]], new: Collection[str], msg_id: str, timeout_s: float
    ) -> None:
        if not messages:
            return
        if len(messages) > BATCH_MESSAGES_MAX:
            raise ValueError(f"{len(messages)} messages in one batch; at most {BATCH_MESSAGES_MAX}")
        await self._link.wait_connected(timeout_s)
        batch = secrets.token_hex(12)
        last = len(messages)
        for number, (subject, data) in enumerate(messages, start=1):
            headers = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
            if subject in new:
                headers["Nats-Expected-Last-Subject-Sequence"] = "0"
            if msg_id and number == 1:
                headers["Nats-Msg-Id"] = msg_id
            if number < last:
                self._link.publish(subject, data, header_block(headers))
            else:
                await self.store(subject, data, headers | {"Nats-Batch-Commit": "1"}, timeout_s)


def _agrees(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """The server leaves out what is zero or empty."""
    return all(found.get(key) == value or (not value and not found.get(key)) for key, value in wanted.items())
