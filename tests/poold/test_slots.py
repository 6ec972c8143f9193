"""A replica's slots: who gets which, and when, also while the engine erases one."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llorch_poold import slots
from llorch_poold.core.slot_memory import Session
from llorch_poold.slots import Slots

DEADLINE_S = 15.0
ANN = Session("blue", "ann")


class Engine:
    """Erases when it is told that it may."""

    alive, slots = True, 1

    def __init__(self) -> None:
        self.adapter = self
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    async def erase_slot(self, slot: int) -> int:
        self.asked.set()
        await self.may.wait()
        return 3

    def submit(self, call: Any, sink: Any) -> Any:
        return None


class Run:
    """A task that is in its slot for as long as the test wants."""

    task_id, session, generated, left = "task", ANN, True, False
    may_end: asyncio.Event
    begun: list["Run"]

    def __init__(self, *_: Any, slot: int, **__: Any) -> None:
        self.slot = slot

    async def run(self) -> None:
        self.begun.append(self)
        await self.may_end.wait()

    async def audit(self) -> None:
        pass


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Slots:
    Run.may_end, Run.begun = asyncio.Event(), []
    monkeypatch.setattr(slots, "TaskRun", Run)
    monkeypatch.setattr(slots, "session_of", lambda _: ANN)
    return Slots(cast(Any, None), timeouts=cast(Any, None), dropped=lambda: None)


async def until(question: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not question():
            await asyncio.sleep(0)


async def test_a_task_that_was_fetched_before_its_slot_is_erased_begins_when_it_has_been(held: Slots) -> None:
    engine = Engine()
    held.open(cast(Any, engine), cast(Any, SimpleNamespace(replica_id="r")))
    placement, delivery = cast(Any, SimpleNamespace(run=None)), cast(Any, None)
    held.begin(placement, delivery)
    await until(lambda: Run.begun)
    held.submit(cast(Any, SimpleNamespace(slot=0)), cast(Any, None))
    Run.may_end.set()
    await held.finished(DEADLINE_S)
    assert held.free_slots() == 1

    held.session_ended("ann", "blue")
    held.sweep()
    await engine.asked.wait()
    assert held.free_slots() == 0
    held.begin(placement, delivery)
    await asyncio.sleep(0)
    assert len(Run.begun) == 1
    engine.may.set()
    await until(lambda: len(Run.begun) == 2)
    await held.finished(DEADLINE_S)
    assert held.free_slots() == 1
