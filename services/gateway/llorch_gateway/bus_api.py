"""The same operations for bus clients: request and reply on `api.*`, shared by all gateways.

An error is an ErrorBody as JSON, with the headers that NATS micro services use for errors. `Nats-Service-Error-Code` is
the HTTP status its twin would have.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from llorch_gateway.admissions import Admissions
from llorch_gateway.call import Call, correlation_of
from llorch_gateway.control import told_capabilities, told_health
from llorch_gateway.failures import as_orch_error
from llorch_gateway.snapshot import Snapshot
from llorch_gateway.tasks import Tasks, task_id
from llorch_shared import subjects
from llorch_shared.bus.port import Bus, Message, Subscription
from llorch_shared.errors import invalid
from llorch_shared.wire.registry import PoolRef
from llorch_shared.wire.task import REF_DECODER

QUEUE: Final = "gateways"
CONCURRENCY: Final = 256
BUS_IDENTITY: Final = "bus"
ERROR_CODE_HEADER: Final = "Nats-Service-Error-Code"
ERROR_HEADER: Final = "Nats-Service-Error"

_encode: Final = msgspec.json.Encoder().encode
_POOL_REF: Final = msgspec.json.Decoder(PoolRef)

Answer = Callable[[bytes, Call], Awaitable[bytes]]


class BusApi:
    def __init__(self, *, bus: Bus, admissions: Admissions, tasks: Tasks, snapshot: Snapshot, tenant: str) -> None:
        self._bus: Final = bus
        self._admissions: Final = admissions
        self._tasks: Final = tasks
        self._snapshot: Final = snapshot
        self._tenant: Final = tenant
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        served: Mapping[str, Answer] = {
            subjects.API_SUBMIT: self._submit,
            subjects.API_CANCEL: self._cancel,
            subjects.API_GET: self._get,
            subjects.API_CAPABILITIES: self._capabilities,
            subjects.API_HEALTH: self._health,
        }
        for subject, answer in served.items():
            responder = self._responder(answer)
            self._subscriptions.append(await self._bus.serve(subject, responder, queue=QUEUE, concurrency=CONCURRENCY))

    async def stop(self) -> None:
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()

    def _responder(self, answer: Answer) -> Callable[[Message], Awaitable[tuple[bytes, Mapping[str, str]]]]:
        async def respond(message: Message) -> tuple[bytes, Mapping[str, str]]:
            correlation = correlation_of(message.headers.get(subjects.CORRELATION_HEADER))
            headers = {subjects.CORRELATION_HEADER: correlation}
            call = Call(correlation, BUS_IDENTITY, "nats", self._tenant)
            try:
                return await answer(message.data, call), headers
            except Exception as error:  # noqa: BLE001  (this is the edge: every failure becomes an answer)
                told = as_orch_error(error, correlation)
                headers[ERROR_CODE_HEADER] = str(told.status)
                headers[ERROR_HEADER] = told.code
                return _encode(told.body), headers

        return respond

    async def _submit(self, data: bytes, call: Call) -> bytes:
        return _encode(await self._admissions.submit(data, call))

    async def _cancel(self, data: bytes, call: Call) -> bytes:
        _, view = await self._tasks.cancel(_task(data), call)
        return _encode(view)

    async def _get(self, data: bytes, call: Call) -> bytes:
        return _encode(await self._tasks.get(_task(data), call))

    async def _capabilities(self, _data: bytes, _call: Call) -> bytes:
        return _encode(told_capabilities(self._snapshot))

    async def _health(self, data: bytes, call: Call) -> bytes:
        try:
            ref = _POOL_REF.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise invalid(str(error)) from error
        return _encode(told_health(self._snapshot, ref.pool_id, call))


def _task(data: bytes) -> str:
    try:
        return task_id(REF_DECODER.decode(data).task_id)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise invalid(str(error)) from error
