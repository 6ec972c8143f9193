"""The system for other services on the bus: every operation, typed, and streams as events. No HTTP.

    async with connect("nats://127.0.0.1:4222") as client:
        accepted = await client.submit(request)
        async for event in client.stream(accepted.task_id):
            ...

A tenant's user (`orchctl bus-users`) may call what its tenant may. Stored tokens are not open to it: what it did not
hear of a stream this client asks the gateways for. It cannot write objects, so its prompts have to fit into a message.

An operation is a request to the gateways' queue group, answered by the function that serves HTTP callers. What a
gateway refuses is a `Refusal`; a bus that does not answer is a `BusError`.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import msgspec

from llorch_shared import subjects
from llorch_shared.bus import nats
from llorch_shared.bus.port import Bus, Message, NoResponder, Unanswered
from llorch_shared.errors import ErrorBody
from llorch_shared.http_api import OPERATIONS
from llorch_shared.objects import Objects
from llorch_shared.payloads import fitted
from llorch_shared.settings import NatsSettings, Secret
from llorch_shared.stream_reading import StreamEvent, StreamReading
from llorch_shared.wire.frames import StoredEvents, parse_cursor
from llorch_shared.wire.registry import Capabilities, PoolHealth
from llorch_shared.wire.run import TaskView
from llorch_shared.wire.task import TaskAccepted, TaskRequest

T = TypeVar("T")

STATUS_HEADER: Final = "Nats-Service-Error-Code"
INTERNAL: Final = 500
"""From this status on it is not the question's fault."""
ANSWER_WITHIN_S: Final = 10.0
TRIES: Final = 4
PAUSE_S: Final = 0.25
"""Before the second try, doubling: gateways are replaced one by one, and a moment later another one answers."""

REPEATABLE: Final = frozenset({"submitTask", "cancelTask"})
"""POST, and yet the same when they are asked twice."""

_TWINS: Final = {operation.operation_id: operation for operation in OPERATIONS if operation.twin}
_encode: Final = msgspec.json.Encoder().encode


@asynccontextmanager
async def connect(
    url: str = "nats://127.0.0.1:4222",
    *,
    name: str = "client",
    settings: NatsSettings | None = None,
    password: str = "",
) -> AsyncIterator["Client"]:
    """`settings` for anything beyond the address: user, nkey, TLS. Waits for a bus that is not there yet; cancel to
    stop trying."""
    wanted = settings or NatsSettings(url=url)
    bus = await nats.connect(wanted, name=name, password=Secret(password) if password else None)
    try:
        yield Client(bus)
    finally:
        await bus.close()


class Refusal(Exception):
    """A gateway said no. `status` is what HTTP callers would get; `body.retry_after_ms` when to come back."""

    def __init__(self, status: int, body: ErrorBody) -> None:
        super().__init__(f"{body.code}: {body.message}")
        self.status: Final = status
        self.body: Final = body


class Client:
    """One connection for any number of tasks at once."""

    def __init__(self, bus: Bus) -> None:
        self._bus: Final = bus
        self._readings: Final[set[StreamReading]] = set()
        bus.on_disconnect(self._away)

    async def submit(self, request: TaskRequest) -> TaskAccepted:
        """The same task_id again is the same task, so this repeats itself while nobody answers. Prompts that no message
        holds go into the object store first. Raises Refusal, BusError, ValueError for more than any object holds."""
        _, data = await fitted(Objects(self._bus), request)
        return await self._asked("submitTask", data, TaskAccepted)

    async def get(self, task_id: str) -> TaskView:
        return await self.call("getTask", TaskView, task_id=task_id)

    async def cancel(self, task_id: str) -> TaskView:
        """The task as it ended, its slot free; or as it stands, when that took too long and the wish is stored."""
        return await self.call("cancelTask", TaskView, task_id=task_id)

    async def capabilities(self) -> Capabilities:
        return await self.call("getCapabilities", Capabilities)

    async def health(self, pool_id: str) -> PoolHealth:
        return await self.call("getPoolHealth", PoolHealth, pool_id=pool_id)

    async def call(self, operation_id: str, answer: type[T], **fields: Any) -> T:
        """Any operation of the contract that has a twin on the bus, by its operationId; `fields` are its parameters by
        their keys and its body's fields. Raises Refusal, BusError; KeyError for an operation without a twin."""
        return await self._asked(operation_id, _encode(fields), answer)

    async def command(self, operation_id: str, **fields: Any) -> None:
        """The same for an operation that answers nothing when it is done."""
        await self._answered(operation_id, _encode(fields))

    async def stream(self, task_id: str, *, after: str = "") -> AsyncIterator[StreamEvent]:
        """Every event from the beginning, or after the token `<attempt>-<index>`, up to `End` or `ErrorBody`. Read by
        as many as like, at any time while tokens are kept. Raises ValueError for an `after` that is no cursor; Refusal
        404 for a task that is not its tenant's, where the gateways are asked."""
        reading = StreamReading(
            self._bus, task_id.lower(), parse_cursor(after) if after else None, ask=self._stored_events
        )
        self._readings.add(reading)
        try:
            async for event in reading.events():
                yield event
        finally:
            self._readings.discard(reading)

    async def _stored_events(self, task_id: str, cursor: str) -> StoredEvents:
        place = {"cursor": cursor} if cursor else {}
        try:
            return await self.call("listTaskEvents", StoredEvents, task_id=task_id, **place)
        except Refusal as refusal:
            if refusal.status < INTERNAL:
                raise
            raise Unanswered(str(refusal)) from refusal

    async def _asked(self, operation_id: str, payload: bytes, answer: type[T]) -> T:
        return msgspec.json.decode((await self._answered(operation_id, payload)).data, type=answer)

    async def _answered(self, operation_id: str, payload: bytes) -> Message:
        operation = _TWINS[operation_id]
        subject = subjects.api(operation.twin)
        headers = {subjects.CORRELATION_HEADER: str(uuid.uuid4())}
        repeats = operation.method != "POST" or operation_id in REPEATABLE
        pause = PAUSE_S
        for left in reversed(range(TRIES)):
            try:
                message = await self._bus.request(subject, payload, headers=headers, timeout_s=ANSWER_WITHIN_S)
                if STATUS_HEADER in message.headers:
                    raise Refusal(
                        int(message.headers[STATUS_HEADER]), msgspec.json.decode(message.data, type=ErrorBody)
                    )
                return message
            except NoResponder:
                if not left:
                    raise
            except Unanswered:
                if not (left and repeats):
                    raise
            await asyncio.sleep(pause)
            pause *= 2
        raise AssertionError("unreachable: the last try raises")

    def _away(self) -> None:
        for reading in self._readings:
            reading.lost()
