"""Measurements over time, brought to at most `POINTS` equal numbers of samples."""

from bisect import bisect_left
from itertools import pairwise
from typing import Final

from llorch_scheduler.simulator.measurement import Ends, Measurement, Waits
from llorch_scheduler.simulator.quantiles import quantile
from llorch_shared.pool_policy import CLASSES
from llorch_shared.wire.simulated import Series
from llorch_shared.wire.task import Priority

POINTS: Final = 120
TENANTS: Final = 12
"""Tenants and classes with a line of their own."""

_Optional = tuple[float | None, ...]


def series_of(measured: Measurement) -> Series:
    """Each point tells about the time since the point before it."""
    cuts = _cuts(measured.samples)
    pools = list(measured.busy)
    queues = list(measured.depth)
    spans = list(pairwise(cuts))
    widths = [after[0] - before[0] for before, after in spans]

    def change(column: int) -> list[float]:
        return [after[column] - before[column] for before, after in spans]

    busy = {pool: change(1 + index) for index, pool in enumerate(pools)}
    ready = {pool: change(1 + len(pools) + index) for index, pool in enumerate(pools)}
    depth = {queue: change(1 + 2 * len(pools) + index) for index, queue in enumerate(queues)}
    refused = change(1 + 2 * len(pools) + len(queues))
    edges = [after[0] for _, after in spans]
    p50, p95 = {}, {}
    for priority in CLASSES:
        p50[str(priority)], p95[str(priority)] = _waits(measured, priority, edges)
    return Series(
        at_s=tuple(round(edge / 1000, 3) for edge in edges),
        wait_p50_s=p50,
        wait_p95_s=p95,
        queued={
            str(priority): tuple(
                round(sum(depth[queue][index] for queue in queues if queue[1] is priority) / width, 3)
                for index, width in enumerate(widths)
            )
            for priority in CLASSES
        },
        utilisation={
            pool: tuple(round(b / r, 4) if r > 0 else None for b, r in zip(busy[pool], ready[pool], strict=True))
            for pool in pools
        },
        refused_per_s=tuple(round(1000 * number / width, 3) for number, width in zip(refused, widths, strict=True)),
        met={str(priority): _met(measured.ends[priority], edges) for priority in CLASSES},
        tenant_wait_p95_s={
            f"{tenant} {priority}": _quantiles([measured.waits[tenant, priority]], edges)[1]
            for tenant, priority in _busiest(measured)
        },
    )


def _cuts(samples: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Samples at different times, evenly chosen, the first and the last among them."""
    distinct = [sample for index, sample in enumerate(samples) if index == 0 or sample[0] > samples[index - 1][0]]
    last = len(distinct) - 1
    if last <= POINTS:
        return distinct
    return [distinct[index * last // POINTS] for index in range(POINTS + 1)]


def _waits(measured: Measurement, priority: Priority, edges: list[float]) -> tuple[_Optional, _Optional]:
    of_class = [waits for (_, of_priority), waits in sorted(measured.waits.items()) if of_priority is priority]
    return _quantiles(of_class, edges)


def _busiest(measured: Measurement) -> list[tuple[str, Priority]]:
    """Tenants and classes with the most starts, in the order of their names."""
    counted = sorted(measured.waits, key=lambda key: (-len(measured.waits[key].waited_ms), key))
    return sorted(counted[:TENANTS])


def _quantiles(groups: list[Waits], edges: list[float]) -> tuple[_Optional, _Optional]:
    """Median and 95th percentile in seconds of the waits that ended in each interval."""
    found: list[list[float]] = [[] for _ in edges]
    for waits in groups:
        for at_ms, waited_ms in zip(waits.started_ms, waits.waited_ms, strict=True):
            found[min(bisect_left(edges, at_ms), len(edges) - 1)].append(waited_ms)
    for values in found:
        values.sort()
    return tuple(_at(values, 0.5) for values in found), tuple(_at(values, 0.95) for values in found)


def _met(ends: Ends, edges: list[float]) -> _Optional:
    ended, met = [0] * len(edges), [0] * len(edges)
    for at_ms, in_time in zip(ends.at_ms, ends.met, strict=True):
        place = min(bisect_left(edges, at_ms), len(edges) - 1)
        ended[place] += 1
        met[place] += in_time
    return tuple(round(number / of, 4) if of else None for number, of in zip(met, ended, strict=True))


def _at(ordered: list[float], share: float) -> float | None:
    return round(quantile(ordered, share) / 1000, 3) if ordered else None
