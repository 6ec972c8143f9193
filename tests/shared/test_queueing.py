"""The formula of a task's wait."""

from llorch_shared.queueing import BOOTSTRAP_MS, Ahead, Pace, Waiting, foresee


def ahead(own: int, *, others: int = 0, rivals_weight: int = 0, other_class: int = 0) -> Ahead:
    return Ahead(
        flow_tasks=own,
        flow_weight=1,
        flows_weight=1 + rivals_weight,
        class_tasks=own + others,
        class_work_ms=1000.0 * (own + others),
        class_weight=8,
        other_tasks=other_class,
        other_work_ms=1000.0 * other_class,
        other_weight=1 if other_class else 0,
    )


def test_a_free_slot_means_no_wait() -> None:
    waiting = foresee(ahead(1), Pace(slots_total=4, slots_free=2, turn_ms=500))
    assert waiting == Waiting(1, 0, measured=False)


def test_until_a_task_has_ended_the_bootstrap_rule_holds() -> None:
    waiting = foresee(ahead(3), Pace(slots_total=4, slots_free=0, turn_ms=0))
    assert waiting == Waiting(3, 4 * BOOTSTRAP_MS, measured=False)


def test_one_flow_waits_for_all_of_its_own_tasks() -> None:
    assert foresee(ahead(7), Pace(4, 0, turn_ms=1000)) == Waiting(7, 2000, measured=True)


def test_others_count_only_as_far_as_their_share_lets_them_pass() -> None:
    pace = Pace(4, 0, turn_ms=1000)
    assert foresee(ahead(4, others=100, rivals_weight=1), pace).position == 8
    assert foresee(ahead(4, others=2, rivals_weight=1), pace).position == 6
    assert foresee(ahead(0, others=100, rivals_weight=3), pace).position == 0


def test_a_lower_class_passes_by_its_weight_in_slot_time() -> None:
    longer = Ahead(16, 1, 1, 16, 16_000, 8, 50, 100_000, 1)
    assert foresee(longer, Pace(4, 0, 1000)).position == 17
    assert foresee(ahead(16, other_class=50), Pace(4, 0, 1000)).position == 18


def test_a_measured_pace_holds_the_share_already() -> None:
    waiting = foresee(ahead(10, others=500, rivals_weight=9), Pace(4, 0, turn_ms=1000, flow_pace_ms=750))
    assert waiting.start_ms == 10 * 750 + (250 + 750) / 2


def test_a_pool_that_loads_is_waited_for_and_then_worked_off() -> None:
    pace = Pace(0, 0, turn_ms=1000, loading_ms=30_000, loading_slots=4)
    assert foresee(ahead(2), pace) == Waiting(2, 30_000, measured=False)
    later = foresee(ahead(11), pace)
    assert (later.start_ms, later.measured) == (30_000 + 12 * 250 - 4 * 250, False)
