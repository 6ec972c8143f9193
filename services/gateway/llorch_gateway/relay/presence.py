"""Whether anybody still reads a task: when its last reader left before the end, the task is cancelled after a grace in
which nobody came back, here or at another gateway. A task that nobody ever read runs to its end.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from llorch_gateway.call import Call
from llorch_gateway.relay.router import Router
from llorch_shared import subjects
from llorch_shared.bus.port import Bus, BusError, Message, Subscription

log = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 2.0
"""How long the other gateways have to say that they read the task; one that is busy must not cost it its life."""

Cancel = Callable[[str, Call], Awaitable[None]]


class Presence:
    """`grace_s` 0 with `enabled` cancels at once. `cancel` is called at most once per departure."""

    def __init__(self, *, bus: Bus, router: Router, cancel: Cancel, enabled: bool, grace_s: float) -> None:
        self._bus: Final = bus
        self._router: Final = router
        self._cancel: Final = cancel
        self._enabled: Final = enabled
        self._grace_s: Final = grace_s
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._in_grace: Final[set[str]] = set()
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(subjects.ALL_READERS, self._asked)

    async def close(self) -> None:
        for task in self._leaving.values():
            task.cancel()
        if self._subscription is not None:
            await self._subscription.close()

    def came(self, task: str) -> None:
        leaving = self._leaving.pop(task, None)
        if leaving is not None:
            leaving.cancel()

    def left(self, task: str, call: Call) -> None:
        """A reader is gone and the stream had not ended."""
        if self._enabled and not self._router.reads(task) and task not in self._leaving:
            self._leaving[task] = asyncio.create_task(self._after_grace(task, call), name=f"grace of {task}")

    async def _after_grace(self, task: str, call: Call) -> None:
        try:
            await self._grace(task)
            if self._router.reads(task) or await self._read_elsewhere(task):
                return
            self._leaving.pop(task, None)
            await self._cancel(task, call)
        except BusError as error:
            log.warning("a task without readers could not be cancelled: %s", error, extra={"task_id": task})
        finally:
            if self._leaving.get(task) is asyncio.current_task():
                del self._leaving[task]

    async def _grace(self, task: str) -> None:
        self._in_grace.add(task)
        try:
            await asyncio.sleep(self._grace_s)
        finally:
            self._in_grace.discard(task)

    async def _read_elsewhere(self, task: str) -> bool:
        """Ask every gateway; silence means that nobody reads it, and that nobody has left another one so lately that
        its grace is not over."""
        answered = asyncio.Event()
        inbox = subjects.readers_answer(task, self._router.lane)
        subscription = await self._bus.subscribe(inbox, lambda _message: answered.set())
        try:
            self._bus.publish(subjects.readers(task), self._router.lane.encode())
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await answered.wait()
            return True
        except TimeoutError:
            return False
        finally:
            await subscription.close()

    def _asked(self, message: Message) -> None:
        task = subjects.last_token(message.subject)
        asker = message.data.decode("utf-8", "replace")
        if asker != self._router.lane and (self._router.reads(task) or task in self._in_grace):
            try:
                self._bus.publish(subjects.readers_answer(task, asker), b"")
            except ValueError as error:
                log.warning("somebody asks for readers with a bad name: %s", error)
