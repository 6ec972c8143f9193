"""The wish to cancel a task, as one attempt comes to know of it: heard, or stored while nobody here listened.

The stored wish is read beside the claim. What is stored after that read is heard, unless the connection broke
meanwhile; where nobody told, as while the stream has no leader and the claim waits for one, it is read again.
"""

import asyncio
import logging
from typing import Final

import msgspec

from llorch_poold.attempt_request import Conclude
from llorch_poold.core.task import Cancelled, Phase, TaskCore
from llorch_poold.node_context import NodeContext
from llorch_shared.bus.port import BusError, Message
from llorch_shared.wire.run import CANCEL_DECODER

log = logging.getLogger(__name__)

READ_TRIES_MAX: Final = 5


class Cancellation:
    """Of one attempt, which it concludes. A wish that comes before the claim is kept until the task is this node's to
    end; one that comes when the attempt has an outcome is too late."""

    def __init__(self, node: NodeContext, core: TaskCore, conclude: Conclude) -> None:
        self._node: Final = node
        self._core: Final = core
        self._conclude: Final = conclude
        self._task_id: Final = core.run.task_id
        self._reading: asyncio.Task[Message | None] | None = None
        self._early = ""
        """The reason of a wish that came before the claim stood."""
        self._look_again = False
        """The connection broke before the claim stood, or the bus did not tell whether there is a wish."""
        self._stored_ms = 0
        """By the clock of the bus; 0 while the stored wish has not been read."""

    def begin(self) -> None:
        """Read the stored wish, while the task is being claimed."""
        self._reading = asyncio.create_task(self._stored(), name=f"cancelled? {self._task_id}")

    def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    def heard(self, data: bytes) -> None:
        """A wish names its task by its subject; what cannot be read of its payload is not needed to obey it."""
        try:
            reason = CANCEL_DECODER.decode(data).reason
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            reason = "client"
        if self._core.phase is Phase.CLAIMING:
            self._early = self._early or reason
        else:
            self._conclude(Cancelled(reason))

    async def claimed(self) -> None:
        """The claim stands: obey what was wished before it."""
        assert self._reading is not None
        self._obey(await self._reading)
        if self._early:
            self._conclude(Cancelled(self._early))
        if self._look_again:
            await self._look()

    async def reconnected(self) -> None:
        """Obey what was stored while nobody listened."""
        if self._core.phase is Phase.CLAIMING:
            self._look_again = True
        else:
            await self._look()

    async def took_ms(self, free_ms: int) -> int | None:
        """From the stored wish until the slot was free. It was stored by the clock of the bus, which may be ahead."""
        if not self._stored_ms:
            message = await self._stored()
            self._stored_ms = message.stored_ms if message is not None else 0
        return max(0, free_ms - self._stored_ms) if self._stored_ms else None

    async def _look(self) -> None:
        if self._core.phase not in (Phase.DROPPED, Phase.ENDED):
            self._obey(await self._stored())

    def _obey(self, wish: Message | None) -> None:
        if wish is not None:
            self._stored_ms = wish.stored_ms
            self.heard(wish.data)

    async def _stored(self) -> Message | None:
        """None also when the bus does not tell."""
        await asyncio.sleep(0)  # the claim is sent first
        for _ in range(READ_TRIES_MAX):
            try:
                message = await self._node.runs.cancel_wish(self._task_id)
            except BusError as error:
                log.debug("reading the cancel wish of %s: %s", self._task_id, error)
                if not self._node.bus.connected:
                    break
            else:
                return None if message is None or message.deleted else message
        self._look_again = True
        return None
