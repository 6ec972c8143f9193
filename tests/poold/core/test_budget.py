"""What a session's budget leaves to an attempt, and to the session at its end."""

from typing import Any

from llorch_poold.core.budget import left_after, time_left_ms, within
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.session import SessionRemaining, SessionTerms
from llorch_shared.wire.task import Priority, TaskState
from support.client import task_request


def final(terms: SessionTerms | None, **changes: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "task_id": "6f1d3c1e-64a0-4e1a-9f53-0b8f3f0f6a01",
        "state": TaskState.DONE,
        "pool_id": "p",
        "lane": "bus",
        "correlation_id": "c",
        "tenant": "a",
        "priority": Priority.BATCH,
        "admitted_ms": 1,
        "tokens_out": 6,
        "decode_ms": 300,
        "session": terms,
    }
    return RunRecord(**{**fields, **changes})


def test_an_attempt_may_take_what_is_left_of_what_was_reserved() -> None:
    request, terms = task_request(max_tokens=20), SessionTerms(session_id="s", tokens_max=20)
    assert within(request, None, 500, 9) is request
    assert within(request, SessionTerms(session_id="s"), 500, 9) is request
    assert within(request, terms, 0, 9) is request
    again = within(request, terms, 15, 9)
    assert again is not None
    assert again.max_tokens == 5
    assert within(request, terms, 20, 9) is None


def test_an_attempt_has_the_time_that_earlier_ones_have_left() -> None:
    request, terms = task_request(max_tokens=20), SessionTerms(session_id="s", time_max_ms=1_000)
    assert time_left_ms(SessionTerms(session_id="s"), 9) is None
    assert [time_left_ms(terms, decoded_ms) for decoded_ms in (0, 300, 1_000, 1_001)] == [1_000, 700, 0, 0]
    assert within(request, terms, 5, 999) is request
    assert within(request, terms, 5, 1_000) is None


def test_what_is_left_at_the_end_is_what_was_not_used() -> None:
    before = SessionRemaining(tokens_budget_remaining=5, time_budget_remaining_ms=0, cost_budget_remaining=0.1)
    terms = SessionTerms(session_id="s", tokens_max=20, time_max_ms=1_000, nano_per_token=2_000, remaining=before)
    left = left_after(final(terms))
    assert left == SessionRemaining(
        tokens_budget_remaining=19, time_budget_remaining_ms=700, cost_budget_remaining=0.1 + 14 * 0.000002
    )
    assert left_after(final(None)) is None
    assert left_after(final(SessionTerms(session_id="s"))) is None
