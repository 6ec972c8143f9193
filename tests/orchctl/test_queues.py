"""Queues as `orchctl status` shows them."""

import asyncio
import io

import msgspec
import pytest
from rich.console import Console

from llorch_ctl.commands.status import screen
from llorch_ctl.core.queues import classes_of
from llorch_ctl.snapshot import PoolStatus, SystemStatus, told_loads
from llorch_shared import streams, subjects
from llorch_shared.bus.memory import MemoryBus
from llorch_shared.bus.memory_server import MemoryServer
from llorch_shared.wire.policy import AdmissionSpec, PrioritySpec
from llorch_shared.wire.registry import ClassLoad, FlowLoad, PoolLoad
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority

POOL = PoolSpec(
    id="p",
    engine=Engine.MOCK,
    model="m",
    admission=AdmissionSpec(priorities=(PrioritySpec(name=Priority.BATCH, queue_capacity=30),)),
)
NOISY = FlowLoad(queued=8, work_ms=8_000, weight=1, pace_ms=4_000)
QUIET = FlowLoad(queued=1, work_ms=1_000, weight=3, throttled=True)
LOAD = PoolLoad(
    pool_id="p",
    at_ms=1,
    snapshot_version=1,
    queued={"interactive": 9, "batch": 1},
    queue_seq={},
    running=1,
    slots_total=1,
    slots_free=0,
    replicas_ready=1,
    service_ms=1_000,
    classes={
        "batch": ClassLoad(queued=1, work_ms=500, weight=1, flows_weight=1, shed="62 % start late", shed_for_ms=9_000),
        "interactive": ClassLoad(
            queued=9, work_ms=9_000, weight=4, flows_weight=4, flows={"quiet": QUIET, "noisy": NOISY}, promised=True
        ),
    },
)


def test_classes_and_tenants_are_told_with_their_due_and_what_they_get() -> None:
    interactive, batch = classes_of(POOL, LOAD)
    assert (interactive.priority, interactive.waiting, interactive.capacity) == (Priority.INTERACTIVE, 9, 256)
    assert (interactive.share, batch.share, batch.capacity) == (0.8, 0.2, 30)
    assert (interactive.promised, batch.shed, batch.shed_for_ms) == (True, "62 % start late", 9_000)
    noisy, quiet = interactive.tenants
    assert (noisy.tenant, noisy.share, noisy.gets, noisy.throttled) == ("noisy", 0.2, 0.25, False)
    assert (quiet.tenant, quiet.share, quiet.gets, quiet.throttled) == ("quiet", 0.6, None, True)
    assert noisy.predicted_wait_ms > 2 * quiet.predicted_wait_ms > 0
    assert batch.tenants_untold == 1


def test_an_empty_class_is_told_what_it_would_get() -> None:
    idle = ClassLoad(queued=0, work_ms=0, weight=8, flows_weight=0)
    [line] = classes_of(POOL, msgspec.structs.replace(LOAD, classes={"interactive": idle}, slots_free=1))
    assert (line.share, line.predicted_wait_ms, line.tenants) == (1.0, 0, ())


def test_the_screen_says_who_is_held_back_and_why() -> None:
    row = PoolStatus(
        pool_id="p",
        engine=Engine.MOCK,
        model_ref="m",
        replicas_wanted=1,
        replicas_ready=1,
        slots_total=1,
        running=1,
        queued=LOAD.queued,
        capacity=256,
        classes=classes_of(POOL, LOAD),
    )
    out = Console(file=io.StringIO(), width=200)
    out.print(screen(SystemStatus(healthy=True, services=(), nodes=(), pools=(row,), replicas=())))
    assert isinstance(out.file, io.StringIO)
    said = out.file.getvalue()
    for words in ("refused for 9.0 s: 62 % start late", "held back by its quota", "places are promised", "9/256"):
        assert words in said


async def test_reports_are_waited_for_until_each_pool_has_one_or_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = MemoryServer()
    reader, scheduler = MemoryBus(server, name="orchctl"), MemoryBus(server, name="scheduler")
    await reader.ensure(streams.base())
    monkeypatch.setattr("llorch_ctl.snapshot.LOADS_WITHIN_S", 10)
    reading = asyncio.create_task(told_loads(reader, frozenset({"p", "q"})))
    async with asyncio.timeout(10):
        while not reading.done():
            scheduler.publish(subjects.load("p"), b"not a report")
            for pool in ("p", "q"):
                scheduler.publish(subjects.load(pool), msgspec.json.encode(msgspec.structs.replace(LOAD, pool_id=pool)))
            await asyncio.sleep(0.001)
    assert set(await reading) == {"p", "q"}
    assert await told_loads(reader, frozenset()) == {}
    await reader.close()
    await scheduler.close()


async def test_a_pool_that_nobody_tells_of_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llorch_ctl.snapshot.LOADS_WITHIN_S", 0.05)
    assert await told_loads(MemoryBus(MemoryServer(), name="orchctl"), frozenset({"p"})) == {}
