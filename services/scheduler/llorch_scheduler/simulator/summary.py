"""Makes the result of a simulation out of what was measured."""

from collections.abc import Iterable
from itertools import chain
from typing import Final

from llorch_scheduler.simulator.measurement import Chances, Measurement, Waits
from llorch_scheduler.simulator.quantiles import quantile
from llorch_scheduler.simulator.series import series_of
from llorch_scheduler.simulator.share_series import fairness_of, shares_of
from llorch_scheduler.simulator.simulation import Simulation
from llorch_shared.pool_policy import CLASSES
from llorch_shared.wire.simulated import (
    Calibration,
    Group,
    PoolResult,
    Prediction,
    Quantiles,
    Result,
    Returns,
    Tenth,
)
from llorch_shared.wire.task import Priority

TOLD_MS: Final = 1_000
"""Waits below this are not what anybody plans by."""

_OUTCOMES: Final = ("done", "expired", "failed", "dropped", "cancelled", "gave_up", "infeasible", "too_long")


def summarise(simulation: Simulation, *, scale: float) -> Result:
    measured, scenario = simulation.measured, simulation.scenario
    end_ms = simulation.ended_ms
    keys = sorted({(tenant, priority) for tenant, priority, _ in measured.outcomes})
    outcomes = {
        name: sum(number for (_, _, outcome), number in measured.outcomes.items() if outcome == name)
        for name in _OUTCOMES
    }
    return Result(
        scenario=scenario.name,
        about=scenario.about,
        seed=simulation.seed,
        scale=scale,
        partial=simulation.partial,
        simulated_s=round(end_ms / 1000, 3),
        tasks=scenario.tasks,
        arrived=simulation.arrived_count,
        outcomes={**outcomes, "unfinished": simulation.arrived_count - sum(outcomes.values())},
        refusals=measured.refusals.total(),
        returns=Returns(
            tries=measured.returned,
            admitted=measured.returned_admitted,
            promised=measured.promised,
            promised_admitted=measured.promised_admitted,
        ),
        requeues=dict(sorted(measured.requeues.items())),
        tokens_per_s=_per_s(measured.tokens_out.total(), end_ms),
        utilisation=_utilisation(measured, list(measured.busy)),
        preemptions=measured.preempted.total(),
        prediction=_prediction(measured.waits.values()),
        calibration=Calibration(
            at_admission=_tenths(measured.told_at_admission), at_placement=_tenths(measured.told_at_placement)
        ),
        fairness=tuple(fairness_of(measured.shares.windows, simulation.specs, priority) for priority in CLASSES),
        classes=tuple(
            _group(measured, str(priority), [key for key in keys if key[1] is priority], priority, end_ms)
            for priority in CLASSES
        ),
        tenants=tuple(_group(measured, tenant, [(tenant, priority)], priority, end_ms) for tenant, priority in keys),
        pools=tuple(_pool(simulation, pool_id, end_ms) for pool_id in measured.busy),
        series=series_of(measured),
        shares=shares_of(measured.shares.windows, simulation.specs),
    )


def _quantiles(values: Iterable[float]) -> Quantiles:
    ordered = sorted(values)
    return Quantiles(
        p50=round(quantile(ordered, 0.5), 1),
        p95=round(quantile(ordered, 0.95), 1),
        p99=round(quantile(ordered, 0.99), 1),
        mean=round(sum(ordered) / len(ordered), 1) if ordered else 0.0,
        most=round(ordered[-1], 1) if ordered else 0.0,
    )


def _group(
    measured: Measurement, name: str, keys: list[tuple[str, Priority]], priority: Priority, end_ms: float
) -> Group:
    """The tasks of some tenants in one class, taken together."""
    counts = {outcome: sum(measured.outcomes[*key, outcome] for key in keys) for outcome in ("arrived", *_OUTCOMES)}
    waits = [measured.waits[key] for key in keys if key in measured.waits]
    due = sum(measured.due[key] for key in keys)
    return Group(
        name=name,
        priority=str(priority),
        arrived=counts["arrived"],
        started=sum(len(each.waited_ms) for each in waits),
        done=counts["done"],
        expired=counts["expired"],
        failed=counts["failed"],
        dropped=counts["dropped"],
        infeasible=counts["infeasible"],
        sent_away=sum(measured.sent_away[key] for key in keys),
        gave_up=counts["gave_up"],
        too_long=counts["too_long"],
        unfinished=counts["arrived"] - sum(counts[outcome] for outcome in _OUTCOMES),
        wait_ms=_quantiles(chain.from_iterable(each.waited_ms for each in waits)),
        to_start_ms=_quantiles(chain.from_iterable(each.since_arrival_ms for each in waits)),
        tokens_per_s=_per_s(sum(measured.tokens_out[*key, pool] for key in keys for pool in measured.busy), end_ms),
        due=due,
        met=_part(sum(measured.met[key] for key in keys), due),
        preempted=sum(measured.preempted[key] for key in keys),
    )


def _pool(simulation: Simulation, pool_id: str, end_ms: float) -> PoolResult:
    measured = simulation.measured
    plan = next(pool for pool in simulation.scenario.pools if pool.spec.id == pool_id)
    refusals: dict[str, int] = {}
    for (pool, _, reason), number in sorted(measured.refusals.items()):
        if pool == pool_id:
            refusals[reason] = refusals.get(reason, 0) + number
    return PoolResult(
        pool_id=pool_id,
        replicas=len(plan.replicas),
        slots=sum(replica.slots for replica in plan.replicas),
        utilisation=_utilisation(measured, [pool_id]),
        tokens_per_s=_per_s(
            sum(number for (_, _, pool), number in measured.tokens_out.items() if pool == pool_id), end_ms
        ),
        queue_peak={str(priority): measured.depth[pool_id, priority].peak for priority in CLASSES},
        refusals=refusals,
        starts={version: number for (pool, version), number in sorted(measured.versions.items()) if pool == pool_id},
    )


def _utilisation(measured: Measurement, pools: list[str]) -> float:
    at_ms = measured.samples[-1][0]
    ready = sum(measured.ready[pool].integral(at_ms) for pool in pools)
    busy = sum(measured.busy[pool].integral(at_ms) for pool in pools)
    return round(busy / ready, 4) if ready else 0.0


def _prediction(groups: Iterable[Waits]) -> Prediction:
    errors, ratios = [], []
    for group in groups:
        for told, waited in zip(group.told_ms, group.waited_ms, strict=True):
            if max(told, waited) >= TOLD_MS:
                errors.append(abs(told - waited))
                ratios.append(abs(told - waited) / max(waited, 1.0))
    errors.sort()
    ratios.sort()
    return Prediction(
        tasks=len(errors),
        error_median_ms=round(quantile(errors, 0.5), 1),
        error_median_ratio=round(quantile(ratios, 0.5), 4),
        within_20_percent=round(sum(ratio <= 0.2 for ratio in ratios) / len(ratios), 4) if ratios else 0.0,
    )


def _tenths(chances: Chances) -> tuple[Tenth, ...]:
    if not sum(chances.number):
        return ()
    return tuple(
        Tenth(tasks=number, told=_part(told, number), real=_part(met, number))
        for number, told, met in zip(chances.number, chances.told, chances.met, strict=True)
    )


def _part(number: float, of: int) -> float:
    return round(number / of, 4) if of else 0.0


def _per_s(number: float, ms: float) -> float:
    return round(1000 * number / ms, 3) if ms > 0 else 0.0
