"""The same operations for bus clients: request and reply on `api.*`, shared by all gateways.

An error is an ErrorBody as JSON, with the headers that NATS micro services use for errors. `Nats-Service-Error-Code` is
the HTTP status its twin would have.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from llorch_gateway.call import Call, correlation_of
from llorch_gateway.failures import as_orch_error
from llorch_gateway.operations import OPERATION, Handler, Handlers, asked_on_the_bus
from llorch_shared import subjects
from llorch_shared.bus.port import Bus, Message, Subscription
from llorch_shared.http_api import Operation

QUEUE: Final = "gateways"
CONCURRENCY: Final = 256
BUS_IDENTITY: Final = "bus"
ERROR_CODE_HEADER: Final = "Nats-Service-Error-Code"
ERROR_HEADER: Final = "Nats-Service-Error"

_encode: Final = msgspec.json.Encoder().encode

Respond = Callable[[Message], Awaitable[tuple[bytes, Mapping[str, str]]]]


class BusApi:
    """Serves every handler whose operation has a twin."""

    def __init__(self, *, bus: Bus, handlers: Handlers, tenant: str) -> None:
        self._bus: Final = bus
        self._handlers: Final = handlers
        self._tenant: Final = tenant
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        for name, handler in self._handlers.items():
            operation = OPERATION[name]
            if operation.twin:
                respond = self._responder(operation, handler)
                self._subscriptions.append(
                    await self._bus.serve(subjects.api(operation.twin), respond, queue=QUEUE, concurrency=CONCURRENCY)
                )

    async def stop(self) -> None:
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()

    def _responder(self, operation: Operation, handler: Handler) -> Respond:
        async def respond(message: Message) -> tuple[bytes, Mapping[str, str]]:
            correlation = correlation_of(message.headers.get(subjects.CORRELATION_HEADER))
            headers = {subjects.CORRELATION_HEADER: correlation}
            call = Call(correlation, BUS_IDENTITY, "nats", self._tenant)
            try:
                answer = await handler(asked_on_the_bus(operation, call, message.data))
                return answer.encoded(), {**headers, **dict(answer.headers)}
            except Exception as error:  # noqa: BLE001  (this is the edge: every failure becomes an answer)
                told = as_orch_error(error, correlation)
                headers[ERROR_CODE_HEADER] = str(told.status)
                headers[ERROR_HEADER] = told.code
                return _encode(told.body), headers

        return respond
