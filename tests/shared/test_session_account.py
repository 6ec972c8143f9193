"""The account of a session: what fits, what is refused, and that sums stay right whatever comes in whatever order."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llorch_shared import session_account as account
from llorch_shared import session_budget
from llorch_shared.errors import ErrorCode, OrchError, PolicyLabel
from llorch_shared.session_account import Used, Wish
from llorch_shared.wire.session import NANO, SessionPolicy, SessionRecord, SessionRequest

SESSION = "5f0f3c6e-0000-4000-8000-000000000001"
FREE = SessionPolicy()


def opened(policy: SessionPolicy = FREE, **wanted: Any) -> SessionRecord:
    return account.opened(SESSION, "a", policy, SessionRequest(**wanted), 0)


def wish(task_id: str = "t1", *, tokens: int = 10, time_ms: int = 1_000, owner: str = "gw-1") -> Wish:
    return Wish(task_id, "p1", tokens, time_ms, "mock", owner)


def used(task_id: str = "t1", *, tokens: int = 10, time_ms: int = 5) -> Used:
    return Used(task_id, tokens, time_ms, tokens + 3, "p1", "r1")


def test_what_a_task_may_take_is_not_for_another() -> None:
    record = account.reserve(opened(tokens_budget=25), wish("t1"), FREE, 1)
    record = account.reserve(record, wish("t2"), FREE, 1)
    assert session_budget.remaining(record, FREE).tokens_budget_remaining == 5
    with pytest.raises(OrchError) as refused:
        account.reserve(record, wish("t3"), FREE, 1)
    assert (refused.value.code, refused.value.body.retriable) == (ErrorCode.ADMISSION_REJECT, True)
    record = account.settle(record, used("t1", tokens=2), 2)
    record = account.reserve(record, wish("t3"), FREE, 2)
    assert session_budget.remaining(record, FREE).tokens_budget_remaining == 3


def test_what_cannot_fit_any_more_is_refused_for_good() -> None:
    record = account.settle(account.reserve(opened(tokens_budget=15), wish(), FREE, 1), used(), 2)
    with pytest.raises(OrchError) as refused:
        account.reserve(record, wish("t2"), FREE, 3)
    assert (refused.value.code, refused.value.body.retriable) == (ErrorCode.INVALID_PARAMS, False)
    assert refused.value.body.policy_label is PolicyLabel.SESSION_BUDGET


def test_cost_is_reserved_at_the_policys_price_and_exact() -> None:
    policy = SessionPolicy(cost_budget=0.00007, cost_per_token=0.000002)
    record = opened(policy)
    for number in range(3):
        record = account.settle(account.reserve(record, wish(f"t{number}"), policy, 1), used(f"t{number}"), 2)
    assert record.spent.nano == 3 * 10 * 2_000
    assert session_budget.remaining(record, policy).cost_budget_remaining == 10_000 / NANO


def test_a_task_gets_what_is_left_of_the_time_and_no_more_than_its_deadline() -> None:
    record = account.reserve(opened(time_budget_ms=1_500), wish("t1"), FREE, 1)
    record = account.reserve(record, wish("t2"), FREE, 1)
    assert [hold.amounts.time_ms for hold in record.open.values()] == [1_000, 500]
    assert account.terms(record, wish("t2"), FREE).time_max_ms == 500
    with pytest.raises(OrchError):
        account.reserve(record, wish("t3"), FREE, 1)


def test_a_policy_that_was_tightened_counts_at_once() -> None:
    record = opened(tokens_budget=100)
    with pytest.raises(OrchError):
        account.reserve(record, wish(), SessionPolicy(tokens_budget=5), 1)


def test_nobody_asks_for_more_than_the_policy_permits() -> None:
    with pytest.raises(OrchError, match="tokens_budget"):
        opened(SessionPolicy(tokens_budget=10), tokens_budget=11)
    assert opened(SessionPolicy(tokens_budget=10)).limits.tokens == 10


def test_turns_are_tasks_that_were_queued() -> None:
    record = opened(turns_max=2)
    record = account.release(account.reserve(record, wish("t1"), FREE, 1), "t1", "gw-1")
    record = account.settle(account.reserve(record, wish("t2"), FREE, 1), used("t2"), 1)
    record = account.reserve(record, wish("t3"), FREE, 1)
    with pytest.raises(OrchError) as refused:
        account.reserve(record, wish("t4"), FREE, 1)
    assert refused.value.body.policy_label is PolicyLabel.SESSION_TURNS
    assert account.reserve(record, wish("t2"), FREE, 1) is record, "a task that was settled is known"


def test_a_session_ends_between_tasks_and_stays_ended() -> None:
    record = account.reserve(opened(ttl_ms=1_000), wish(), FREE, 500)
    assert not account.is_over(record, FREE, 100_000), "never while a task is under way"
    record = account.settle(record, used(), 100_000)
    assert account.left_ms(record, FREE, 100_400) == 600
    with pytest.raises(OrchError) as refused:
        account.reserve(record, wish("t2"), FREE, 101_000)
    assert refused.value.body.policy_label is PolicyLabel.SESSION_ENDED
    with pytest.raises(OrchError):
        account.rewritten(record, FREE, SessionRequest(), 101_000)


def test_a_deleted_session_settles_what_is_under_way_and_takes_nothing_more() -> None:
    record = account.closed(account.reserve(opened(), wish(), FREE, 1), 2)
    record = account.settle(record, used(), 3)
    assert (record.spent.tokens, record.kv_warmth, record.open) == (10, False, {})
    with pytest.raises(OrchError):
        account.reserve(record, wish("t2"), FREE, 3)


def test_a_task_that_two_gateways_took_is_released_by_the_last_of_them() -> None:
    record = account.reserve(opened(tokens_budget=20), wish(owner="gw-1"), FREE, 1)
    record = account.reserve(record, wish(owner="gw-2"), FREE, 1)
    record = account.release(record, "t1", "gw-1")
    assert "t1" in record.open
    assert account.release(record, "t1", "gw-1") is record
    assert account.release(record, "t1", "gw-2").open == {}
    assert account.release(record, "t1", None).open == {}


def test_what_ran_without_a_reservation_is_paid_for_once() -> None:
    record = account.settle(opened(tokens_budget=5), used(), 1)
    assert account.settle(record, used(tokens=99), 2) is record
    assert record.spent.tokens == 10
    assert session_budget.remaining(record, FREE).tokens_budget_remaining == 0


def test_a_task_that_is_handed_in_again_is_held_as_long_as_a_new_one() -> None:
    record = account.reserve(opened(tokens_budget=10), wish(owner="gw-1"), FREE, 1)
    assert account.reserve(record, wish(owner="gw-1"), FREE, 2) is record
    assert account.reserve(record, wish(owner="gw-2"), FREE, 20_000).open["t1"].at_ms == 20_000
    assert account.reserve(record, wish(owner="gw-1"), FREE, 20_000).open["t1"].at_ms == 20_000


def test_what_was_accepted_before_the_budget_is_held_and_paid_for_once() -> None:
    record = account.charge(opened(tokens_budget=5), wish(), 1)
    assert session_budget.remaining(record, FREE).tokens_budget_remaining == 0
    assert account.charge(record, wish(), 2) is record
    record = account.settle(record, used(), 3)
    assert (record.spent.tokens, record.open) == (10, {})
    assert account.charge(record, wish(), 4) is record


def test_the_cache_is_warm_from_the_first_token_on() -> None:
    record = account.reserve(opened(), wish(), FREE, 1)
    assert not record.kv_warmth
    record = account.warmed(record, "p1", "r1")
    assert record.kv_warmth
    assert account.warmed(record, "p1", "r1") is record
    assert account.settle(record, used(), 2).kv_tokens == 13


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 120), st.integers(0, 300), st.integers(1, 30))
def test_sums_are_right_whatever_comes(seed: int, tokens: int, time_ms: int, turns: int) -> None:
    """Tasks are reserved for, settled, released, all of it repeatedly and in any order."""
    chance = random.Random(seed)
    policy = SessionPolicy(turns_max=turns, tokens_budget=tokens, time_budget_ms=time_ms, cost_budget=tokens * 2e-6)
    record, queued, paid = opened(policy), dict[str, Wish](), dict[str, Used]()
    for step in range(120):
        name = f"t{chance.randrange(40)}"
        match chance.randrange(4):
            case 0 | 1:
                wished = wish(name, tokens=chance.randrange(1, 20), time_ms=chance.randrange(1, 60))
                try:
                    after = account.reserve(record, wished, policy, step)
                except OrchError as error:
                    assert name not in record.open
                    assert name not in paid
                    assert error.body.policy_label  # noqa: PT017
                else:
                    if name not in record.open and name not in paid:
                        queued[name] = wished
                    record = after
            case 2 if queued:
                name = chance.choice(sorted(queued))
                hold = record.open[name].amounts
                ended = used(name, tokens=chance.randrange(hold.tokens + 1), time_ms=chance.randrange(hold.time_ms + 1))
                del queued[name]
                paid[name] = ended
                for _ in range(chance.randrange(1, 3)):
                    record = account.settle(record, ended, step)
            case 3 if queued:
                name = chance.choice(sorted(queued))
                del queued[name]
                for _ in range(chance.randrange(1, 3)):
                    record = account.release(record, name, chance.choice(["gw-1", None]))
        told = session_budget.remaining(record, policy)
        held = [hold.amounts for hold in record.open.values()]
        assert record.spent.tokens == sum(each.tokens for each in paid.values())
        assert record.spent.time_ms == sum(each.time_ms for each in paid.values())
        assert record.spent.nano == record.spent.tokens * 2_000
        assert told.tokens_budget_remaining == tokens - record.spent.tokens - sum(each.tokens for each in held) >= 0
        assert told.time_budget_remaining_ms == time_ms - record.spent.time_ms - sum(each.time_ms for each in held)
        assert told.time_budget_remaining_ms >= 0
        assert set(record.open) == set(queued)
        assert set(record.settled) == set(paid)
        assert record.turns <= turns
