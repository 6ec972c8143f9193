"""The life of a task told from its records."""

from typing import Any

from llorch_ctl.core.story import sentence, story, verdict
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import Priority, TaskState

TASK = "0d7ecc1e-1fd6-4b8e-9f4a-1d2f7e0a3b5c"
ADMITTED: dict[str, Any] = {
    "queue_position": 3,
    "predicted_start_ms": 1_600,
    "priority": "interactive",
    "ctx": 2048,
    "max_tokens": 20,
    "deadline_ms": 60_000,
    "weight": 5,
    "on_time_probability": 0.83,
}
PLACED: dict[str, Any] = {
    "candidates_considered": 3,
    "filters_applied": ["ready:1", "slots:1"],
    "tie_breakers_applied": ["free_vram_mb"],
    "pinned": True,
    "fallback_used": False,
    "decision_reason": "free_vram_mb",
    "predicted_end_ms": 2_400.0,
    "free_vram_mb": 9_000,
    "active_slots": 1,
    "replica_set": "b1",
    "kv_warmth": False,
    "waited_ms": 2_000,
    "queue_position": 3,
    "predicted_start_ms": 1_600,
    "expected_ms": 2_000,
    "passed_over": "batch",
}


def record(event: AuditEvent, at_ms: int, detail: dict[str, Any] | None = None, **more: Any) -> AuditRecord:
    run_seq = 0 if event is AuditEvent.ADMITTED else at_ms
    fields = {"actor": "scheduler/a", "tenant": "acme", "pool_id": "p1", "run_seq": run_seq, **more}
    fields["detail"] = detail or {}
    return AuditRecord(event=event, task_id=TASK, at_ms=at_ms, **fields)


def run(state: TaskState, **more: Any) -> RunRecord:
    fields = {
        "pool_id": "p1",
        "lane": "bus",
        "correlation_id": "c",
        "tenant": "acme",
        "priority": Priority.INTERACTIVE,
        "admitted_ms": 1_000,
        **more,
    }
    return RunRecord(task_id=TASK, state=state, **fields)


WHOLE = [
    record(AuditEvent.ADMITTED, 1_000, ADMITTED, actor="gateway/gw-1", identity="localhost", channel="http"),
    record(AuditEvent.PLACED, 3_000, PLACED, replica_id="p1-n-0", attempt=1),
    record(AuditEvent.RUNNING, 3_010, replica_id="p1-n-0", attempt=1, actor="poold/n"),
    record(
        AuditEvent.PREEMPTED,
        4_000,
        {"resume_from": 7, "preemptions": 1, "stop_ms": 40, "urgent_task_id": "u-1"},
        replica_id="p1-n-0",
        attempt=1,
    ),
    record(AuditEvent.REQUEUED, 5_000, {"reason": "replica_lost"}, attempt=2),
    record(AuditEvent.PLACED, 5_100, PLACED, replica_id="p1-n-1", attempt=3),
    record(AuditEvent.RUNNING, 5_110, replica_id="p1-n-1", attempt=3, actor="poold/n"),
    record(
        AuditEvent.DONE,
        6_000,
        {"tokens_in": 5, "tokens_out": 20, "decode_ms": 800, "finish_reason": "length"},
        replica_id="p1-n-1",
        attempt=3,
    ),
]


def test_a_life_is_told_from_admission_to_end() -> None:
    told = story(TASK, list(reversed(WHOLE)), run(TaskState.DONE, ended_ms=6_000, attempt=3, preemptions=1))
    said = [line.said for line in told.lines]
    assert said[0] == (
        "admitted to pool p1 through http for localhost as interactive, tenant acme (weight 5), to end within "
        "60000 ms; told position 3, start in 1600 ms, in time with 0.83 [ctx 2048, max_tokens 20]"
    )
    assert said[1] == (
        "placed on p1-n-0 (attempt 1) 2000 ms after its admission: 3 replicas were looked at, ready:1, slots:1 "
        "removed; score of the chosen one: ends in 2400 ms, slot time 2000 ms expected, 9000 MiB of VRAM free, "
        "1 slot taken, replica set b1, its session's cache is elsewhere; decided by free_vram_mb, after free_vram_mb; "
        "pinned by the client; its deadline let it pass the batch task whose turn it was"
    )
    assert said[3].startswith("stopped on p1-n-0 for more urgent work, task u-1; it goes on later from token 7")
    assert said[4] == "taken back and queued again at the front (attempt 2): replica_lost"
    assert said[-1] == "done on p1-n-1: 20 tokens in 800 ms from a prompt of 5 (length)"
    assert (told.state, told.attempts, told.preemptions, told.requeues) == ("done", 3, 1, 1)


def test_the_order_is_that_of_the_run_records_versions_not_of_clocks() -> None:
    placed = record(AuditEvent.PLACED, 3_012, PLACED, run_seq=7)
    begun = record(AuditEvent.RUNNING, 3_010, run_seq=8)
    assert [line.event for line in story(TASK, [begun, WHOLE[0], placed], None).lines] == [
        "admitted",
        "placed",
        "running",
    ]


def test_a_placement_ahead_of_its_record_comes_behind_the_admission_whatever_clocks_say() -> None:
    placed = record(AuditEvent.PLACED, 990, PLACED, run_seq=0)
    begun = record(AuditEvent.RUNNING, 995, run_seq=8)
    assert [line.event for line in story(TASK, [begun, placed, WHOLE[0]], None).lines] == [
        "admitted",
        "placed",
        "running",
    ]


def test_what_was_promised_is_compared_with_what_came_of_it() -> None:
    told = story(TASK, WHOLE, None)
    assert (told.forecast.predicted_start_ms, told.forecast.real_start_ms) == (1_600, 2_010)
    assert told.forecast.error_ratio == 0.204
    assert (told.forecast.deadline_ms, told.forecast.took_ms, told.forecast.on_time) == (60_000, 5_000, True)
    assert verdict(told) == [
        "It was told to start after 1600 ms and did after 2010 (20 % off).",
        "Its deadline was 60000 ms after admission; it ended after 5000: in time.",
        "Its chance to be in time was told as 0.83.",
        "It was preempted once and queued again once.",
    ]


def test_of_a_wait_of_milliseconds_no_percentage_is_told() -> None:
    told = story(TASK, [WHOLE[0], record(AuditEvent.RUNNING, 1_005, run_seq=8)], None)
    assert told.forecast.real_start_ms == 5
    assert verdict(told)[0] == "It was told to start after 1600 ms and did after 5."


def test_ends_without_success_say_why_and_by_which_policy() -> None:
    dropped = record(
        AuditEvent.DROPPED,
        9,
        {"reason": "queue_full", "error_code": "QUEUE_FULL_DROP_LRU", "policy_label": "drop-lru"},
    )
    assert sentence(dropped) == "dropped: queue_full / QUEUE_FULL_DROP_LRU / drop-lru"
    failed = record(AuditEvent.FAILED, 9, {"error": "WORKER_RESET", "tokens_out": 3, "decode_ms": 5}, replica_id="r")
    assert sentence(failed) == "failed on r: WORKER_RESET; 3 tokens in 5 ms"
    late = story(TASK, [WHOLE[0], record(AuditEvent.EXPIRED, 62_000, {"reason": "deadline"})], None)
    assert (late.state, late.forecast.on_time) == ("expired", False)
    assert "no start is on the record" in verdict(late)[0]


def test_who_was_refused_the_id_is_named() -> None:
    refused = record(AuditEvent.ID_IN_USE, 1_500, tenant="other", pool_id="p2", run_seq=0)
    assert sentence(refused) == "tenant other queued a task under this id in pool p2 and was refused"
    assert story(TASK, [*WHOLE, refused], None).state == "done"


def test_a_task_that_waits_is_told_as_it_stands() -> None:
    told = story(TASK, [WHOLE[0]], None)
    assert (told.state, told.forecast.real_start_ms) == ("queued", None)
    assert story(TASK, WHOLE[:2], None).state == "", "it was placed, and its run record is kept no longer"


def test_a_run_without_audit_records_still_has_a_forecast() -> None:
    told = story(TASK, [], run(TaskState.RUNNING, started_ms=1_500, predicted_start_ms=400, on_time_probability=0.9))
    assert told.lines == []
    assert (told.forecast.predicted_start_ms, told.forecast.real_start_ms) == (400, 500)
    assert told.forecast.on_time_probability == 0.9


def test_facts_that_have_no_sentence_are_not_left_out() -> None:
    odd = record(AuditEvent.DONE, 1, {"tokens_out": 1, "queue_depth": 4, "ratio": 0.5, "list": ["a", "b"]})
    assert sentence(odd).endswith("[queue_depth 4, ratio 0.5, list a, b]")
    assert sentence(record(AuditEvent.BREAKER, 1, {"level": 1})) == "breaker [level 1]"
