"""What a task gives its engine, where that was too large for a bus message: read from the object store after the claim.

The digest is checked there; what was never seen by a gateway's guards is guarded here.
"""

import asyncio
from typing import Final

import msgspec

from llorch_shared.bus.port import Bus, BusError
from llorch_shared.errors import ErrorCode, OrchError, PayloadDetail
from llorch_shared.guards import check_request
from llorch_shared.json_values import VALUES_MAX, has_too_many
from llorch_shared.objects import ObjectDamaged, ObjectError, ObjectMissing, Objects
from llorch_shared.readable import UNREADABLE
from llorch_shared.wire.task import PAYLOAD_DECODER, Payload, TaskRequest

READ_TRIES: Final = 4
READ_RETRY_S: Final = 0.25


class PayloadUnusable(Exception):
    """The task cannot run with it, here or anywhere."""

    def __init__(self, code: ErrorCode, message: str, detail: PayloadDetail) -> None:
        super().__init__(message)
        self.code = code
        self.detail = detail


async def whole(bus: Bus, request: TaskRequest) -> TaskRequest:
    """The request with its content in it. Raises PayloadUnusable; BusError when the bus does not tell."""
    ref = request.payload_ref
    if ref is None:
        return request
    data = await _read(bus, ref.digest, ref.bytes)
    if has_too_many(data):
        message = f"payload_ref: {ref.digest} has more than {VALUES_MAX} JSON values"
        raise PayloadUnusable(ErrorCode.INVALID_PARAMS, message, PayloadDetail.PAYLOAD_REFUSED)
    try:
        payload = PAYLOAD_DECODER.decode(data)
        return checked(request, payload)
    except UNREADABLE as error:
        message = f"payload_ref: {ref.digest} is no payload: {error}"
        raise PayloadUnusable(ErrorCode.INVALID_PARAMS, message, PayloadDetail.PAYLOAD_UNREADABLE) from error
    except OrchError as error:
        raise PayloadUnusable(error.code, str(error), PayloadDetail.PAYLOAD_REFUSED) from error


def checked(request: TaskRequest, payload: Payload) -> TaskRequest:
    """Raises OrchError where the guards refuse what the reference stands for."""
    full = msgspec.structs.replace(
        request, payload_ref=None, prompt=payload.prompt, messages=payload.messages, inputs=payload.inputs
    )
    check_request(full)
    return full


async def _read(bus: Bus, digest: str, size: int) -> bytes:
    for number in range(READ_TRIES):
        try:
            return await Objects(bus).get(digest, bytes_max=size)
        except ObjectMissing as error:
            raise PayloadUnusable(ErrorCode.INVALID_PARAMS, str(error), PayloadDetail.PAYLOAD_MISSING) from error
        except ObjectDamaged as error:
            raise PayloadUnusable(ErrorCode.INTERNAL, str(error), PayloadDetail.PAYLOAD_DAMAGED) from error
        except ObjectError as error:
            raise PayloadUnusable(ErrorCode.INVALID_PARAMS, str(error), PayloadDetail.PAYLOAD_REFUSED) from error
        except BusError:
            if number == READ_TRIES - 1:
                raise
        await asyncio.sleep(READ_RETRY_S * 2**number)
    raise AssertionError("unreachable: the last try raises")
