"""`admission_share`: who got which part of the slot time lately."""

from math import exp

import pytest

from llorch_scheduler.core.shares import KEPT_MAX, Shares
from scheduler.queue_world import BATCH, INTERACTIVE, policy, queue_of, start, waiting


def test_shares_are_parts_of_the_whole() -> None:
    shares = Shares(60_000)
    shares.count(shares.of("a", INTERACTIVE), 300.0, 0)
    shares.count(shares.of("b", INTERACTIVE), 100.0, 0)
    shares.count(shares.of("a", BATCH), 100.0, 0)
    assert list(shares) == [("a", BATCH, 0.2), ("a", INTERACTIVE, 0.6), ("b", INTERACTIVE, 0.2)]


def test_what_is_a_window_old_counts_an_eth() -> None:
    shares = Shares(10_000)
    shares.count(shares.of("a", INTERACTIVE), 100.0, 1_000)
    shares.count(shares.of("b", INTERACTIVE), 100.0, 11_000)
    told = {tenant: share for tenant, _, share in shares}
    assert told["a"] / told["b"] == pytest.approx(exp(-1))


def test_hours_later_the_numbers_are_still_finite() -> None:
    shares = Shares(1_000)
    old, new = shares.of("old", INTERACTIVE), shares.of("new", INTERACTIVE)
    shares.count(old, 100.0, 0)
    for at_ms in range(0, 4_000_000, 500):
        shares.count(new, 1.0, at_ms)
    assert [(tenant, share) for tenant, _, share in shares] == [("new", 1.0)]


def test_another_window_keeps_the_shares() -> None:
    shares = Shares(10_000)
    shares.count(shares.of("a", INTERACTIVE), 300.0, 5_000)
    shares.count(shares.of("b", INTERACTIVE), 100.0, 9_000)
    before = list(shares)
    shares.over(60_000, 9_000)
    assert [share for *_, share in shares] == pytest.approx([share for *_, share in before])


def test_tenants_that_went_are_forgotten_smallest_first() -> None:
    shares = Shares(60_000)
    stays = shares.of("stays", INTERACTIVE)
    shares.count(stays, 1.0, 0)
    for number in range(3 * KEPT_MAX):
        share = shares.of(f"t{number}", INTERACTIVE)
        shares.count(share, float(number + 2), 0)
        share.live = False
    assert len(shares._shares) <= 2 * KEPT_MAX
    assert shares.of("stays", INTERACTIVE) is stays


def test_a_queue_counts_costs_and_corrects_them() -> None:
    queue = queue_of([waiting(1, "a", cost_ms=100), waiting(2, "b", cost_ms=100)], pool=policy())
    first, second = start(queue, 0), start(queue, 0)
    assert first is not None
    assert second is not None
    assert [share for *_, share in queue.shares()] == [0.5, 0.5]
    queue.ended(first, 300, 0, 0)
    assert [share for *_, share in queue.shares()] == [0.75, 0.25]
    queue.ended(second, None, 0, 0)
    assert list(queue.shares()) == [("a", INTERACTIVE, 1.0)]
