"""Turns one admission message into an event, and says when it is poison: what cannot be read as a task.

A request that can be read and fails a guard is no poison: its task ends with the guard's error. One that cannot be read
ends its task, too, where an id can be found, and is set aside as a dead letter besides. A message of a newer version is
set aside unread: what it would mean by a task id is not known here, and a task that ended could not be replayed.

What a tenant queued itself is told by its subject, which the bus has written, and by nothing that the tenant wrote. It
is judged as a gateway judges a caller that is bound to its tenant. In the services' own account everybody operates the
system, and a message that names a lane is a gateway's, which has judged it.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from llorch_scheduler.core.events import AdmissionRef, TaskArrived
from llorch_shared import subjects
from llorch_shared.bus.port import Message, TooLarge
from llorch_shared.errors import ErrorBody, OrchError, invalid
from llorch_shared.guards import check_bound, check_pool, check_request
from llorch_shared.identifiers import is_correlation_id, is_name, is_uuid
from llorch_shared.models import Models
from llorch_shared.readable import named_task
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import REQUEST_DECODER, Priority, TaskRequest
from llorch_shared.wire.version import Kind, NewerVersion, Unreadable, check_version, decode

PAYLOAD_BYTES_MAX: Final = 1_000_000
"""What is over this cannot travel on inside a run record and a placement, which add some kilobytes."""
UNKNOWN_TENANT: Final = "default"
GATEWAY_BEHIND_MS: Final = 5_000
"""How long a gateway may not have heard of a change of the catalog: what it accepted meanwhile is kept."""


HadModel = Callable[[str, int], bool]
"""(model reference, Unix milliseconds): whether the pool had another model than now, and this one, at that time."""

SessionSince = Callable[[str, str], int | None]
"""(tenant, session id): when the account of the session was opened, Unix milliseconds; None where it has none."""


class Reading(NamedTuple):
    event: TaskArrived | None
    """None where not even a task id can be read: then there is nobody to tell."""
    poison: Exception | None
    """Why the message is to be set aside; None for a request that could be read."""


def read_admission(
    message: Message,
    *,
    pool_id: str,
    pool: PoolSpec | None,
    priority: Priority,
    at_ms: int,
    stream: str,
    had_model: HadModel,
    models: Models,
    session_since: SessionSince,
) -> Reading:
    """Never raises for what the message is made of. The subject says tenant and priority, whatever the payload says."""
    request: TaskRequest | None = None
    problem: ErrorBody | None = None
    poison: Exception | None = None
    queued = subjects.queued_by(message.subject)
    tenant = queued.tenant
    try:
        request = _request(message)
        moved = pool is not None and request.model_ref != pool.model
        stored_ms = message.stored_ms or at_ms
        _guard(request, pool, queued, had_model=moved and had_model(request.model_ref, stored_ms))
        if subjects.LANE_HEADER in message.headers and not queued.itself:
            # It has looked before it stored the task, as it knew the catalog then, and which sessions are old ones.
            models.check(request, stored_ms=stored_ms - GATEWAY_BEHIND_MS, session_since_ms=0)
        else:
            since_ms = session_since(tenant, request.session_id.lower())
            models.check(request, stored_ms=stored_ms, session_since_ms=since_ms)
    except NewerVersion as error:
        return Reading(None, error)
    except (Unreadable, TooLarge) as error:
        poison, problem = error, invalid(f"the request cannot be read: {error}").body
    except OrchError as error:
        problem = error.body
    task_id = request.task_id.lower() if request is not None else _task_id(message)
    if not task_id:
        return Reading(None, poison)
    if request is not None and request.task_id != task_id:
        request = msgspec.structs.replace(request, task_id=task_id)
    lane = _lane(message, queued)
    correlation_id = message.headers.get(subjects.CORRELATION_HEADER, "")
    event = TaskArrived(
        at_ms=at_ms,
        ref=AdmissionRef(stream, message.seq),
        task_id=task_id,
        pool_id=pool_id,
        priority=priority,
        tenant=tenant if is_name(tenant) else UNKNOWN_TENANT,
        lane=lane,
        correlation_id=correlation_id if is_correlation_id(correlation_id) else task_id,
        channel="nats" if subjects.is_bus_lane(lane) else "http",
        admitted_ms=message.stored_ms or at_ms,
        request=request,
        problem=problem,
    )
    return Reading(event, poison)


def _request(message: Message) -> TaskRequest:
    """Raises NewerVersion, Unreadable, TooLarge."""
    check_version(Kind.ADMISSION, message.headers)
    if len(message.data) > PAYLOAD_BYTES_MAX:
        raise TooLarge(f"{len(message.data)} bytes; at most {PAYLOAD_BYTES_MAX} are taken")
    return decode(Kind.ADMISSION, REQUEST_DECODER, message.data, message.headers)


def _guard(request: TaskRequest, pool: PoolSpec | None, queued: subjects.Queued, *, had_model: bool) -> None:
    """Raises OrchError."""
    if not is_name(queued.tenant):
        raise invalid(f"the subject's last word, {queued.tenant[:80]!r}, is no tenant")
    if queued.itself:
        check_bound(request)
    check_request(request)
    if pool is not None:
        check_pool(request, pool, had_model=had_model)


def _lane(message: Message, queued: subjects.Queued) -> str:
    """A gateway's, or that of the tenant in the subject: nobody's tokens go to what another tenant hears, nor those of
    who queued its task itself to a gateway that does not wait for them."""
    claimed = message.headers.get(subjects.LANE_HEADER, "")
    if is_name(claimed) and not subjects.is_bus_lane(claimed) and not queued.itself:
        return claimed
    return subjects.bus_lane(queued.tenant) if is_name(queued.tenant) else subjects.BUS_LANE


def _task_id(message: Message) -> str:
    """From what can be read of the payload, else from the message id."""
    for text in (named_task(message.data), message.headers.get("Nats-Msg-Id", "")):
        if is_uuid(text):
            return text.lower()
    return ""
