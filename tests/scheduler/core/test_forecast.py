"""What tasks are told of their wait, against what they wait, in pools that get ten times what they can do."""

from typing import Any, Final

import pytest
from msgspec import structs

from llorch_scheduler.core.forecast import FLOWS_MAX, Behind, Forecast
from llorch_shared.queueing import Ahead, Waiting
from llorch_shared.wire.policy import QueueSpec
from llorch_shared.wire.registry import ClassLoad, FlowLoad, PoolLoad
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority
from scheduler.overload_world import Crowd, OverloadWorld, waiting_job

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH
SPEC: Final = PoolSpec(id="p1", engine=Engine.MOCK, model="m")
"""The worlds have 16 slots and tasks of 4.3 s: they start 3.7 a second."""


def world(*crowds: Crowd, seed: int = 1, for_s: int = 300, spec: PoolSpec = SPEC, **changes: Any) -> OverloadWorld:
    made = OverloadWorld(spec, list(crowds), seed=seed, **changes)
    made.run(for_s * 1_000)
    return made


OVERLOADS: Final = {
    "one tenant": [Crowd(per_s=37)],
    "a crowd and regulars": [Crowd("crowd", per_s=34), Crowd("regulars", per_s=4)],
    "long and short tasks": [
        Crowd("long", per_s=20, mean_tokens=400),
        Crowd("short", per_s=10, mean_tokens=100),
        Crowd("few", per_s=1),
    ],
    "two classes": [Crowd(per_s=20), Crowd("jobs", BATCH, per_s=17, mean_tokens=300)],
    "closed loops": [Crowd(users=900)],
    "clients without patience": [Crowd(per_s=37, patience_s=200)],
}


@pytest.mark.parametrize("name", OVERLOADS)
def test_at_ten_times_the_load_waits_are_told_true_and_who_returns_as_told_is_admitted(name: str) -> None:
    # What is told before tasks of every length have ended is short by half: a mixed crowd takes minutes to show itself.
    told = world(*OVERLOADS[name], for_s=600 if name == "long and short tasks" else 300)
    assert told.median_error() <= 0.2
    assert told.median_error(since_ms=120_000) <= 0.17
    assert len(told.returns) > 100
    assert told.admitted_share() >= 0.9
    assert told.idle_ms == 0


def test_a_pool_that_still_loads_is_waited_for_and_its_promises_hold() -> None:
    told = world(Crowd(per_s=20), ready_ms=40_000)
    assert told.median_error() <= 0.2
    assert told.admitted_share() >= 0.9
    first = [each for each in told.started if each.at_ms == 40_000]
    assert len(first) == told.slots
    assert all(abs(each.told_ms - each.waited_ms) <= 200 for each in first)


def test_a_small_queue_keeps_its_promises_too() -> None:
    small = structs.replace(SPEC, queue=QueueSpec(capacity=16))
    told = world(Crowd(per_s=5), slots=2, spec=small, for_s=900)
    assert told.admitted_share() >= 0.9
    assert told.median_error(since_ms=60_000) <= 0.35


def test_of_tasks_told_a_chance_of_08_about_80_percent_are_in_time() -> None:
    told = 0
    kept = 0.0
    for seed in (1, 2):
        crowds = Crowd("a", per_s=20, budget_ms=62_000), Crowd("b", per_s=20, budget_ms=70_000)
        number, share = world(*crowds, seed=seed, for_s=600).calibration(0.7, 0.9, since_ms=60_000)
        told, kept = told + number, kept + number * share
    assert told > 200
    assert kept / told == pytest.approx(0.8, abs=0.08)


def test_chances_are_true_in_light_load_as_well() -> None:
    told = world(Crowd(per_s=3.6, budget_ms=8_000), for_s=1_800)
    for low, high in ((0.5, 0.7), (0.7, 0.9)):
        number, share = told.calibration(low, high, since_ms=60_000)
        assert number > 100
        assert share == pytest.approx((low + high) / 2, abs=0.12)


def test_equal_events_give_equal_forecasts() -> None:
    first, second = (world(*OVERLOADS["two classes"], for_s=60) for _ in range(2))
    assert first.started == second.started
    assert first.load == second.load


# the parts


def ahead(tasks: int) -> Ahead:
    return Ahead(tasks, 1, 1, tasks, 1000.0 * tasks, 8, 0, 0.0, 0)


def learned(forecast: Forecast, slot_ms: float = 1_000) -> None:
    forecast.service.add(
        tenant="a", priority=INTERACTIVE, max_tokens=100, tokens_out=50, slot_ms=slot_ms, expected_ms=slot_ms
    )


def starts(forecast: Forecast, tenants: str, *, every_ms: int, from_ms: int = 0) -> int:
    """One start after the other while more of each tenant wait."""
    at_ms = from_ms
    for number, tenant in enumerate(tenants):
        at_ms += every_ms
        forecast.started(waiting_job(number, tenant), at_ms, Behind(9, 9, 9))
    return at_ms


def test_with_no_history_the_bootstrap_rule_holds() -> None:
    forecast = Forecast()
    forecast.has_slots(4)
    assert forecast.waiting(ahead(6), INTERACTIVE, "a") == Waiting(6, 700, measured=False)
    learned(forecast)
    assert forecast.waiting(ahead(6), INTERACTIVE, "a") == Waiting(6, 7 * 250, measured=True)


def test_what_overtakes_is_measured_and_counts_for_later_tasks() -> None:
    forecast = Forecast()
    forecast.has_slots(4)
    learned(forecast)
    for round_ in range(50):
        first = waiting_job(100 * round_, "a")
        forecast.joined(first, ahead(2))
        starts(forecast, "aaaa", every_ms=250, from_ms=1_000 * round_)
        forecast.started(first, 1_000 * round_ + 1_000, Behind(9, 9, 9))
    pace = forecast.pace(INTERACTIVE, "a")
    assert pace.overtaken == pytest.approx(0.5, abs=0.05), "two of four stood before it"
    assert forecast.waiting(ahead(10), INTERACTIVE, "a").position == pytest.approx(20, abs=2)
    assert forecast.pace(BATCH, "a").overtaken == 0


def test_measured_starts_outweigh_what_tasks_took() -> None:
    forecast = Forecast()
    forecast.has_slots(4)
    learned(forecast)
    starts(forecast, "a" * 400, every_ms=500)
    assert forecast.turn_ms == pytest.approx(2_000, rel=0.05)


def test_twice_the_slots_halve_the_wait_at_once() -> None:
    forecast = Forecast()
    forecast.has_slots(4)
    learned(forecast)
    starts(forecast, "a" * 200, every_ms=250)
    before = forecast.waiting(ahead(100), INTERACTIVE, "a").start_ms
    forecast.has_slots(8)
    assert forecast.waiting(ahead(100), INTERACTIVE, "a").start_ms == pytest.approx(before / 2)


def test_time_without_slots_counts_in_no_pace() -> None:
    forecast = Forecast()
    forecast.has_slots(4)
    learned(forecast)
    at_ms = starts(forecast, "a" * 200, every_ms=250)
    before = forecast.turn_ms, forecast.drain(INTERACTIVE).per_ms
    forecast.has_slots(0)
    forecast.has_slots(4)
    starts(forecast, "a", every_ms=600_000, from_ms=at_ms)
    assert (forecast.turn_ms, forecast.drain(INTERACTIVE).per_ms) == pytest.approx(before, rel=0.01)


def test_time_in_which_nobody_waits_counts_in_no_pace() -> None:
    forecast = Forecast()
    forecast.has_slots(4)
    learned(forecast)
    for number in range(50):
        forecast.started(waiting_job(number, "a"), 60_000 * number, Behind(0, 0, 0))
    assert forecast.turn_ms == pytest.approx(1_000)


def test_a_flow_that_gets_every_fourth_start_waits_four_times_as_long() -> None:
    forecast = Forecast()
    forecast.has_slots(4)
    learned(forecast)
    starts(forecast, "abbb" * 30, every_ms=250)
    alone = forecast.pace(INTERACTIVE, "a").flow_pace_ms
    assert alone == pytest.approx(1_000, rel=0.02)
    assert forecast.pace(INTERACTIVE, "b").flow_pace_ms == pytest.approx(250 * 4 / 3, rel=0.1)
    assert forecast.pace(INTERACTIVE, "new").flow_pace_ms == 0


def test_reports_carry_what_was_learned() -> None:
    forecast = Forecast()
    forecast.has_slots(4)
    learned(forecast)
    starts(forecast, "abbb" * 30, every_ms=250)
    line = ClassLoad(queued=3, work_ms=3000, weight=8, flows_weight=1, flows={"a": FlowLoad(queued=3, work_ms=3000)})
    told = forecast.told(
        PoolLoad(
            pool_id="p1",
            at_ms=0,
            snapshot_version=1,
            queued={"interactive": 3},
            queue_seq={},
            running=4,
            slots_total=4,
            slots_free=0,
            replicas_ready=1,
            service_ms=0,
            classes={"interactive": line},
        )
    )
    assert (told.service_ms, told.used, told.token_ms) == (1_000, 0.5, 20)
    assert told.turn_ms == pytest.approx(1_000, rel=0.01)
    assert told.classes["interactive"].flows["a"].pace_ms == pytest.approx(1_000, rel=0.02)
    assert told.classes["interactive"].flows["a"].used == 0.5


def test_a_task_that_comes_back_from_a_replica_tells_nothing_about_forecasts() -> None:
    forecast = Forecast()
    forecast.has_slots(1)
    learned(forecast)
    early = waiting_job(0, "a")
    forecast.joined(early, ahead(3))
    assert not early.foretold
    starts(forecast, "a" * 20, every_ms=1_000)
    job = waiting_job(1, "a")
    forecast.joined(job, ahead(3))
    assert job.foretold
    before = forecast.waits.parts()
    forecast.started(job, 4_000, Behind(0, 0, 0))
    after = forecast.waits.parts()
    assert after != before
    forecast.started(job, 90_000, Behind(0, 0, 0))
    assert forecast.waits.parts() == after


def test_tenants_that_started_nothing_for_long_are_forgotten() -> None:
    forecast = Forecast()
    forecast.has_slots(4)
    for number in range(FLOWS_MAX + 10):
        forecast.started(waiting_job(number, f"t{number}"), number, Behind(1, 1, 0))
    assert len(forecast._flows) == FLOWS_MAX


def test_places_are_counted_per_class_and_less_is_said_while_little_was_seen() -> None:
    forecast = Forecast()
    forecast.has_slots(4)
    assert forecast.drain(BATCH).per_ms == 0
    learned(forecast)
    few = forecast.drain(INTERACTIVE).per_ms
    starts(forecast, "a" * 400, every_ms=250)
    assert few == pytest.approx(0.5 / 250)
    assert forecast.drain(INTERACTIVE).per_ms == pytest.approx(1 / 250, rel=0.1)
    assert forecast.drain(BATCH, share=1 / 9).per_ms == pytest.approx(few / 9, rel=0.1)
