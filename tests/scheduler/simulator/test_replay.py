"""A recorded load: what is read of an audit stream, that the present policy reproduces it, and what another changes."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from llorch_scheduler.simulator.arrivals import Poisson
from llorch_scheduler.simulator.comparison import Replaying, compared
from llorch_scheduler.simulator.page import comparison_page
from llorch_scheduler.simulator.recording import Recording, RecordingError, read_recording, slot_times
from llorch_scheduler.simulator.replay import recorded_scenario, with_policy
from llorch_scheduler.simulator.scenario import Scenario, ScenarioError
from llorch_scheduler.simulator.scenarios import scenario as shipped
from llorch_scheduler.simulator.sizes import Exponential
from llorch_scheduler.simulator.summary import summarise
from llorch_scheduler.simulator.tasks import SimTask
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.simulated import Comparison
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority, TaskState
from scheduler.simulator_scenarios import Watched, both_classes, flow, pool, scenario

TASK = "00000000-0000-4000-8000-{:012x}"
SESSION = "00000000-0000-4000-8000-00000000000a"


class Recorder(Watched):
    """Writes the audit records that gateway, scheduler and nodes write live."""

    def __init__(self, wanted: Scenario, seed: int = 1) -> None:
        self.records: list[AuditRecord] = []
        super().__init__(wanted, seed)

    def admitted(self, task: SimTask, *arguments: Any) -> None:
        self._say(AuditEvent.ADMITTED, task.task_id, pool_id=task.flow.pool_id, tenant=task.tenant, detail=told(task))
        super().admitted(task, *arguments)

    def _stored(self, record: RunRecord) -> None:
        super()._stored(record)
        if record.state is not TaskState.PLACED or record.replica_id:
            event = AuditEvent(str(record.state))
            detail: dict[str, Any] = {"tokens_in": record.tokens_in, "tokens_out": record.tokens_out}
            self._say(event, record.task_id, pool_id=record.pool_id, replica_id=record.replica_id, detail=detail)

    def _say(self, event: AuditEvent, task_id: str, **fields: Any) -> None:
        self.records.append(AuditRecord(event=event, task_id=task_id, at_ms=self.wall_ms(), actor="test", **fields))


def told(task: SimTask) -> dict[str, Any]:
    return {
        "priority": str(task.priority),
        "max_tokens": task.max_tokens,
        "deadline_ms": task.deadline_ms,
        "session_id": task.session,
    }


def lines(records: list[AuditRecord], *specs: PoolSpec) -> Iterator[bytes]:
    yield from (b'{"pool":%b}' % msgspec.json.encode(spec) for spec in specs)
    yield from (msgspec.json.encode(record) for record in records)


def record(event: AuditEvent, task: int, at_ms: int, **fields: Any) -> AuditRecord:
    values: dict[str, Any] = {"actor": "x", "tenant": "t", "pool_id": "p1", **fields}
    return AuditRecord(event=event, task_id=TASK.format(task), at_ms=at_ms, **values)


def admission(task: int, at_ms: int, **detail: Any) -> AuditRecord:
    said = {"priority": "batch", "max_tokens": 50, "deadline_ms": 60_000, "session_id": SESSION, **detail}
    return record(AuditEvent.ADMITTED, task, at_ms, detail=said)


def replayed(recording: Recording, policy: list[dict[str, Any]] | None = None) -> Comparison:
    present = recorded_scenario(recording, "hour.jsonl")
    first = Replaying(present, 1)
    first.run()
    other = summarise(Replaying(with_policy(present, policy), 1).run(), scale=1) if policy else None
    return compared(summarise(first, scale=1), other, recording=recording, waits=first.waits)


@pytest.fixture(scope="module")
def hour() -> Recording:
    """Two classes at nine tenths of the capacity of four slots, as a live system would have recorded them."""
    plan = pool(replicas=2, slots=2)
    recorder = Recorder(scenario(plan, *both_classes(18, output=Exponential(2_000)), tasks=1_500, store_ms=2.0))
    recorder.run()
    return read_recording(lines(recorder.records, plan.spec), "hour.jsonl")


def test_the_present_policy_reproduces_what_was_recorded(hour: Recording) -> None:
    comparison = replayed(hour)
    found = comparison.reproduction
    assert found is not None
    assert found.tasks == 1_500
    assert found.error_median_ms <= 20
    assert found.simulated_mean_ms == pytest.approx(found.recorded_mean_ms, rel=0.05)
    for row in comparison.rows:
        assert row.recorded is not None
        assert row.present.done == row.recorded.done == row.tasks
        assert row.present.wait_p95_ms == pytest.approx(row.recorded.wait_p95_ms, rel=0.1, abs=30)


def test_another_policy_says_who_would_have_waited_how_long(hour: Recording) -> None:
    batch_first = [{"id": "p1", "admission": {"priorities": [{"name": "batch", "weight": 100}]}}]
    rows = {row.name: row for row in replayed(hour, batch_first).rows}
    interactive, batch = rows["interactive"], rows["batch"]
    assert interactive.other is not None
    assert batch.other is not None
    assert interactive.other.wait_p95_ms > 2 * interactive.present.wait_p95_ms
    assert batch.other.wait_p95_ms < 0.5 * batch.present.wait_p95_ms


def test_another_policy_says_who_would_have_been_sent_away(hour: Recording) -> None:
    rows = replayed(hour, [{"id": "p1", "queue": {"capacity": 1}}]).rows
    assert all(row.present.sent_away == 0 for row in rows)
    assert all(row.other.sent_away > 0 for row in rows if row.other is not None)


def test_the_page_shows_the_difference_before_both_results(hour: Recording) -> None:
    html = comparison_page(replayed(hour, [{"id": "p1", "queue": {"capacity": 1}}]))
    assert html.index("Difference: recorded / present / other") < html.index("Present policy") < html.index("Other")


def test_a_recording_knows_slots_times_and_ends() -> None:
    recording = read_recording(
        lines(
            [
                admission(1, 1_000),
                record(AuditEvent.PLACED, 1, 1_100, replica_id="r1"),
                record(AuditEvent.RUNNING, 1, 1_104, replica_id="r1"),
                record(AuditEvent.RUNNING, 2, 1_500, replica_id="r1"),
                admission(2, 1_400),
                record(AuditEvent.DONE, 1, 3_104, replica_id="r1", detail={"tokens_in": 7, "tokens_out": 9}),
                record(AuditEvent.REQUEUED, 2, 3_500),
                admission(3, 4_000),
                record(AuditEvent.CANCELLED, 3, 4_500),
                record(AuditEvent.DONE, 9, 4_600),
                record(AuditEvent.ADMITTED, 4, 4_700),
            ]
        ),
        "x",
    )
    assert recording.replicas == {"p1": {"r1": 2}}
    assert recording.left_out == {"admitted before the recording": 1, "without details": 1}
    assert recording.claim_ms == 4
    first, second, third = recording.tasks
    assert (first.life.started_ms, first.life.slot_ms, first.life.tokens_out) == (1_104, 2_000, 9)
    assert second.life.outcome == "unfinished"
    assert third.life.outcome == "cancelled"
    assert list(slot_times(recording).values()) == [2_000, 2_000, 2_000], "what never ended is as long as its like"


def test_a_cancelled_task_is_cancelled_after_the_same_time() -> None:
    recorded = [
        admission(1, 1_000),
        record(AuditEvent.RUNNING, 1, 1_010, replica_id="r1"),
        admission(2, 1_100),
        record(AuditEvent.CANCELLED, 2, 1_600),
        record(AuditEvent.DONE, 1, 9_010, replica_id="r1"),
    ]
    comparison = replayed(read_recording(lines(recorded), "x"))
    assert comparison.present.outcomes["cancelled"] == 1
    assert comparison.present.outcomes["done"] == 1


def test_a_line_that_is_no_record_is_refused_with_its_number() -> None:
    with pytest.raises(RecordingError, match=r"hour:2: neither an audit record nor a pool"):
        read_recording([msgspec.json.encode(admission(1, 1)), b"{}"], "hour")


def test_a_recording_without_an_admission_is_refused() -> None:
    with pytest.raises(RecordingError, match="no admission"):
        read_recording(lines([record(AuditEvent.DONE, 1, 5)]), "hour")


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"id": "nowhere"}, "there are chat"),
        ({"id": "chat", "queue": {"capacity": -1}}, "the policy of pool chat"),
        ({"id": "chat", "quue": {}}, "quue"),
    ],
)
def test_a_policy_that_does_not_fit_is_told(policy: dict[str, Any], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        with_policy(shipped("home"), [policy])


def test_a_policy_keeps_what_it_does_not_name() -> None:
    changed = with_policy(shipped("canary"), [{"id": "chat", "queue": {"capacity": 5}}])
    spec = changed.pools[0].spec
    assert (spec.queue.capacity, spec.canary) == (5, shipped("canary").pools[0].spec.canary)
    assert changed.changes[0].spec.queue.capacity == 5, "the fragment is laid over later changes, too"
    assert changed.changes[0].spec.canary is None


def test_another_number_of_slots_is_that_of_the_replicas() -> None:
    changed = with_policy(shipped("home"), [{"id": "chat", "slots": 6}])
    assert [replica.slots for replica in changed.pools[0].replicas] == [6, 4], "the other card has a number of its own"


def test_the_comparison_is_json(hour: Recording) -> None:
    made = json.loads(msgspec.json.encode(replayed(hour)))
    assert made["other"] is None
    assert {row["priority"] for row in made["rows"]} == {str(each) for each in Priority}


def test_without_a_specification_a_pool_has_the_slots_that_were_seen() -> None:
    made = recorded_scenario(read_recording(lines([admission(1, 1)]), "x"), "x")
    assert made.pools[0].spec.engine is Engine.MOCK
    assert made.pools[0].replicas[0].slots == 1


def test_recorded_tasks_of_one_flow_take_their_recorded_time() -> None:
    recorder = Recorder(scenario(pool(), flow(Poisson(5)), tasks=20))
    recorder.run()
    recording = read_recording(lines(recorder.records), "x")
    assert set(slot_times(recording).values()) == {100.0}
