"""Which engines prove that they can be interrupted, and what the others do instead (ORCH-3086)."""

from typing import Any

import pytest

from llorch_poold.interruption import NotShown, show_interruption
from poold.engines import mock_engine, set_fault
from support.node_harness import mock_pool

SOON_S, PATIENCE_S = 0.5, 15.0
"""Of a time that runs out, and of one that does not."""


@pytest.mark.parametrize(("slots", "rate"), [(1, 100), (4, 100), (1, 1000), (2, 20)])
async def test_an_engine_that_stops_and_repeats_itself_proves_it(slots: int, rate: int) -> None:
    async with mock_engine("--slots", str(slots), "--rate", str(rate), "--ctx", "2048") as (engine, _):
        await show_interruption(engine, mock_pool(slots=slots), slots, PATIENCE_S)
        assert all([await engine.slot_free(slot) for slot in range(slots)])


@pytest.mark.parametrize(
    ("flags", "fault", "says"),
    [
        (["--stamp"], {}, "other tokens the second time"),
        ([], {"kind": "drift", "after": 0, "times": 1}, "other tokens the second time"),
        ([], {"kind": "drift", "after": 2, "times": 1}, "other tokens the second time"),
        ([], {"kind": "refuse_cancel", "times": 1}, "is still busy"),
        ([], {"kind": "hang", "after": 2, "times": 1}, "took longer than"),
        ([], {"kind": "reset", "after": 2, "times": 1}, "closed"),
        ([], {"kind": "error", "times": 1}, "HTTP 500"),
    ],
)
async def test_an_engine_that_does_not_is_told_why(
    flags: list[str], fault: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault.get("kind") == "hang":
        monkeypatch.setattr("llorch_poold.interruption.PROOF_TIMEOUT_S", SOON_S)
    free_timeout_s = SOON_S if fault.get("kind") in ("hang", "refuse_cancel") else PATIENCE_S
    async with mock_engine("--rate", "50", "--ctx", "2048", *flags) as (engine, http):
        if fault:
            await set_fault(http, **fault)
        with pytest.raises(NotShown, match=says):
            await show_interruption(engine, mock_pool(), 1, free_timeout_s)


async def test_a_context_too_small_to_be_stopped_in_shows_nothing() -> None:
    async with mock_engine("--rate", "200", "--ctx", "4") as (engine, _):
        with pytest.raises(NotShown, match="ended by itself after 2 tokens"):
            await show_interruption(engine, mock_pool(ctx=4), 1, PATIENCE_S)
