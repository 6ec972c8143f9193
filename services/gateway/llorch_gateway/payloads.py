"""Prompts that no bus message holds, as callers are told of them. What a client refers to by itself is looked for, so
that it hears at once, and not from its task, that there is no such thing.
"""

from typing import Final

from llorch_gateway.call import Call
from llorch_gateway.failures import unavailable
from llorch_shared import payloads
from llorch_shared.bus.port import Bus, Full
from llorch_shared.errors import invalid
from llorch_shared.objects import ObjectDamaged, Objects
from llorch_shared.wire.task import TaskRequest


class Payloads:
    def __init__(self, bus: Bus) -> None:
        self._objects: Final = Objects(bus)

    async def check(self, request: TaskRequest, call: Call) -> None:
        """Of a reference that the client made itself. Raises OrchError, BusError."""
        ref = request.payload_ref
        if ref is None:
            return
        if call.bound:
            # Whose it is cannot be told: another tenant's prompt would be read by who knows its digest.
            raise invalid("payload_ref: this token has to send the content itself", engine=request.engine)
        try:
            found = await self._objects.find(ref.digest)
        except ObjectDamaged as error:
            raise invalid(f"payload_ref: {error}", engine=request.engine) from error
        if found != ref:
            has = "no such object" if found is None else f"an object of {found.bytes} bytes"
            raise invalid(f"payload_ref: the object store has {has} under {ref.digest}", engine=request.engine)

    async def fitted(self, request: TaskRequest) -> tuple[TaskRequest, bytes]:
        """The request as its message can carry it, and as JSON. Raises OrchError, BusError."""
        try:
            return await payloads.fitted(self._objects, request)
        except ValueError as error:
            raise invalid(f"the prompt is too large: {error}", status=413, engine=request.engine) from error
        except Full as error:
            raise unavailable("the object store has no room for a prompt of this size") from error
