"""What went wrong, as a client is told: everything that is not an OrchError already becomes one here."""

import logging
from typing import Final

from llorch_shared.bus.port import BusError, Denied, TooLarge
from llorch_shared.errors import ErrorCode, OrchError, invalid
from llorch_shared.wire.version import NewerVersion

log = logging.getLogger(__name__)

BUS_RETRY_MS: Final = 1_000
"""When to ask again while the bus is away: servers restart within seconds."""


def unavailable(message: str, *, pool_id: str | None = None) -> OrchError:
    return OrchError(ErrorCode.POOL_UNAVAILABLE, message, pool_id=pool_id, retry_after_ms=BUS_RETRY_MS)


def as_orch_error(error: BaseException, correlation_id: str) -> OrchError:
    """Never shows an inner message to a client, except the bus's own short ones."""
    if isinstance(error, OrchError):
        return error
    if isinstance(error, TooLarge):
        return invalid("the request is larger than a bus message may be", status=413)
    if isinstance(error, Denied):
        log.error("the bus forbids what a client asked for: %s", error, extra={"correlation_id": correlation_id})
        return unavailable("the bus does not permit this gateway to do that")
    if isinstance(error, NewerVersion):
        return unavailable("a newer release wrote what this asks for; ask another gateway")
    if isinstance(error, BusError):
        return unavailable(f"the bus does not answer: {error}")
    log.error(
        "an operation failed: %s",
        error,
        exc_info=(type(error), error, error.__traceback__),
        extra={"action": "gateway.failed", "correlation_id": correlation_id},
    )
    return OrchError(ErrorCode.INTERNAL, "an internal error; the correlation id finds it in the logs")
