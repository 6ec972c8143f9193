"""The same operations for bus clients: request and reply on `api.*`, shared by all gateways.

An error is an ErrorBody as JSON, with the headers that NATS micro services use for errors. `Nats-Service-Error-Code` is
the HTTP status its twin would have. Who asks out of a tenant's account is bound to that tenant, by the server's word;
who asks in the services' account operates the system.
"""

import time
from collections.abc import Mapping
from typing import Final

import msgspec

from llorch_gateway.call import Call, correlation_of
from llorch_gateway.failures import as_orch_error
from llorch_gateway.micro import QUEUE, Discovery, Endpoint
from llorch_gateway.operations import OPERATION, Handler, Handlers, asked_on_the_bus
from llorch_shared import subjects
from llorch_shared.bus.port import Bus, Message, Responder, Subscription
from llorch_shared.bus_accounts import UnknownAccount, asking_tenant
from llorch_shared.errors import invalid
from llorch_shared.http_api import Operation

CONCURRENCY: Final = 256
BUS_IDENTITY: Final = "bus"
ERROR_CODE_HEADER: Final = "Nats-Service-Error-Code"
ERROR_HEADER: Final = "Nats-Service-Error"
ANSWER_BYTES_MAX: Final = 1024 * 1024 - 8192
"""A message of 1 MiB, which every server takes, with its headers."""

_encode: Final = msgspec.json.Encoder().encode


class BusApi:
    """Serves every handler whose operation has a twin, and tells NATS's own tools about them. `instance` names this
    process there."""

    def __init__(self, *, bus: Bus, handlers: Handlers, tenant: str, instance: str) -> None:
        self._bus: Final = bus
        self._served: Final = tuple(
            (Endpoint(OPERATION[name]), handler) for name, handler in handlers.items() if OPERATION[name].twin
        )
        self._tenant: Final = tenant
        self._discovery: Final = Discovery(bus, instance=instance, endpoints=[endpoint for endpoint, _ in self._served])
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Raises BusError; may be called again then."""
        await self.stop()
        for endpoint, handler in self._served:
            subject = subjects.api(endpoint.operation.twin)
            responder = self._responder(endpoint, handler)
            self._subscriptions.append(await self._bus.serve(subject, responder, queue=QUEUE, concurrency=CONCURRENCY))
        await self._discovery.start()

    async def stop(self) -> None:
        await self._discovery.stop()
        for subscription in self._subscriptions:
            await subscription.close()
        self._subscriptions.clear()

    def _responder(self, endpoint: Endpoint, handler: Handler) -> Responder:
        async def respond(message: Message) -> tuple[bytes, Mapping[str, str]]:
            began = time.perf_counter_ns()
            correlation = correlation_of(message.headers.get(subjects.CORRELATION_HEADER))
            headers = {subjects.CORRELATION_HEADER: correlation}
            try:
                call = self._call(message, correlation)
                answer = await handler(asked_on_the_bus(endpoint.operation, call, message.data))
                data = _fitting(answer.encoded(), endpoint.operation)
                endpoint.count(began)
                return data, {**headers, **dict(answer.headers)}
            except Exception as error:  # noqa: BLE001  (this is the edge: every failure becomes an answer)
                told = as_orch_error(error, correlation)
                endpoint.count(began, f"{told.status}:{told.code}")
                headers[ERROR_CODE_HEADER] = str(told.status)
                headers[ERROR_HEADER] = told.code
                return _encode(told.body), headers

        return respond

    def _call(self, message: Message, correlation: str) -> Call:
        """Raises OrchError 403."""
        try:
            tenant = asking_tenant(message.headers)
        except UnknownAccount as error:
            raise invalid(str(error), status=403) from error
        if tenant is None:
            return Call(correlation, BUS_IDENTITY, "nats", self._tenant)
        return Call(correlation, f"{BUS_IDENTITY}:{tenant}", "nats", tenant, bound=True)


def _fitting(data: bytes, operation: Operation) -> bytes:
    """Raises OrchError 413: nobody would hear of an answer that no message holds."""
    if len(data) <= ANSWER_BYTES_MAX:
        return data
    raise invalid(
        f"the answer has {len(data)} bytes; a message holds {ANSWER_BYTES_MAX}",
        status=413,
        hint=f"{operation.method} {operation.path} has it, or ask for fewer with `limit`",
    )
