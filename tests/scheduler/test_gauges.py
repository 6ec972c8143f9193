"""Gauges of several pools and shards in one process."""

import pytest

from llorch_scheduler.core.effects import PoolFigures
from llorch_scheduler.gauges import PoolGauges
from llorch_shared.metrics import Metrics
from llorch_shared.wire.task import Priority

HIGH, LOW = Priority.INTERACTIVE, Priority.BATCH


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def share(metrics: Metrics, tenant: str) -> float | None:
    return value(metrics, "admission_share", tenant=tenant, priority="interactive")


def test_a_tenants_share_of_two_pools_is_weighted_by_their_slots(metrics: Metrics) -> None:
    gauges = PoolGauges(metrics)
    gauges.told("big", 9, PoolFigures(shares=(("a", HIGH, 1.0),)))
    gauges.told("small", 1, PoolFigures(shares=(("a", HIGH, 0.5), ("b", HIGH, 0.5))))
    assert share(metrics, "a") == pytest.approx(0.95)
    assert share(metrics, "b") == pytest.approx(0.05)


def test_a_tenant_that_left_has_no_share_and_silence_changes_nothing(metrics: Metrics) -> None:
    gauges = PoolGauges(metrics)
    gauges.told("p", 1, PoolFigures(shares=(("a", HIGH, 1.0),)))
    gauges.told("p", 1, PoolFigures())
    assert share(metrics, "a") == 1
    gauges.told("p", 1, PoolFigures(shares=(("b", HIGH, 1.0),)))
    assert share(metrics, "a") is None
    gauges.forget(["p"])
    assert share(metrics, "b") is None


def test_deadlines_met_are_counted_over_all_pools(metrics: Metrics) -> None:
    gauges = PoolGauges(metrics)
    gauges.told("p", 1, PoolFigures(deadlines_met={HIGH: (9, 10), LOW: (1, 2)}))
    gauges.told("q", 1, PoolFigures(deadlines_met={HIGH: (20, 90)}, start_error={HIGH: 0.25}, breaker_level=1))
    assert value(metrics, "deadlines_met_ratio", priority="interactive") == pytest.approx(0.29)
    assert value(metrics, "deadlines_met_ratio", priority="batch") == 0.5
    assert value(metrics, "predicted_start_error_ratio", pool_id="q", priority="interactive") == 0.25
    assert value(metrics, "breaker_open", pool_id="q") == 1
