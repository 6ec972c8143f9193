"""Erases from an engine's slots what it holds of sessions that have ended: in idle slots only, one call each.

A slot is out of service while it is erased, and nobody's cached prompt if that fails: tasks in it start cold until it
has been erased, or another prompt has taken the place of the text. An engine that fails is asked ever less often, one
slot at a time, and is replaced when it has failed too often (`core/erasure.py`) and no task is in it.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Collection
from typing import Final

from llorch_poold.adapters.port import EngineFailure
from llorch_poold.core.erasure import ErasurePatience
from llorch_poold.core.slot_memory import SlotMemory
from llorch_poold.engine_life import EngineLife
from llorch_poold.node_context import ReplicaFacts
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics

log = logging.getLogger(__name__)


class SlotEraser:
    """Of one replica. `running` are the slots that tasks are in, `freed` is called when a slot is in service again, and
    `replace` with the reason when the engine should be replaced; no task is in it then."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        running: Callable[[], Collection[int]],
        freed: Callable[[], None],
        replace: Callable[[str], None],
    ) -> None:
        self._metrics: Final = metrics
        self._running: Final = running
        self._freed: Final = freed
        self._replace: Final = replace
        self._patience: Final = ErasurePatience()
        self._replica_id = self._pool_id = ""
        self._life: EngineLife | None = None
        self._later: asyncio.TimerHandle | None = None
        self.memory = SlotMemory(0)
        self.busy: Final[dict[int, asyncio.Task[None]]] = {}
        """Slots that are being erased."""

    def open(self, facts: ReplicaFacts, life: EngineLife) -> None:
        self._replica_id, self._pool_id = facts.replica_id, facts.pool_id
        self._life, self.memory = life, SlotMemory(life.slots)
        self._patience.new_engine()

    def close(self) -> None:
        """The engine is gone, with all it held."""
        self._life, self.memory = None, SlotMemory(0)
        for task in self.busy.values():
            task.cancel()
        self._sleep(None)
        if self._pool_id:
            self._metrics.gauge("slots_unerased").labels(self._pool_id, self._replica_id).set(0)

    def sweep(self) -> None:
        """Erase what is due in slots that no task is in."""
        if self._life is None:
            return
        due, running = self.memory.due(), self._running()
        failing = self._patience.failures > 0
        self._metrics.gauge("slots_unerased").labels(self._pool_id, self._replica_id).set(len(due) if failing else 0)
        idle = [slot for slot in due if slot not in running and slot not in self.busy]
        if not idle:
            return
        if self._patience.is_over and not running and not self.busy:
            self._patience.replaced()
            self._life = None
            self._replace("it does not erase what it holds of sessions that have ended")
            return
        if failing:
            if (pause_s := self._patience.pause_s(_clock())) > 0:
                self._sleep(pause_s)
                return
            idle = [] if self.busy else idle[:1]
        for slot in idle:
            task = asyncio.create_task(self._erase(self._life, slot), name=f"erase slot {slot}")
            self.busy[slot] = task
            task.add_done_callback(functools.partial(self._done, slot))

    def _sleep(self, pause_s: float | None) -> None:
        """Look again then. None: never."""
        if self._later is not None:
            self._later.cancel()
        self._later = None if pause_s is None else asyncio.get_running_loop().call_later(pause_s, self.sweep)

    async def _erase(self, life: EngineLife, slot: int) -> None:
        began = _clock()
        try:
            tokens = await life.adapter.erase_slot(slot)
        except EngineFailure as error:
            self._failed(slot, began, error)
            return
        self._patience.erased()
        self.memory.erased(slot)
        self._tell(f"slot {slot} of {self._replica_id} was erased, {tokens} tokens: a session has ended", "erased")

    def _failed(self, slot: int, began: float, error: EngineFailure) -> None:
        """Said when it begins, and when nothing more is done about it."""
        self._metrics.counter("erasures_failed_total").labels(self._pool_id).inc()
        hopeless = self._patience.is_hopeless
        counts = self._patience.failed(began, _clock())
        what = f"slot {slot} of {self._replica_id} still holds the text of a session that has ended"
        if counts and self._patience.failures == 1:
            self._tell(f"{what}; tasks start cold there until it is erased: {error}", "erase_failed", logging.WARNING)
        elif self._patience.is_hopeless and not hopeless:
            self._tell(f"{what}, and a new engine does not erase it either: {error}", "erase_failed", logging.ERROR)

    def _tell(self, says: str, action: str, level: int = logging.INFO) -> None:
        narrate(log, says, actor="poold", action=f"session.{action}", target=self._replica_id, level=level)

    def _done(self, slot: int, task: asyncio.Task[None]) -> None:
        self.busy.pop(slot, None)
        self._freed()
        if task.cancelled():
            return
        if (fault := task.exception()) is not None:
            log.error("erasing slot %d of %s failed by a fault of the node", slot, self._replica_id, exc_info=fault)
        else:
            self.sweep()


def _clock() -> float:
    return asyncio.get_running_loop().time()
