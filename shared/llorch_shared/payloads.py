"""Prompts that no bus message holds: put into the object store before their task is admitted, which refers to them.

The same prompt again is the same object, so a repeated request costs one question.
"""

from typing import Final

import msgspec

from llorch_shared.objects import Objects
from llorch_shared.wire.task import INLINE_BYTES_MAX, Payload, TaskRequest

_encode: Final = msgspec.json.Encoder().encode


async def fitted(objects: Objects, request: TaskRequest, *, tenant: str = "") -> tuple[TaskRequest, bytes]:
    """The request as its message can carry it, and as JSON; an object counts to `tenant`, or to nobody. Raises
    ValueError for more than any object holds, ShareFull, Full when the store has no room, BusError."""
    data = _encode(request)
    if len(data) <= INLINE_BYTES_MAX or request.payload_ref is not None:
        return request, data
    payload = Payload(prompt=request.prompt, messages=request.messages, inputs=request.inputs)
    ref = await objects.put(_encode(payload), tenant=tenant)
    small = msgspec.structs.replace(request, prompt=None, messages=None, inputs=None, payload_ref=ref)
    return small, _encode(small)
