"""A replica's slots: who gets which, and when, also while the engine erases one."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llorch_poold import slots
from llorch_poold.adapters.port import EngineBroke
from llorch_poold.core import erasure
from llorch_poold.core.slot_memory import Session
from llorch_poold.slots import Slots
from llorch_shared.metrics import Metrics

DEADLINE_S = 15.0
ANN = Session("blue", "ann")


class Engine:
    """Erases when it is told that it may, but for the first `failures` times."""

    alive, slots = True, 1

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.killed = ""
        self.adapter = self
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    async def erase_slot(self, slot: int) -> int:
        self.asked.set()
        await self.may.wait()
        if self.failures:
            self.failures -= 1
            raise EngineBroke("erases nothing")
        return 3

    def kill(self, reason: str) -> None:
        self.killed = reason
        self.alive = False

    def submit(self, call: Any, sink: Any) -> Any:
        return None


class Run:
    """A task that is in its slot for as long as the test wants."""

    task_id, session, generated, left = "task", ANN, True, False
    may_end: asyncio.Event
    begun: list["Run"]
    fault: Exception | None = None

    def __init__(self, *_: Any, slot: int, placement: Any, **__: Any) -> None:
        self.slot = slot
        self.placement = placement

    def is_of(self, placement: Any) -> bool:
        return self.placement is placement

    async def run(self) -> None:
        self.begun.append(self)
        await self.may_end.wait()
        if self.fault is not None:
            raise self.fault

    async def audit(self) -> None:
        pass


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Slots:
    Run.may_end, Run.begun, Run.fault = asyncio.Event(), [], None
    monkeypatch.setattr(slots, "TaskRun", Run)
    monkeypatch.setattr(slots, "session_of", lambda _: ANN)
    monkeypatch.setattr(erasure, "PAUSE_FIRST_S", 0.001)
    monkeypatch.setattr(erasure, "PAUSE_MAX_S", 0.001)
    return Slots(cast(Any, SimpleNamespace(metrics=Metrics())), timeouts=cast(Any, None), dropped=lambda: None)


async def until(question: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not question():
            await asyncio.sleep(0)


FACTS: Any = SimpleNamespace(replica_id="r", pool_id="p")
PLACEMENT: Any = SimpleNamespace(run=None)


def another() -> Any:
    return SimpleNamespace(run=object())


async def with_text(held: Slots, engine: Engine) -> None:
    """A task has been in the engine's slot, and its session has ended."""
    Run.may_end.clear()
    Run.begun.clear()
    held.open(cast(Any, engine), FACTS)
    held.begin(PLACEMENT, cast(Any, None))
    await until(lambda: Run.begun)
    held.submit(cast(Any, SimpleNamespace(slot=0)), cast(Any, None))
    Run.may_end.set()
    await held.finished(DEADLINE_S)
    held.session_ended("ann", "blue")
    engine.may.set()


def metric(held: Slots, name: str, **labels: str) -> float | None:
    return held._node.metrics.registry.get_sample_value(name, labels)


async def test_an_engine_that_fails_to_erase_is_asked_again_until_it_has(
    held: Slots, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(failures=erasure.ENOUGH - 1)
    await with_text(held, engine)
    held.sweep()
    await until(lambda: metric(held, "slots_unerased", pool_id="p", replica_id="r") == 1)
    await until(lambda: not held.sessions() and not engine.failures and held.free_slots() == 1)
    await until(lambda: metric(held, "slots_unerased", pool_id="p", replica_id="r") == 0)
    assert metric(held, "erasures_failed_total", pool_id="p") == erasure.ENOUGH - 1
    assert caplog.text.count("still holds the text") == 1
    assert not engine.killed


async def test_an_engine_that_fails_again_and_again_is_replaced_once_when_no_task_is_in_it(
    held: Slots, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(failures=1000)
    await with_text(held, engine)
    held.sweep()
    await until(lambda: engine.killed)
    assert held.free_slots() == 0, "it takes no more"
    held.lose(engine.killed)

    another = Engine(failures=1000)
    await with_text(held, another)
    held.sweep()
    await until(lambda: "a new engine does not erase it either" in caplog.text)
    held.session_ended("ann", "blue")
    held.sweep()
    await until(lambda: another.failures < 1000 - 2 * erasure.ENOUGH)
    assert not another.killed
    assert caplog.text.count("does not erase it either") == 1


async def test_an_engine_with_a_task_in_it_is_not_replaced(held: Slots) -> None:
    engine = Engine(failures=1000)
    engine.slots = 2
    await with_text(held, engine)
    Run.may_end.clear()
    held.begin(PLACEMENT, cast(Any, None))
    held.begin(PLACEMENT, cast(Any, None))
    await until(lambda: len(Run.begun) == 3)
    running = [run.slot for run in Run.begun[1:]]
    assert sorted(running) == [0, 1]
    held.sweep()
    assert not held._eraser.busy
    Run.may_end.set()
    await until(lambda: engine.killed)
    assert not held.runs


async def test_a_task_that_is_signalled_while_its_slot_is_erased_begins_when_it_has_been(held: Slots) -> None:
    engine = Engine()
    held.open(cast(Any, engine), FACTS)
    held.begin(PLACEMENT, cast(Any, None))
    await until(lambda: Run.begun)
    held.submit(cast(Any, SimpleNamespace(slot=0)), cast(Any, None))
    Run.may_end.set()
    await held.finished(DEADLINE_S)
    assert held.free_slots() == 1

    held.session_ended("ann", "blue")
    held.sweep()
    await engine.asked.wait()
    assert held.free_slots() == 0
    held.begin_ahead(another())
    held.begin_ahead(another())
    assert len(Run.begun) == 1
    engine.may.set()
    await until(lambda: len(Run.begun) == 2)
    await held.finished(DEADLINE_S)
    assert held.free_slots() == 1
    assert len(Run.begun) == 2, "no more of them wait than there are slots"


async def test_nothing_that_is_signalled_begins_on_a_replica_that_takes_no_more(held: Slots) -> None:
    engine = Engine()
    held.begin_ahead(PLACEMENT)
    held.open(cast(Any, engine), FACTS)
    Run.may_end.clear()
    held.begin_ahead(another())
    held.begin_ahead(another())
    await until(lambda: bool(Run.begun))
    held.close()
    Run.may_end.set()
    await held.finished(DEADLINE_S)
    assert len(Run.begun) == 1


@pytest.mark.parametrize("fails", [True, False])
async def test_nothing_begins_on_an_engine_that_is_gone(held: Slots, fails: bool) -> None:
    """Whether its last task saw that, or its node could not carry it."""
    engine = Engine()
    held.open(cast(Any, engine), FACTS)
    held.begin(PLACEMENT, cast(Any, None))
    held.begin_ahead(another())
    if fails:
        Run.fault = RuntimeError("a fault of the node")
    else:
        engine.kill("it keeps its slot")
    Run.may_end.set()
    await held.finished(DEADLINE_S)
    held.begin_ahead(another())
    assert not engine.alive
    assert held.free_slots() == 0
    assert len(Run.begun) == 1


async def test_a_placement_that_comes_twice_begins_once(held: Slots) -> None:
    """Stored and then signalled, or signalled twice while it waits for a slot."""
    engine = Engine()
    engine.slots = 2
    held.open(cast(Any, engine), FACTS)
    held.begin(PLACEMENT, cast(Any, None))
    held.begin_ahead(PLACEMENT)
    assert held.free_slots() == 1
    held.begin_ahead(another())
    waits = another()
    held.begin_ahead(waits)
    held.begin_ahead(waits)
    Run.may_end.set()
    await held.finished(DEADLINE_S)
    assert len(Run.begun) == 3
