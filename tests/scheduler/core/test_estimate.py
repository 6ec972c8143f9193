"""What a task is expected to take."""

from random import Random

import pytest

from llorch_scheduler.core.estimate import FLOWS_MAX, TOKEN_MS, USED, ServiceModel
from llorch_shared.wire.task import Engine, Priority, TaskRequest, Workload


def request(*, max_tokens: int = 100, expected: int | None = None) -> TaskRequest:
    return TaskRequest(
        task_id="00000000-0000-4000-8000-000000000001",
        session_id="00000000-0000-4000-8000-000000000001",
        workload=Workload.COMPLETION,
        model_ref="m",
        engine=Engine.MOCK,
        ctx=100,
        priority=Priority.INTERACTIVE,
        max_tokens=max_tokens,
        deadline_ms=60_000,
        expected_tokens=expected,
    )


def add(model: ServiceModel, tokens: int, slot_ms: float, *, tenant: str = "a", max_tokens: int = 100) -> None:
    model.add(
        tenant=tenant,
        priority=Priority.INTERACTIVE,
        max_tokens=max_tokens,
        tokens_out=tokens,
        slot_ms=slot_ms,
        expected_ms=slot_ms,
    )


def test_before_a_task_has_ended_half_of_what_is_allowed_is_expected_at_a_common_rate() -> None:
    model = ServiceModel()
    assert model.mean_ms == 0
    assert model.expected_ms(request(), "a") == 100 * USED * TOKEN_MS


def test_what_the_client_expects_is_believed_up_to_what_it_allows() -> None:
    model = ServiceModel()
    assert model.expected_tokens(request(expected=30), "a") == 30
    assert model.expected_tokens(request(expected=300), "a") == 100
    assert model.expected_tokens(request(expected=0), "a") == 0


def test_overhead_and_time_per_token_are_told_apart() -> None:
    model, dice = ServiceModel(), Random(1)
    for _ in range(200):
        tokens = dice.randint(10, 90)
        add(model, tokens, 300 + 12 * tokens + dice.uniform(-50, 50))
    assert model.token_ms == pytest.approx(12, rel=0.1)
    assert model.overhead_ms == pytest.approx(300, rel=0.25)
    assert model.expected_ms(request(expected=50), "a") == pytest.approx(900, rel=0.05)


def test_tasks_of_one_length_are_expected_to_take_what_they_take() -> None:
    model = ServiceModel()
    for _ in range(20):
        add(model, 50, 1_000)
    assert model.expected_ms(request(), "a") == pytest.approx(1_000)
    assert model.overhead_ms == pytest.approx(0)


def test_neither_part_is_ever_negative() -> None:
    model = ServiceModel()
    add(model, 10, 900)
    add(model, 90, 100)
    assert model.token_ms >= 0
    assert model.overhead_ms >= 0
    steep = ServiceModel()
    add(steep, 50, 100)
    add(steep, 100, 1_000)
    assert steep.overhead_ms >= 0
    assert steep.expected_ms(request(expected=1), "a") >= 1


def test_tasks_without_tokens_are_all_overhead() -> None:
    model = ServiceModel()
    for _ in range(5):
        add(model, 0, 400)
    assert (model.token_ms, model.overhead_ms) == pytest.approx((0, 400))


def test_a_change_of_speed_shows_within_dozens_of_tasks() -> None:
    model, dice = ServiceModel(), Random(2)
    for token_ms in (10, 30):
        for _ in range(150):
            tokens = dice.randint(10, 90)
            add(model, tokens, token_ms * tokens)
    assert model.token_ms == pytest.approx(30, rel=0.1)


def test_a_tenant_is_known_by_its_own_tasks_and_a_stranger_by_all() -> None:
    model = ServiceModel()
    for _ in range(60):
        add(model, 90, 900, tenant="long")
        add(model, 10, 100, tenant="short")
    assert model.used("long", Priority.INTERACTIVE) == pytest.approx(0.9, abs=0.05)
    assert model.used("short", Priority.INTERACTIVE) == pytest.approx(0.1, abs=0.05)
    assert model.used("new", Priority.INTERACTIVE) == pytest.approx(0.5, abs=0.05)
    assert model.used("long", Priority.BATCH) == pytest.approx(0.5, abs=0.05)


def test_a_cancelled_task_tells_its_speed_but_not_how_long_such_tasks_are() -> None:
    model = ServiceModel()
    add(model, 50, 500)
    model.add(
        tenant="a",
        priority=Priority.INTERACTIVE,
        max_tokens=100,
        tokens_out=1,
        slot_ms=10,
        expected_ms=500,
        complete=False,
    )
    assert model.used("a", Priority.INTERACTIVE) == 0.5
    assert model.mean_ms < 500


def test_the_spread_is_that_of_real_over_expected() -> None:
    model = ServiceModel()
    for _ in range(2_000):
        model.add(
            tenant="a",
            priority=Priority.INTERACTIVE,
            max_tokens=100,
            tokens_out=50,
            slot_ms=1_500,
            expected_ms=500,
        )
    assert max(model.spread.parts()) > 0.99
    assert model.spread.parts()[22] > 0.99


def test_tenants_that_ended_nothing_for_long_are_forgotten() -> None:
    model = ServiceModel()
    for number in range(FLOWS_MAX + 10):
        add(model, 50, 500, tenant=f"t{number}")
    assert len(model._flows) == FLOWS_MAX
