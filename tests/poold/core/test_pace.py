"""Performance hints: what a replica's tasks say about its speed."""

import pytest

from llorch_poold.core.devices import compute_capability
from llorch_poold.core.pace import Pace
from llorch_shared.wire.registry import Gpu


def gpu(capability: str) -> Gpu:
    return Gpu(index=0, uuid="GPU-a", name="x", vram_total_mb=1, vram_free_mb=1, compute_capability=capability)


def test_nothing_is_claimed_before_something_was_measured() -> None:
    pace = Pace()
    assert (pace.tokens_per_s, pace.first_token_ms) == (0, 0)
    pace.decoded(0, 1.0)
    pace.decoded(5, 0.0)
    pace.decoded(-1, 0.0)
    assert pace.tokens_per_s == 0


def test_a_rate_is_tokens_over_time_and_long_tasks_count_for_more() -> None:
    pace = Pace()
    pace.decoded(1000, 20.0)
    assert pace.tokens_per_s == 50
    pace.decoded(1, 0.001)
    assert pace.tokens_per_s == pytest.approx(50, rel=0.01)


def test_a_changed_speed_is_followed_within_tens_of_tasks() -> None:
    pace = Pace()
    for _ in range(100):
        pace.decoded(100, 1.0)
        pace.first_token(0.1)
    for _ in range(30):
        pace.decoded(100, 2.0)
        pace.first_token(0.2)
    assert pace.tokens_per_s == pytest.approx(50, rel=0.1)
    assert pace.first_token_ms == pytest.approx(200, rel=0.1)


def test_the_first_task_sets_the_time_to_the_first_token() -> None:
    pace = Pace()
    pace.first_token(0.25)
    assert pace.first_token_ms == 250


def test_a_mask_can_do_what_its_weakest_device_can() -> None:
    assert compute_capability([gpu("8.6"), gpu("10.0")]) == "8.6"
    assert compute_capability([gpu("9.0"), gpu("10.0")]) == "9.0"
    assert compute_capability([gpu("8.6"), gpu("")]) == ""
    assert compute_capability([]) == ""
