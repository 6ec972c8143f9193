"""What a client is told about its wait."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llorch_shared.queueing import Waiting
from llorch_shared.waiting import RETRY_MIN_MS, chance, expect, retry_after_ms
from llorch_shared.wire.registry import ClassLoad, FlowLoad
from llorch_shared.wire.task import Engine, Priority, TaskRequest, Workload
from support.gateways import load_report

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH


def line(flows: dict[str, FlowLoad], *, weight: int = 8, **changes: Any) -> ClassLoad:
    fields: dict[str, Any] = {
        "queued": sum(flow.queued for flow in flows.values()),
        "work_ms": sum(flow.work_ms for flow in flows.values()),
        "weight": weight,
        "flows_weight": sum(flow.weight for flow in flows.values()),
        "flows": flows,
    }
    return ClassLoad(**{**fields, **changes})


def flow(queued: int, *, each_ms: float = 1000, **changes: Any) -> FlowLoad:
    return FlowLoad(queued=queued, work_ms=queued * each_ms, **changes)


def busy(*classes: tuple[Priority, ClassLoad], **changes: Any) -> Any:
    """Four slots, all taken, a task a second each."""
    fields: dict[str, Any] = {
        "slots_total": 4,
        "slots_free": 0,
        "service_ms": 1000.0,
        "queued": {str(priority): each.queued for priority, each in classes},
        "classes": {str(priority): each for priority, each in classes},
    }
    return load_report(**{**fields, **changes})


def test_without_a_report_nothing_is_known_to_wait() -> None:
    assert expect(None, BATCH, "a", 17) == Waiting(0, 0.0, measured=False)
    assert retry_after_ms(None) == RETRY_MIN_MS


def test_a_newcomer_stands_behind_what_waits_of_its_tenant_and_what_came_since_the_report() -> None:
    load = busy((INTERACTIVE, line({"a": flow(3)})), queue_seq={"interactive": 10})
    assert expect(load, INTERACTIVE, "a").position == 3
    assert expect(load, INTERACTIVE, "a", 11).position == 3
    assert expect(load, INTERACTIVE, "a", 14).position == 6


@pytest.mark.parametrize(
    ("due_in_ms", "before"),
    [(500, 0), (10_000, 0), (15_000, 20), (20_000, 40), (60_000, 60), (80_000, 70), (100_000, 80), (None, 80)],
)
def test_with_earliest_deadline_first_a_newcomer_stands_where_its_deadline_is(
    due_in_ms: int | None, before: int
) -> None:
    load = busy((INTERACTIVE, line({"a": flow(80, due_ms=(10_000, 20_000, 100_000))})))
    assert expect(load, INTERACTIVE, "a", due_in_ms=due_in_ms).position == before


def test_equal_deadlines_stand_before_a_newcomer() -> None:
    load = busy((INTERACTIVE, line({"a": flow(9, due_ms=(5_000, 5_000, 5_000))})))
    assert expect(load, INTERACTIVE, "a", due_in_ms=5_000).position == 9
    assert expect(load, INTERACTIVE, "a", due_in_ms=4_999).position == 0


def test_who_is_overtaken_waits_for_those_that_overtake() -> None:
    load = busy((INTERACTIVE, line({"a": flow(6, due_ms=(1_000, 9_000))}, overtaken=0.25)))
    waiting = expect(load, INTERACTIVE, "a", due_in_ms=10_000)
    assert (waiting.position, waiting.start_ms) == (8, 9 * 250)
    assert expect(load, INTERACTIVE, "a", due_in_ms=500).position == 0, "nobody overtakes the first"


def test_what_came_since_the_report_is_divided_as_what_waits() -> None:
    load = busy((INTERACTIVE, line({"a": flow(30), "b": flow(10)})), queue_seq={"interactive": 40})
    alone = expect(load, INTERACTIVE, "b", 41).position
    assert expect(load, INTERACTIVE, "b", 49).position == alone + 4


def test_a_task_that_the_report_knows_stands_before_those_behind_it() -> None:
    load = busy((INTERACTIVE, line({"a": flow(10)})), queue_seq={"interactive": 10})
    assert expect(load, INTERACTIVE, "a", 10).position == 9
    assert expect(load, INTERACTIVE, "a", 4).position == 3
    assert expect(load, INTERACTIVE, "a", 1).position == 0


def test_a_tenant_without_waiting_tasks_starts_soon() -> None:
    load = busy((INTERACTIVE, line({"a": flow(100)})))
    assert expect(load, INTERACTIVE, "new").start_ms == 250


def test_a_tenant_below_the_longest_is_taken_for_one_of_the_short() -> None:
    told = {f"t{number}": flow(10) for number in range(64)}
    load = busy((INTERACTIVE, line(told, queued=640 + 72, flows_weight=64 + 36)))
    assert expect(load, INTERACTIVE, "one of many").position == 2 * 100


def test_batch_passes_as_one_in_nine_while_both_wait() -> None:
    load = busy((INTERACTIVE, line({"a": flow(80)})), (BATCH, line({"b": flow(80)}, weight=1)))
    assert expect(load, INTERACTIVE, "a").position == 90
    assert expect(load, BATCH, "b").position == 160
    few = busy((INTERACTIVE, line({"a": flow(800)})), (BATCH, line({"b": flow(5)}, weight=1)))
    assert expect(few, BATCH, "b").position == 45


def test_a_refused_client_hears_when_a_place_is_expected_to_be_free() -> None:
    assert retry_after_ms(busy(service_ms=20_000.0)) == 5_000
    assert retry_after_ms(busy(service_ms=20_000.0, turn_ms=24_000.0)) == 6_000
    loads = busy(slots_total=0, service_ms=8_000.0, loading_ms=12_000, loading_slots=4)
    assert retry_after_ms(loads) == 14_000


@pytest.mark.parametrize(("budget_ms", "told"), [(10_000, 0.0), (24_500, 0.5), (200_000, 1.0)])
def test_the_chance_to_be_in_time_counts_the_wait_and_what_its_tenant_usually_takes(
    budget_ms: int, told: float
) -> None:
    request = TaskRequest(
        task_id="00000000-0000-4000-8000-000000000001",
        session_id="00000000-0000-4000-8000-000000000001",
        workload=Workload.COMPLETION,
        model_ref="m",
        engine=Engine.MOCK,
        ctx=100,
        priority=INTERACTIVE,
        max_tokens=1_000,
        deadline_ms=budget_ms,
    )
    sharp = tuple(float(index == 16) / 2 + float(index == 15) / 2 for index in range(32))
    load = busy(
        (INTERACTIVE, line({"a": flow(1, used=0.2)})),
        overhead_ms=500.0,
        token_ms=20.0,
        used=0.9,
        spread=sharp,
        wait_spread=sharp,
    )
    assert chance(None, request, "a", start_ms=0) is None
    assert chance(load, request, "a", start_ms=20_000) == pytest.approx(told, abs=0.1)


@given(
    queued=st.integers(0, 1000),
    others=st.integers(0, 1000),
    seq=st.integers(0, 2000),
    accounted=st.integers(0, 2000),
    slots=st.integers(0, 64),
    free=st.integers(0, 64),
    service=st.floats(0, 1e6),
    pace=st.floats(0, 1e6),
)
def test_position_and_start_are_never_negative_and_grow_together(
    queued: int, others: int, seq: int, accounted: int, slots: int, free: int, service: float, pace: float
) -> None:
    load = busy(
        (INTERACTIVE, line({"a": flow(queued, pace_ms=pace), "b": flow(others)})),
        queue_seq={"interactive": accounted},
        slots_total=slots,
        slots_free=min(free, slots),
        service_ms=service,
    )
    first, second = (expect(load, INTERACTIVE, "a", each) for each in (seq, seq + 1))
    assert 0 <= first.position <= second.position
    assert 0 <= first.start_ms <= second.start_ms + 1e-6
    assert retry_after_ms(load) >= RETRY_MIN_MS
