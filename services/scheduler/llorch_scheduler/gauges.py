"""Gauges of what the core measures: shares, deadlines, the error of its predictions, the circuit breaker."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from llorch_scheduler.core.effects import PoolFigures
from llorch_shared.metrics import Metrics
from llorch_shared.wire.task import Priority

_Flow = tuple[str, Priority]


class PoolGauges:
    """Of one process, whatever shards it decides for. A tenant has one share whatever pools it uses: the mean of its
    shares, weighted by the pools' slots."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics: Final = metrics
        self._shares: Final[dict[str, tuple[int, dict[_Flow, float]]]] = {}
        self._met: Final[dict[str, dict[Priority, tuple[int, int]]]] = {}
        self._told: set[_Flow] = set()

    def told(self, pool_id: str, slots: int, figures: PoolFigures) -> None:
        self._met[pool_id] = figures.deadlines_met
        for priority in figures.deadlines_met:
            met, ended = (
                sum(counts[priority][part] for counts in self._met.values() if priority in counts) for part in (0, 1)
            )
            self._metrics.gauge("deadlines_met_ratio").labels(str(priority)).set(met / ended)
        for priority, ratio in figures.start_error.items():
            self._metrics.gauge("predicted_start_error_ratio").labels(pool_id, str(priority)).set(ratio)
        self._metrics.gauge("breaker_open").labels(pool_id).set(figures.breaker_level)
        if figures.shares is not None:
            self._shares[pool_id] = (slots, {(tenant, each): share for tenant, each, share in figures.shares})
            self._tell_shares()

    def forget(self, pool_ids: Iterable[str]) -> None:
        """Another scheduler decides for these pools now."""
        for pool_id in pool_ids:
            self._met.pop(pool_id, None)
            self._shares.pop(pool_id, None)
        self._tell_shares()

    def _tell_shares(self) -> None:
        slots = max(1, sum(weight for weight, _ in self._shares.values()))
        sums: defaultdict[_Flow, float] = defaultdict(float)
        for weight, shares in self._shares.values():
            for flow, share in shares.items():
                sums[flow] += weight * share / slots
        gauge = self._metrics.gauge("admission_share")
        for tenant, priority in self._told - sums.keys():
            gauge.remove(tenant, str(priority))
        for (tenant, priority), share in sums.items():
            gauge.labels(tenant, str(priority)).set(share)
        self._told = set(sums)
