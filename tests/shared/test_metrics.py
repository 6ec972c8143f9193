"""Metrics: names, types and labels are the contract; a process registers them all at its start."""

import re
from pathlib import Path

import pytest

from llorch_shared.contracts.lists import CARDINALITY
from llorch_shared.metrics import METRICS, Metrics

V = ("engine", "engine_version", "pool_id")
REQUIRED = {
    "tasks_enqueued_total": ("counter", (*V, "replica_id", "priority")),
    "tasks_started_total": ("counter", (*V, "replica_id", "priority")),
    "tasks_canceled_total": ("counter", (*V, "replica_id", "reason")),
    "tasks_rejected_total": ("counter", ("engine", "reason")),
    "tokens_in_total": ("counter", (*V, "replica_id")),
    "tokens_out_total": ("counter", (*V, "replica_id")),
    "admission_backpressure_events_total": ("counter", ("engine", "policy")),
    "catalog_verifications_total": ("counter", ("result", "reason", "engine")),
    "queue_depth": ("gauge", (*V, "priority")),
    "kv_cache_usage_ratio": ("gauge", (*V, "replica_id")),
    "gpu_utilization": ("gauge", (*V, "replica_id", "device")),
    "vram_used_bytes": ("gauge", (*V, "replica_id", "device")),
    "model_state": ("gauge", ("model_id", "state")),
    "latency_first_token_ms": ("histogram", (*V, "priority")),
    "latency_decode_ms": ("histogram", (*V, "priority")),
    "placement_decisions_total": ("counter", ("outcome", "pinned", "fallback")),
    "placement_candidates_considered": ("gauge", ()),
    "active_leases": ("gauge", ("pool_id",)),
    "pool_ready": ("gauge", ("pool_id",)),
    "admission_share": ("gauge", ("tenant", "priority")),
    "deadlines_met_ratio": ("gauge", ("priority",)),
    "preemptions_total": ("counter", ("mode", "engine")),
    "resumptions_total": ("counter", ("engine",)),
    "drain_events_total": ("counter", ("pool_id", "reason")),
    "sse_backpressure_drops_total": ("counter", ()),
    "catalog_entries_total": ("counter", ()),
    "admission_latency_ms": ("histogram", ()),
    "predicted_end_ms": ("gauge", ()),
}
"""REQUIREMENTS section 4, all of it."""


def test_the_metrics_of_the_requirements_have_their_type_and_labels() -> None:
    for name, (kind, labels) in REQUIRED.items():
        assert (METRICS[name].kind, METRICS[name].labels) == (kind, labels), name


def test_whatever_is_declared_is_fed_by_somebody() -> None:
    root = Path(__file__).parents[2]
    sources = [path for part in ("services", "shared") for path in (root / part).rglob("*.py")]
    made = r'\.(counter|gauge|histogram)\(\s*"([a-z_]+)"'
    fed = {(match[1], match[0]) for path in sources for match in re.findall(made, path.read_text(encoding="utf-8"))}
    assert fed == {(name, spec.kind) for name, spec in METRICS.items()}


def test_every_label_has_a_budget() -> None:
    assert {label for spec in METRICS.values() for label in spec.labels} == set(CARDINALITY)


def test_first_token_and_decode_times_have_the_recommended_buckets() -> None:
    assert METRICS["latency_first_token_ms"].buckets == (50, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000)
    assert METRICS["latency_decode_ms"].buckets == (250, 500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_metric_is_named_as_its_type_asks(name: str) -> None:
    spec = METRICS[name]
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
    assert name.endswith("_total") is (spec.kind == "counter")
    assert bool(spec.buckets) is (spec.kind == "histogram")
    assert spec.help


def test_all_metrics_are_registered_before_anything_happened() -> None:
    text = Metrics().render().decode()
    for name, spec in METRICS.items():
        assert f"# TYPE {name} {spec.kind}" in text


def test_what_is_counted_appears_under_its_name_with_its_labels() -> None:
    metrics = Metrics()
    labels = {"engine": "mock", "engine_version": "1", "pool_id": "p", "replica_id": "r"}
    metrics.counter("tokens_out_total").labels(**labels).inc(3)
    metrics.gauge("pool_ready").labels(pool_id="p").set(1)
    metrics.histogram("admission_latency_ms").observe(7)
    text = metrics.render().decode()
    assert 'tokens_out_total{engine="mock",engine_version="1",pool_id="p",replica_id="r"} 3.0' in text
    assert 'pool_ready{pool_id="p"} 1.0' in text
    assert 'admission_latency_ms_bucket{le="10.0"} 1.0' in text


def test_two_processes_worth_of_metrics_live_side_by_side() -> None:
    one, two = Metrics(), Metrics()
    one.gauge("bus_connected").set(1)
    assert "bus_connected 1.0" in one.render().decode()
    assert "bus_connected 0.0" in two.render().decode()


def test_a_name_or_a_label_made_elsewhere_is_a_mistake() -> None:
    metrics = Metrics()
    with pytest.raises(KeyError):
        metrics.counter("my_own_total")
    with pytest.raises(AssertionError):
        metrics.gauge("tokens_out_total")
    with pytest.raises(ValueError, match="label"):
        metrics.gauge("pool_ready").labels(tenant="t")


def test_nothing_is_exposed_beside_the_contract() -> None:
    metrics = Metrics()
    metrics.counter("sse_backpressure_drops_total").inc()
    metrics.histogram("admission_latency_ms").observe(1)
    exposed = set(re.findall(r"^# TYPE (\S+) ", metrics.render().decode(), re.MULTILINE))
    assert exposed == set(METRICS)
