"""Prompts that no bus message holds, as callers are told of them. What a client refers to by itself is looked for, so
that it hears at once, and not from its task, that there is no such thing.
"""

from typing import Final

from llorch_gateway.call import Call
from llorch_gateway.failures import unavailable
from llorch_shared import payloads
from llorch_shared.bus.port import Bus, Full
from llorch_shared.errors import PolicyLabel, Refused, invalid
from llorch_shared.object_share import ShareFull
from llorch_shared.objects import ObjectDamaged, Objects
from llorch_shared.wire.task import TaskRequest

SHARE_RETRY_MS: Final = 60_000
"""Objects go with their age, which is days: there is no hurry."""


class Payloads:
    def __init__(self, bus: Bus, *, share_bytes: int) -> None:
        self._objects: Final = Objects(bus, share_bytes=share_bytes)

    async def check(self, request: TaskRequest) -> None:
        """Of a reference that the client made itself. Raises OrchError, BusError."""
        ref = request.payload_ref
        if ref is None:
            return
        try:
            found = await self._objects.find(ref.digest)
        except ObjectDamaged as error:
            raise invalid(f"payload_ref: {error}", engine=request.engine) from error
        if found != ref:
            has = "no such object" if found is None else f"an object of {found.bytes} bytes"
            raise invalid(f"payload_ref: the object store has {has} under {ref.digest}", engine=request.engine)

    async def fitted(self, request: TaskRequest, call: Call) -> tuple[TaskRequest, bytes]:
        """The request as its message can carry it, and as JSON. Raises OrchError, BusError."""
        try:
            return await payloads.fitted(self._objects, request, tenant=call.tenant)
        except ValueError as error:
            raise invalid(f"the prompt is too large: {error}", status=413, engine=request.engine) from error
        except ShareFull as error:
            raise share_full(error, engine=request.engine) from error
        except Full as error:
            raise unavailable("the object store has no room for a prompt of this size") from error


def share_full(error: ShareFull, *, engine: str | None = None) -> Refused:
    """What else the tenant puts there has to grow old first."""
    return Refused(
        str(error),
        policy_label=PolicyLabel.OBJECT_QUOTA,
        retry_after_ms=SHARE_RETRY_MS,
        engine=engine,
        hint="large prompts, artifacts and traces are kept for seven days; send prompts under 768 KiB meanwhile",
    )
