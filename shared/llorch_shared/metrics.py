"""Every metric of the system: name, type, labels, as the contract has them (REQUIREMENTS section 4).

Each service takes the ones it feeds from one `Metrics` and exposes them; a name or label made elsewhere is a mistake.
"""

from typing import Final, Literal

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

# Beyond the names of the contract it would expose a `…_created` gauge for each counter.
disable_created_metrics()  # type: ignore[no-untyped-call]

_V: Final = ("engine", "engine_version", "pool_id")
_FIRST_TOKEN_MS: Final = (50, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000)
_DECODE_MS: Final = (250, 500, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 12000)
_ADMISSION_MS: Final = (1, 2, 5, 10, 20, 50, 100, 250, 500, 1000, 2500)
_CANCEL_MS: Final = (2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)


class MetricSpec(msgspec.Struct, frozen=True):
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: Final[dict[str, MetricSpec]] = {
    "tasks_enqueued_total": MetricSpec("counter", "Tasks accepted into a queue", (*_V, "replica_id", "priority")),
    "tasks_started_total": MetricSpec("counter", "Tasks an engine began", (*_V, "replica_id", "priority")),
    "tasks_canceled_total": MetricSpec("counter", "Tasks ended by a cancel", (*_V, "replica_id", "reason")),
    "tasks_rejected_total": MetricSpec("counter", "Tasks refused at admission", ("engine", "reason")),
    "tokens_in_total": MetricSpec("counter", "Prompt tokens as the engine counted them", (*_V, "replica_id")),
    "tokens_out_total": MetricSpec("counter", "Generated tokens as the engine counted them", (*_V, "replica_id")),
    "admission_backpressure_events_total": MetricSpec(
        "counter", "Admissions refused or dropped by a full queue", ("engine", "policy")
    ),
    "catalog_verifications_total": MetricSpec("counter", "Artifact verifications", ("result", "reason", "engine")),
    "queue_depth": MetricSpec("gauge", "Tasks waiting", (*_V, "priority")),
    "kv_cache_usage_ratio": MetricSpec("gauge", "Used share of a replica's KV cache", (*_V, "replica_id")),
    "gpu_utilization": MetricSpec("gauge", "GPU utilisation, percent", (*_V, "replica_id", "device")),
    "vram_used_bytes": MetricSpec("gauge", "Used GPU memory", (*_V, "replica_id", "device")),
    "model_state": MetricSpec("gauge", "1 for the state a model is in", ("model_id", "state")),
    "latency_first_token_ms": MetricSpec("histogram", "Admission to first token", (*_V, "priority"), _FIRST_TOKEN_MS),
    "latency_decode_ms": MetricSpec("histogram", "First to last token", (*_V, "priority"), _DECODE_MS),
    "placement_decisions_total": MetricSpec("counter", "Placement decisions", ("outcome", "pinned", "fallback")),
    "placement_candidates_considered": MetricSpec("gauge", "Replicas looked at by the last decision"),
    "admission_share": MetricSpec(
        "gauge", "Part of the slot time that a tenant's class got lately (EWMA)", ("tenant", "priority")
    ),
    "deadlines_met_ratio": MetricSpec("gauge", "Part of the lately ended tasks that met their deadline", ("priority",)),
    "preemptions_total": MetricSpec("counter", "Work that had to make way for more urgent work", ("mode", "engine")),
    "resumptions_total": MetricSpec("counter", "Preempted tasks that run again", ("engine",)),
    "breaker_open": MetricSpec("gauge", "Classes that a pool's circuit breaker refuses now", ("pool_id",)),
    "predicted_start_error_ratio": MetricSpec(
        "gauge", "Median of |real - predicted| over real waits lately", ("pool_id", "priority")
    ),
    "active_leases": MetricSpec("gauge", "Tasks a pool holds slots for", ("pool_id",)),
    "pool_ready": MetricSpec("gauge", "1 when a pool has a ready replica", ("pool_id",)),
    "drain_events_total": MetricSpec("counter", "Replicas that began to drain", ("pool_id", "reason")),
    "catalog_entries_total": MetricSpec("counter", "Models entered into the catalog"),
    "predicted_end_ms": MetricSpec("gauge", "Time until the end that the last placement expects of its task"),
    "sse_backpressure_drops_total": MetricSpec("counter", "Metrics frames not sent to slow readers"),
    "admission_latency_ms": MetricSpec("histogram", "Request read to publish acknowledged", (), _ADMISSION_MS),
    "sse_streams_open": MetricSpec("gauge", "Open token streams"),
    "requests_limited_total": MetricSpec("counter", "Requests refused because their token is at a limit", ("reason",)),
    "tokens_known": MetricSpec("gauge", "Bearer tokens that this gateway accepts"),
    "tokens_file_stale": MetricSpec(
        "gauge", "1 while the token file cannot be used and the tokens read before stay in effect"
    ),
    "bus_connected": MetricSpec("gauge", "1 while the bus connection stands"),
    "bus_errors_total": MetricSpec("counter", "Errors the bus connection reported", ("kind",)),
    "node_fenced": MetricSpec("gauge", "1 while a node publishes nothing because its registry keys are not confirmed"),
    "scheduler_active": MetricSpec("gauge", "Shards whose pools this scheduler decides for"),
    "dead_letters_total": MetricSpec(
        "counter", "Messages of a queue that were set aside because they cannot be worked on", ("kind", "reason")
    ),
    "messages_ignored_total": MetricSpec(
        "counter", "Stored state that was passed over because a newer release wrote it", ("kind",)
    ),
    "shards_taken_total": MetricSpec(
        "counter", "Leases of shards this scheduler took, by what had become of the holder before", ("reason",)
    ),
    "replicas_lost_total": MetricSpec(
        "counter", "Replicas that were lost: gone with their node, or not heard of until expiry", ("pool_id", "reason")
    ),
    "replica_restarts_total": MetricSpec("counter", "Engine processes started again", ("pool_id",)),
    "erasures_failed_total": MetricSpec(
        "counter", "Times an engine did not erase a slot that holds the text of a session that has ended", ("pool_id",)
    ),
    "slots_unerased": MetricSpec(
        "gauge", "Slots that hold such text because the engine fails to erase it", ("pool_id", "replica_id")
    ),
    "cancel_latency_ms": MetricSpec(
        "histogram", "Stored wish to cancel until no engine works for the task", (), _CANCEL_MS
    ),
}


class Metrics:
    """The metrics of one process, all registered at start."""

    def __init__(self) -> None:
        self.registry: Final = CollectorRegistry()
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        for name, spec in METRICS.items():
            if spec.kind == "counter":
                self._made[name] = Counter(name.removesuffix("_total"), spec.help, spec.labels, registry=self.registry)
            elif spec.kind == "gauge":
                self._made[name] = Gauge(name, spec.help, spec.labels, registry=self.registry)
            else:
                self._made[name] = Histogram(name, spec.help, spec.labels, registry=self.registry, buckets=spec.buckets)

    def counter(self, name: str) -> Counter:
        made = self._made[name]
        assert isinstance(made, Counter)
        return made

    def gauge(self, name: str) -> Gauge:
        made = self._made[name]
        assert isinstance(made, Gauge)
        return made

    def histogram(self, name: str) -> Histogram:
        made = self._made[name]
        assert isinstance(made, Histogram)
        return made

    def render(self) -> bytes:
        return generate_latest(self.registry)
