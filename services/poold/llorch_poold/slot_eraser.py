"""Erases from an engine's slots what it holds of sessions that have ended: in idle slots only, one call each.

A slot is out of service while it is erased, and nobody's cached prompt if that fails: tasks in it start cold until a
later look has erased it.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Container
from typing import Final

from llorch_poold.adapters.port import EngineBroke
from llorch_poold.core.slot_memory import SlotMemory
from llorch_poold.engine_life import EngineLife
from llorch_shared.logs import narrate

log = logging.getLogger(__name__)


class SlotEraser:
    """Of one replica. `freed` is called when a slot is in service again."""

    def __init__(self, freed: Callable[[], None]) -> None:
        self._freed: Final = freed
        self._replica_id = ""
        self._life: EngineLife | None = None
        self.memory = SlotMemory(0)
        self.busy: Final[dict[int, asyncio.Task[None]]] = {}
        """Slots that are being erased."""

    def open(self, replica_id: str, life: EngineLife) -> None:
        self._replica_id, self._life, self.memory = replica_id, life, SlotMemory(life.slots)

    def close(self) -> None:
        """The engine is gone, with all it held."""
        self._life, self.memory = None, SlotMemory(0)
        for task in self.busy.values():
            task.cancel()

    def sweep(self, running: Container[int]) -> None:
        """Erase what is due in slots that no task is in."""
        if self._life is None:
            return
        for slot in self.memory.due():
            if slot not in running and slot not in self.busy:
                task = asyncio.create_task(self._erase(self._life, slot), name=f"erase slot {slot}")
                self.busy[slot] = task
                task.add_done_callback(functools.partial(self._done, slot))

    async def settled(self, slot: int) -> None:
        """Wait until it is not being erased."""
        if (erasing := self.busy.get(slot)) is not None:
            await asyncio.wait({erasing})

    async def _erase(self, life: EngineLife, slot: int) -> None:
        try:
            tokens = await life.adapter.erase_slot(slot)
        except EngineBroke as error:
            narrate(
                log,
                f"slot {slot} of {self._replica_id} still holds the text of a session that has ended: {error}",
                actor="poold",
                action="session.erase_failed",
                target=self._replica_id,
                level=logging.WARNING,
            )
            return
        self.memory.erased(slot)
        narrate(
            log,
            f"slot {slot} of {self._replica_id} was erased, {tokens} tokens: a session has ended",
            actor="poold",
            action="session.erased",
            target=self._replica_id,
        )

    def _done(self, slot: int, _: asyncio.Task[None]) -> None:
        self.busy.pop(slot, None)
        self._freed()
