"""Engines that hang, keep their slots or talk nonsense: their tasks are repeated whole or end typed, never shorter, and
the next task finds a slot that works."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llorch_poold.mock_faults import FaultKind
from llorch_poold.mock_text import text_of
from llorch_shared.wire.task import TaskState
from support.system import System, mock_pool

pytestmark = pytest.mark.system

PROMPT = "Say it whole."
DEADLINE_MS = 24 * 3_600_000
"""However slow the machine: deadlines are not the matter here."""
GARBAGE: list[dict[str, Any]] = [
    {"kind": FaultKind.GARBAGE, "after": 3},
    {"kind": FaultKind.UTF8, "after": 3},
    {"kind": FaultKind.EVENT, "after": 3},
    {"kind": FaultKind.FLOOD, "after": 3},
    {"kind": FaultKind.FAIL, "after": 3},
    {"kind": FaultKind.GAP, "after": 3},
    {"kind": FaultKind.RESET, "after": 3},
    {"kind": FaultKind.EOF, "after": 3},
    {"kind": FaultKind.EOF, "after": 20},
    {"kind": FaultKind.RESET, "after": 20},
    {"kind": FaultKind.MISCOUNT},
    {"kind": FaultKind.ERROR},
    {"kind": FaultKind.ERROR_BODY},
    {"kind": FaultKind.PAGE},
]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    pools = [
        mock_pool("garbage", model="mock:garbage", replicas=1, slots=len(GARBAGE), rate=100),
        mock_pool("stubborn", model="mock:stubborn", replicas=1, slots=2, rate=50),
        mock_pool("silent", model="mock:silent", replicas=1, slots=1, rate=50, timeouts={"idle_ms": 2_000}),
    ]
    settings = {"gateway": {"cancel_wait_ms": 15_000}, "poold": {"slot_free_timeout_ms": 2_000}}
    async with System(tmp_path_factory.mktemp("watched"), pools=pools, settings=settings) as system:
        yield system


async def submitted(system: System, model: str, **changes: Any) -> str:
    fields = {"prompt": PROMPT, "determinism": "strict", "deadline_ms": DEADLINE_MS, **changes}
    return (await system.client().submit(model_ref=model, **fields)).task_id


async def test_what_an_engine_garbles_is_said_again_whole(watched: System) -> None:
    await watched.fault(
        "mock:garbage", *({**fault, "seed": number, "times": 1} for number, fault in enumerate(GARBAGE))
    )
    tasks = [await submitted(watched, "mock:garbage", max_tokens=20, seed=number) for number in range(len(GARBAGE))]
    for number, whole in enumerate(await asyncio.gather(*(watched.client().read(task) for task in tasks))):
        assert whole.error is None
        whole.check()
        assert whole.text == text_of(PROMPT, number, 20)
    views = [await watched.client().get(task) for task in tasks]
    assert {view.state for view in views} == {TaskState.DONE}
    assert min(view.attempt for view in views) > 1, "every one of them had been garbled"
    assert await watched.busy_slots("mock:garbage") == 0


async def test_a_silent_engine_ends_its_task_typed_and_serves_the_next(watched: System) -> None:
    await watched.fault("mock:silent", {"kind": FaultKind.HANG, "after": 3, "times": 1})
    task = await submitted(watched, "mock:silent", max_tokens=20)
    silent = await watched.client().read(task)
    assert silent.error is not None
    assert (silent.error.code, silent.error.retriable) == ("DECODE_TIMEOUT", True)
    assert silent.indices == [0, 1, 2]
    assert (await watched.client().get(task)).state is TaskState.FAILED
    assert await watched.busy_slots("mock:silent") == 0
    whole = await watched.client().read(await submitted(watched, "mock:silent", max_tokens=5))
    assert whole.error is None
    whole.check()


async def test_an_engine_that_keeps_a_cancelled_task_is_replaced_and_its_other_tasks_go_on(watched: System) -> None:
    (url,) = await watched.engine_urls("mock:stubborn")
    await watched.fault("mock:stubborn", {"kind": FaultKind.REFUSE_CANCEL, "times": 1})
    kept = await submitted(watched, "mock:stubborn", max_tokens=2_000)
    await watched.client().read(kept, tokens_max=1)
    pids = watched.engines_of("poold-1")
    neighbour = await submitted(watched, "mock:stubborn", max_tokens=2_000, seed=5)
    begun = await watched.client().read(neighbour, tokens_max=3)
    assert await watched.client().cancel(kept) == 204
    view = await watched.client().get(kept)
    assert view.state is TaskState.CANCELLED
    assert view.cancel_ms is not None
    assert view.cancel_ms >= 2_000
    left = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    assert len(left) == len(pids) - 1, "the receipt means that the engine is no more"

    async def again() -> bool:
        return (await watched.client().get(neighbour)).attempt == 2

    await watched.until(again, "a second attempt of the neighbour", 30)
    seen = len((await watched.client().read(neighbour, into=begun, tokens_max=200)).tokens)
    assert begun.indices == list(range(seen))
    assert begun.text == text_of(PROMPT, 5, seen)
    assert await watched.client().cancel(neighbour) == 204
    assert await watched.busy_slots("mock:stubborn") == 0
    assert await watched.engine_urls("mock:stubborn") != [url] or watched.engines_of("poold-1") != pids
