"""The node's fence at work: closed when the bus or a registry key is lost, opened when it is known what is still ours.

After a gap, in this order: the streams stand and every key is confirmed again; the run records of the tasks here are
read, and what others took over is let go; what the node kept of the others is published again. Only then new frames
follow. What the connection had not sent when a key was not confirmed in time is dropped with the connection: it would
leave late. A gap that lasts so long that others must have the tasks ends their engine calls here.

Not here: when the fence may open (`core/fence.py`), what a task does that is no longer ours (`task_run.py`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from math import inf
from typing import Final

from llorch_poold.core.retention import KeptFrames
from llorch_poold.node_context import NodeContext
from llorch_poold.outlet import FLUSH_BYTES, fence_clock
from llorch_poold.task_run import TaskRun
from llorch_shared.bus.port import BusError
from llorch_shared.logs import narrate

log = logging.getLogger(__name__)

RETRY_S: Final = 0.05
LOOK_FIRST_S: Final = 2.0
"""A node that slept tries to reach the bus for so long before it takes its tasks for somebody else's."""


class _Gap(Exception):
    """A key or the connection was lost while ownership was read: it has to be read again."""


class Ownership:
    """One per node. `runs` are the tasks it holds now."""

    def __init__(self, node: NodeContext, runs: Callable[[], Iterable[TaskRun]]) -> None:
        self._node: Final = node
        self._fence: Final = node.fence
        self._runs: Final = runs
        self._fenced: Final = node.metrics.gauge("node_fenced")
        self._standing = True
        """The connection is whole, its streams included."""
        self._changed: Final = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._fenced.set(1)
        self._keeping = asyncio.create_task(self._keep(), name="ownership")

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    # what the registrar and the bus tell

    def confirmed(self, key: str, started: float) -> None:
        self._fence.renewed(key, started, fence_clock())
        self._changed.set()

    def left(self, key: str) -> None:
        self._fence.left(key)
        self._changed.set()

    def lost(self) -> None:
        self._standing = False
        self._fence.close()
        self._changed.set()

    def returned(self) -> None:
        self._standing = True
        self._changed.set()

    async def publish_again(self) -> bool:
        """The token log may lack what was published lately, although nothing was lost here. False when it may lack it
        still; true, too, when all of it is published anyway as soon as the node may speak again."""
        if fence_clock() >= self._fence.until:
            return True
        try:
            published, _ = await self._publish_kept(self._fence.epoch)
            await self._node.bus.flush()
        except BusError as error:
            log.warning("the token log may lack some frames; they are published again soon: %s", error)
            return False
        except _Gap:
            return True
        self._tell(f"the token log may lack some: {published} kept frame messages published again", logging.INFO)
        return True

    # what follows

    async def _keep(self) -> None:
        await self._until_open()
        while True:
            await self._until_closed()
            self._fenced.set(1)
            if self._standing:
                self._tell("a registry key of this node was not confirmed in time; it is silent", logging.WARNING)
                self._standing = False
                await self._node.bus.hang_up()
            published = await self._until_open()
            self._tell(f"the bus is back: {published} kept frame messages published again", logging.INFO)

    async def _until_closed(self) -> None:
        while (left := self._fence.until - fence_clock()) > 0:
            await self._until_changed(left)
        self._fence.look(fence_clock())

    async def _until_changed(self, left_s: float) -> bool:
        """At most so long; false when nothing did."""
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s if left_s < inf else None):
                await self._changed.wait()
        return self._changed.is_set()

    def _let_go(self) -> None:
        """Others have these tasks: their slots and the work of the engines are wasted on them. What has ended here, and
        only waits to be stored, is left to the compare-and-set."""
        runs = [run for run in self._runs() if run.let_go("its node was cut off for so long that others must have it")]
        if runs:
            self._tell(f"cut off for too long: {len(runs)} tasks are no longer asked of the engines", logging.WARNING)

    async def _until_open(self) -> int:
        """How many messages were published again."""
        while True:
            while not (self._standing and self._fence.holds(fence_clock())):
                left_s = self._fence.given_away_at - fence_clock()
                changed = await self._until_changed(max(left_s, LOOK_FIRST_S))
                if not changed and left_s <= 0:
                    self._let_go()
            try:
                published = await self._take_up(self._fence.epoch)
            except (BusError, _Gap) as error:
                log.info("what this node still owns is read again: %s", str(error) or type(error).__name__)
                await asyncio.sleep(RETRY_S)
            else:
                self._fenced.set(0)
                return published

    async def _take_up(self, epoch: int) -> int:
        """Raises BusError, _Gap."""
        told = await asyncio.gather(*(run.reconnected() for run in self._runs()), return_exceptions=True)
        for problem in told:
            if isinstance(problem, BaseException):
                raise problem
        published, said = await self._publish_kept(epoch)
        if not self._fence.open(epoch, fence_clock()):
            raise _Gap
        for kept in self._node.retention.all():
            published += self._publish(kept, said.get(kept, 0))
        self._node.outlet.opened()
        return published

    async def _publish_kept(self, epoch: int) -> tuple[int, dict[KeptFrames, int]]:
        """All that is kept now; returns how far each task's frames have been published. Raises BusError, _Gap."""
        published, size = 0, 0
        said: dict[KeptFrames, int] = {}
        for kept in self._node.retention.all():
            if epoch != self._fence.epoch or not self._fence.holds(fence_clock()):
                raise _Gap
            published += self._publish(kept, 0)
            said[kept] = len(kept.parts)
            size += kept.size
            if size > FLUSH_BYTES:
                size = 0
                await self._node.bus.flush()
            await asyncio.sleep(0)
        return published, said

    def _publish(self, kept: KeptFrames, first: int) -> int:
        count = 0
        for data in kept.messages(first):
            self._node.bus.publish(kept.subject, data)
            count += 1
        return count

    def _tell(self, says: str, level: int) -> None:
        action = "bus.reconnected" if level == logging.INFO else "node.fenced"
        narrate(log, says, actor="poold", action=action, target=self._node.node_id, level=level)
