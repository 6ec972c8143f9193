"""Refused clients come back when they were told to, and find a place."""

from itertools import pairwise

import pytest

from llorch_scheduler.core.appointments import EARLY_MS, PROMISES_MAX, Appointments
from llorch_scheduler.core.drain import Drain
from llorch_shared.waiting import RETRY_MIN_MS
from llorch_shared.wire.policy import WaitingSpec
from llorch_shared.wire.registry import Appointment

SPEC = WaitingSpec(promised_share=0.5, grace_ms=10_000, retry_max_ms=600_000)
CAPACITY = 64
RESERVE = 32
DRAIN = Drain(per_ms=0.01, watched_ms=10**9)
"""Ten places a second, known for long."""


def ask(line: Appointments, client: str, at_ms: int, *, free: int = 0, drain: Drain = DRAIN) -> Appointment:
    return line.ask(client, at_ms, capacity=CAPACITY, free=free, drain=drain, spec=SPEC)


def test_while_nobody_was_promised_anything_a_free_place_is_anybodys() -> None:
    assert ask(Appointments(), "a", 0, free=1).admit


def test_a_full_queue_promises_a_place_after_the_reserve_has_been_given_back() -> None:
    line = Appointments()
    answer = ask(line, "a", 0)
    assert answer == Appointment(admit=False, retry_after_ms=(RESERVE + 1) * 100, promised=True)
    assert line.outstanding == 1


def test_promises_follow_each_other_at_the_promised_part_of_the_rate() -> None:
    line = Appointments()
    times = [ask(line, f"c{number}", 0).retry_after_ms for number in range(20)]
    assert {after - before for before, after in pairwise(times)} == {200}


def test_one_who_comes_as_told_is_admitted_and_newcomers_are_not() -> None:
    line = Appointments()
    due_ms = ask(line, "a", 0).retry_after_ms
    assert not ask(line, "newcomer", due_ms, free=1).admit
    assert ask(line, "a", due_ms, free=1).admit
    line.arrived("a")
    assert line.outstanding == 1


def test_one_who_is_late_finds_the_place_until_the_grace_ends() -> None:
    line = Appointments()
    due_ms = ask(line, "a", 0).retry_after_ms
    assert ask(line, "a", due_ms + SPEC.grace_ms - 1, free=1).admit
    other = Appointments()
    ask(other, "a", 0)
    ask(other, "b", 0)
    assert not ask(other, "a", due_ms + SPEC.grace_ms, free=1).admit


def test_one_who_comes_early_is_told_the_rest_and_keeps_the_place() -> None:
    line = Appointments()
    due_ms = ask(line, "a", 0).retry_after_ms
    again = ask(line, "a", 1_000, free=0)
    assert again == Appointment(admit=False, retry_after_ms=due_ms - 1_000, promised=True)
    assert ask(line, "a", due_ms - EARLY_MS, free=1).admit


def test_one_who_comes_early_is_admitted_when_there_is_a_place_for_everybody() -> None:
    line = Appointments()
    ask(line, "a", 0)
    ask(line, "b", 0)
    assert not ask(line, "b", 1, free=1).admit
    assert ask(line, "b", 1, free=2).admit
    line.arrived("b")
    assert ask(line, "a", 2, free=1).admit


def test_newcomers_are_admitted_beyond_what_is_kept() -> None:
    line = Appointments()
    ask(line, "a", 0)
    assert not ask(line, "b", 1, free=RESERVE).admit
    assert ask(line, "c", 2, free=RESERVE + 1).admit


def test_who_was_let_in_counts_until_it_arrives_or_is_given_up() -> None:
    line = Appointments()
    assert ask(line, "a", 0, free=1).admit
    assert not ask(line, "b", 1, free=1).admit
    assert ask(line, "c", 60_000, free=CAPACITY).admit


def test_one_who_was_let_in_and_refused_by_the_server_keeps_the_promise() -> None:
    line = Appointments()
    due_ms = ask(line, "a", 0).retry_after_ms
    assert ask(line, "a", due_ms, free=1).admit
    again = ask(line, "a", due_ms, free=0)
    assert (again.admit, again.promised, again.retry_after_ms) == (False, True, RETRY_MIN_MS)
    assert ask(line, "a", due_ms + RETRY_MIN_MS, free=2).admit


def test_when_less_is_given_back_than_expected_later_promises_move() -> None:
    line = Appointments()
    due_ms = ask(line, "a", 0).retry_after_ms
    slow = Drain(per_ms=0.000_1, watched_ms=10**9)
    assert ask(line, "a", due_ms, drain=slow).retry_after_ms == 10_000
    assert ask(line, "b", due_ms, drain=slow).retry_after_ms > 300_000


def test_clients_that_stay_away_leave_half_of_the_queue_to_others() -> None:
    line = Appointments()
    for number in range(300):
        ask(line, f"c{number}", 0)
    assert ask(line, "newcomer", 40_000, free=CAPACITY // 2 + 1).admit


def test_what_nobody_claims_is_forgotten() -> None:
    line = Appointments()
    for number in range(100):
        ask(line, f"c{number}", 0)
    line.step(10**6, SPEC)
    assert line.outstanding == 0
    assert ask(line, "a", 10**6, free=1).admit


def test_nothing_is_promised_beyond_the_longest_wait() -> None:
    line = Appointments()
    answers = [ask(line, f"c{number}", 0) for number in range(4_000)]
    assert all(answer.retry_after_ms <= SPEC.retry_max_ms for answer in answers)
    assert not answers[-1].promised
    assert line.outstanding < 3_100


def test_memory_is_bounded() -> None:
    line = Appointments()
    fast = Drain(per_ms=1_000, watched_ms=10**9)
    for number in range(PROMISES_MAX + 100):
        ask(line, f"c{number}", 0, drain=fast)
    assert line.outstanding == PROMISES_MAX


def test_without_a_rate_nothing_is_promised() -> None:
    unknown = Drain(per_ms=0, watched_ms=0, begins_ms=7_000)
    answer = ask(Appointments(), "a", 0, drain=unknown)
    assert answer == Appointment(admit=False, retry_after_ms=7_000)


def test_a_pool_that_loads_gives_nothing_back_before_it_is_ready() -> None:
    loading = Drain(per_ms=0.01, watched_ms=0, begins_ms=30_000)
    assert ask(Appointments(), "a", 0, drain=loading).retry_after_ms == 30_000 + (RESERVE + 1) * 100


def test_a_rate_that_was_watched_briefly_is_not_trusted_far_ahead() -> None:
    new, old = Appointments(), Appointments()
    for number in range(500):
        ask(new, f"c{number}", 0, drain=Drain(per_ms=0.01, watched_ms=5_000))
        ask(old, f"c{number}", 0)
    ratio = ask(new, "last", 0, drain=Drain(0.01, 5_000)).retry_after_ms / ask(old, "last", 0).retry_after_ms
    assert 1.2 < ratio < 1 / 0.7


@pytest.mark.parametrize("capacity", [1, 2, 3, 8])
def test_small_queues_promise_less_but_keep_no_more_than_half(capacity: int) -> None:
    line = Appointments()
    first = line.ask("a", 0, capacity=capacity, free=0, drain=DRAIN, spec=WaitingSpec())
    second = line.ask("b", 0, capacity=capacity, free=0, drain=DRAIN, spec=WaitingSpec())
    assert second.retry_after_ms > first.retry_after_ms
    assert line.ask("c", 0, capacity=capacity, free=capacity // 2 + 1, drain=DRAIN, spec=WaitingSpec()).admit
