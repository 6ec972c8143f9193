"""What this node counts, with the labels of each replica made once."""

from typing import Final

from llorch_shared.metrics import Metrics
from llorch_shared.wire.registry import Gpu
from llorch_shared.wire.task import Priority


class ReplicaMetrics:
    """Metrics of one replica and engine version."""

    def __init__(self, metrics: Metrics, *, engine: str, engine_version: str, pool_id: str, replica_id: str) -> None:
        self._metrics: Final = metrics
        self._labels: Final = (engine, engine_version, pool_id)
        replica = (*self._labels, replica_id)
        self.tokens_in: Final = metrics.counter("tokens_in_total").labels(*replica)
        self.tokens_out: Final = metrics.counter("tokens_out_total").labels(*replica)
        self.kv_used: Final = metrics.gauge("kv_cache_usage_ratio").labels(*replica)
        self._replica: Final = replica
        self._cancel_ms: Final = metrics.histogram("cancel_latency_ms")
        for priority in Priority:
            metrics.counter("tasks_started_total").labels(*replica, priority)

    def started(self, priority: str) -> None:
        self._metrics.counter("tasks_started_total").labels(*self._replica, priority).inc()

    def canceled(self, reason: str, cancel_ms: int | None) -> None:
        self._metrics.counter("tasks_canceled_total").labels(*self._replica, reason).inc()
        if cancel_ms is not None:
            self._cancel_ms.observe(cancel_ms)

    def first_token(self, priority: str, elapsed_ms: float) -> None:
        self._metrics.histogram("latency_first_token_ms").labels(*self._labels, priority).observe(elapsed_ms)

    def decoded(self, priority: str, elapsed_ms: float) -> None:
        self._metrics.histogram("latency_decode_ms").labels(*self._labels, priority).observe(elapsed_ms)

    def gpu(self, gpu: Gpu) -> None:
        device = f"cuda:{gpu.index}"
        self._metrics.gauge("gpu_utilization").labels(*self._replica, device).set(gpu.utilization_percent)
        used = (gpu.vram_total_mb - gpu.vram_free_mb) * 1024 * 1024
        self._metrics.gauge("vram_used_bytes").labels(*self._replica, device).set(used)
