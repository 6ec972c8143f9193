"""Two policies under one load: who would have waited how long, who would have been refused or late.

Rows are classes, then tenants. Each has what was recorded on a live system, if the load is a recording, then what the
simulation makes of it under the present policy, then under the other. Under the present policy a replay has to come
near the recording; how near it comes is told, because the difference between two policies means no more than that.
"""

from typing import Final

import msgspec

from llorch_scheduler.simulator.quantiles import quantile
from llorch_scheduler.simulator.recording import RecordedTask, Recording
from llorch_scheduler.simulator.scenario import Scenario
from llorch_scheduler.simulator.simulation import Simulation
from llorch_scheduler.simulator.tasks import SimTask
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.simulated import Comparison, Group, Outcome, Reproduction, Result, Row

WAIT_MS: Final = 100.0
"""Recorded and simulated waits below this do not differ for anybody."""


class Replaying(Simulation):
    """Remembers what it made of the waits that were recorded."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        super().__init__(scenario, seed)
        self.waits: list[tuple[float, float]] = []

    def started(self, task: SimTask, record: RunRecord, version: str) -> None:
        if task.waited_ms >= 0 and task.started_ms < 0:
            self.waits.append((task.waited_ms, self.clock.now_ms - task.admitted_ms))
        super().started(task, record, version)


def compared(
    present: Result, other: Result | None, *, recording: Recording | None, waits: list[tuple[float, float]]
) -> Comparison:
    """`waits` are the recorded and simulated ones of the same tasks."""
    recorded = _recorded(recording) if recording is not None else {}
    groups = [("", group) for group in present.classes if group.arrived]
    groups += [(group.name, group) for group in present.tenants]
    others = {(name, group.priority): group for name, group in _named(other)} if other is not None else {}
    return Comparison(
        about=present.about,
        partial=present.partial or (other is not None and other.partial),
        left_out=recording.left_out if recording is not None else {},
        reproduction=_reproduction(waits) if recording is not None else None,
        rows=tuple(
            Row(
                name=name or group.name,
                priority=group.priority,
                tasks=group.arrived,
                recorded=recorded.get((name, group.priority)),
                present=_outcome(group),
                other=_outcome(others[name, group.priority]) if (name, group.priority) in others else None,
            )
            for name, group in groups
        ),
        present=present,
        other=other,
    )


def _named(result: Result) -> list[tuple[str, Group]]:
    return [("", group) for group in result.classes] + [(group.name, group) for group in result.tenants]


def _outcome(group: Group) -> Outcome:
    return Outcome(
        wait_p50_ms=group.wait_ms.p50,
        wait_p95_ms=group.wait_ms.p95,
        done=group.done,
        sent_away=group.sent_away,
        refused=group.gave_up + group.infeasible + group.too_long,
        late=group.expired + group.dropped,
        missed=group.due - round(group.due * group.met),
    )


def _recorded(recording: Recording) -> dict[tuple[str, str], Outcome]:
    """By tenant (empty: the whole class) and class."""
    groups: dict[tuple[str, str], list[RecordedTask]] = {}
    for task in recording.tasks:
        for name in ("", task.tenant):
            groups.setdefault((name, str(task.told.priority)), []).append(task)
    return {key: _of_recorded(tasks) for key, tasks in groups.items()}


def _of_recorded(tasks: list[RecordedTask]) -> Outcome:
    waits = sorted(float(task.life.started_ms - task.admitted_ms) for task in tasks if task.life.started_ms)
    ended = [task for task in tasks if task.life.outcome not in ("cancelled", "unfinished")]
    return Outcome(
        wait_p50_ms=round(quantile(waits, 0.5), 1),
        wait_p95_ms=round(quantile(waits, 0.95), 1),
        done=sum(task.life.outcome == "done" for task in tasks),
        sent_away=0,
        refused=0,
        late=sum(task.life.outcome in ("expired", "dropped") for task in tasks),
        missed=sum(
            task.life.outcome != "done" or task.life.ended_ms > task.admitted_ms + task.told.deadline_ms
            for task in ended
        ),
    )


def _reproduction(waits: list[tuple[float, float]]) -> Reproduction:
    errors = sorted(abs(simulated - recorded) for recorded, simulated in waits)
    ratios = sorted(
        abs(simulated - recorded) / max(recorded, simulated)
        for recorded, simulated in waits
        if max(recorded, simulated) >= WAIT_MS
    )
    number = max(1, len(waits))
    return Reproduction(
        tasks=len(waits),
        error_median_ms=round(quantile(errors, 0.5), 1),
        error_median_ratio=round(quantile(ratios, 0.5), 4),
        recorded_mean_ms=round(sum(recorded for recorded, _ in waits) / number, 1),
        simulated_mean_ms=round(sum(simulated for _, simulated in waits) / number, 1),
    )


def encode(comparison: Comparison) -> bytes:
    """The JSON document, byte for byte equal for equal runs."""
    return msgspec.json.format(msgspec.json.encode(comparison), indent=2) + b"\n"
