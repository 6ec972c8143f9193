"""What a client is told about its wait."""

from hypothesis import given
from hypothesis import strategies as st

from llorch_shared.waiting import (
    BOOTSTRAP_MS,
    RETRY_MIN_MS,
    predict,
    predicted_start_ms,
    queue_position,
    retry_after_ms,
)
from llorch_shared.wire.task import Priority
from support.gateways import load_report


def test_without_a_report_nothing_is_known_to_wait() -> None:
    assert queue_position(None, Priority.BATCH, 17) == 0
    assert predict(None, 3) == 3 * BOOTSTRAP_MS
    assert retry_after_ms(None) == RETRY_MIN_MS


def test_a_newcomer_stands_behind_what_is_queued_and_what_arrived_since_the_report() -> None:
    load = load_report(queued={"interactive": 2}, queue_seq={"interactive": 10})
    assert queue_position(load, Priority.INTERACTIVE, 11) == 2
    assert queue_position(load, Priority.INTERACTIVE, 14) == 5


def test_batch_stands_behind_interactive() -> None:
    load = load_report(queued={"interactive": 4, "batch": 1}, queue_seq={"batch": 3})
    assert queue_position(load, Priority.BATCH, 4) == 5
    assert queue_position(load, Priority.INTERACTIVE, 4) >= 4


def test_a_free_slot_means_no_wait() -> None:
    assert predicted_start_ms(1, slots_total=4, slots_free=2, service_ms=500) == 0
    assert predicted_start_ms(2, slots_total=4, slots_free=2, service_ms=500) == 125


def test_until_a_task_has_ended_the_bootstrap_rule_holds() -> None:
    assert predicted_start_ms(3, slots_total=4, slots_free=0, service_ms=0) == 4 * BOOTSTRAP_MS


@given(
    queued=st.integers(0, 1000),
    seq=st.integers(0, 2000),
    accounted=st.integers(0, 2000),
    slots=st.integers(0, 64),
    free=st.integers(0, 64),
    service=st.floats(0, 1e6),
)
def test_position_and_start_are_never_negative_and_grow_together(
    queued: int, seq: int, accounted: int, slots: int, free: int, service: float
) -> None:
    load = load_report(
        queued={"interactive": queued},
        queue_seq={"interactive": accounted},
        slots_total=slots,
        slots_free=min(free, slots),
        service_ms=service,
    )
    position = queue_position(load, Priority.INTERACTIVE, seq)
    assert position >= 0
    assert 0 <= predict(load, position) <= predict(load, position + 1)
    assert retry_after_ms(load) >= RETRY_MIN_MS
