"""The drain of one replica: the tasks that run may finish within a time, which may be moved while they do. What is left
then makes way, and another replica goes on; what cannot is lost with the engine, which counts as an attempt.
"""

import asyncio
from typing import Final

from llorch_poold.slots import Slots
from llorch_shared.lifecycle import Stop

LOOK_S: Final = 0.5
"""How soon another end of a drain that is under way counts."""


class Drain:
    """True once it is wished; that cannot be taken back. `timeout_s` is what the node gives."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s: Final = timeout_s
        self._wish: Final = Stop()
        self._until = 0.0

    def __bool__(self) -> bool:
        return bool(self._wish)

    @property
    def reason(self) -> str:
        """Of the first wish; empty before it."""
        return self._wish.reason

    def wish(self, reason: str, timeout_s: float | None) -> None:
        """Within `timeout_s`, or what the node gives. Of several wishes the last one's time counts."""
        self._until = _now() + (self._timeout_s if timeout_s is None else timeout_s)
        self._wish.wish(reason)

    def hurry(self) -> None:
        """Whatever time was given: no more than the node gives from now on."""
        self._until = min(self._until, _now() + self._timeout_s)

    async def wished(self) -> None:
        await self._wish.wait()

    async def finish(self, slots: Slots) -> None:
        """Wait until no task runs any more, or none that could make way."""
        while not await slots.finished(max(0.0, min(LOOK_S, self._until - _now()))):
            if _now() >= self._until:
                await slots.hand_over()
                return


def _now() -> float:
    return asyncio.get_running_loop().time()
