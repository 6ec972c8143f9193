"""Plans follow from their arguments alone, keep their bounds, and leave a victim alone for a while."""

import pytest

from chaos.asks import GATEWAYS_TENANT, Way, make_asks
from chaos.plan import RULES, FaultKind, Shape, make_plan, parse_kinds

ALL = tuple(FaultKind)


def test_equal_arguments_give_an_equal_plan() -> None:
    assert make_plan(3, 60, ALL) == make_plan(3, 60, tuple(reversed(ALL)))
    assert make_plan(3, 60, ALL) != make_plan(4, 60, ALL)
    assert make_asks(3, 60, per_s=5) == make_asks(3, 60, per_s=5)
    assert make_asks(3, 60, per_s=5) != make_asks(4, 60, per_s=5)


def test_a_plan_of_a_seed_stays_what_it_was() -> None:
    """A seed in a report means the same plan next month."""
    first = make_plan(1, 30, ALL)[0]
    assert (first.at_s, first.kind, first.target, first.lasts_s) == (1.259, FaultKind.PAUSE, "poold-1", 3.569)


@pytest.mark.parametrize("seed", range(20))
def test_faults_keep_the_bounds_of_their_kind_and_end_in_time(seed: int) -> None:
    shape = Shape()
    for fault in make_plan(seed, 120, ALL, shape):
        rule = RULES[fault.kind]
        assert fault.target in rule.targets(shape)
        assert rule.lasts_s[0] - 0.001 <= fault.lasts_s <= rule.lasts_s[1] + 0.001
        assert rule.strength[0] - 0.001 <= fault.strength <= rule.strength[1] + 0.001
        assert fault.at_s >= 1
        assert fault.at_s + fault.lasts_s < 120


@pytest.mark.parametrize("seed", range(20))
def test_no_victim_has_two_faults_at_once(seed: int) -> None:
    ends: dict[str, float] = {}
    for fault in make_plan(seed, 120, ALL):
        assert fault.at_s >= ends.get(fault.target, 0)
        ends[fault.target] = fault.at_s + fault.lasts_s


def test_every_kind_has_a_rule_and_comes_up() -> None:
    assert set(RULES) == set(FaultKind)
    assert {fault.kind for seed in range(5) for fault in make_plan(seed, 120, ALL)} == set(FaultKind)


def test_only_the_wanted_kinds_are_planned() -> None:
    assert {fault.kind for fault in make_plan(1, 120, [FaultKind.CUT])} == {FaultKind.CUT}
    assert make_plan(1, 120, []) == ()


def test_every_way_of_asking_comes_up() -> None:
    asks = make_asks(1, 60, per_s=5)
    assert {ask.way for ask in asks} == set(Way)
    assert any(ask.cancel_after_s is not None for ask in asks)
    assert {ask.tenant for ask in asks if ask.again_after_s is not None} == {GATEWAYS_TENANT}
    assert any(ask.cuts for ask in asks)
    assert len({ask.request.task_id for ask in asks}) == len(asks)


def test_kinds_are_named_or_all() -> None:
    assert parse_kinds("all") == parse_kinds("") == ALL
    assert parse_kinds("kill, cut") == (FaultKind.KILL, FaultKind.CUT)
    with pytest.raises(ValueError, match="faults are all, kill"):
        parse_kinds("flood")
