"""Changes by compare-and-set that lose to another writer: they are made anew on what that one has just written."""

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from llorch_shared.bus.port import WrongSequence

TRIES_MAX: Final = 5

T = TypeVar("T")


async def retry_on_conflict(attempt: Callable[[], Awaitable[T]], *, tries: int = TRIES_MAX) -> T:
    """What `attempt` returns, which reads and then writes over what it has read. Raises WrongSequence when the last of
    `tries` has lost, too, and whatever else `attempt` raises."""
    for _ in range(tries - 1):
        try:
            return await attempt()
        except WrongSequence:
            continue
    return await attempt()
