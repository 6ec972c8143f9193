"""One attempt ends in one way, and nothing is said after it."""

import random

import msgspec
import pytest

from llorch_poold.core.audit import audit_of, preemption_of, requeue_of
from llorch_poold.core.seed import SEED_SPACE, seed_of
from llorch_poold.core.task import (
    Cancelled,
    Failed,
    Finished,
    IllegalPhase,
    Lost,
    Outcome,
    Phase,
    Preempted,
    TaskCore,
    claim_record,
    error_body,
)
from llorch_shared.errors import ErrorCode
from llorch_shared.states import IllegalMove
from llorch_shared.wire.run import RunRecord
from llorch_shared.wire.task import Engine, Priority, TaskState
from support.node_harness import task_request

PLACED = RunRecord(
    task_id="6f1e0c9e-5d1b-4c57-9c2d-000000000001",
    state=TaskState.PLACED,
    pool_id="p",
    lane="gw-1",
    correlation_id="c",
    tenant="default",
    priority=Priority.INTERACTIVE,
    admitted_ms=1,
)


CLAIM: dict[str, str] = {
    "node_id": "n",
    "replica_id": "r",
    "incarnation": "i",
    "determinism_class": "c1",
    "token_log": "a#7",
}


def running() -> TaskCore:
    core = TaskCore(PLACED, 4)
    core.claimed(claim_record(PLACED, now_ms=5, **CLAIM), 5)
    return core


def test_what_died_with_another_node_is_added_once() -> None:
    core = TaskCore(msgspec.structs.replace(PLACED, attempt=3, decode_ms=10, lost=(1, 2)), 1)
    core.charged(50)
    core.charged(50)
    assert (core.run.decode_ms, core.run.lost) == (60, ())


def test_a_claim_says_who_holds_the_task() -> None:
    run = running().run
    assert (run.state, run.node_id, run.replica_id, run.incarnation, run.started_ms) == ("running", "n", "r", "i", 5)
    with pytest.raises(IllegalMove):
        claim_record(run, now_ms=6, **CLAIM)


def test_where_and_on_what_a_stream_began_is_told_by_the_first_attempt_alone() -> None:
    first = running().run
    assert (first.determinism_class, first.token_log) == ("c1", "a#7")
    again = msgspec.structs.replace(first, state=TaskState.PLACED, attempt=2)
    second = claim_record(again, now_ms=6, **{**CLAIM, "determinism_class": "c2", "token_log": "b#9"})
    assert (second.determinism_class, second.token_log) == ("c1", "a#7")


def test_the_first_lost_attempt_is_given_back_as_the_scheduler_would_take_it_back() -> None:
    core = running()
    assert core.conclude(Lost("garbage", again="engine_failed"))
    assert core.gives_back()
    core.released()
    record = core.given_back_record(decode_ms=0)
    assert (record.state, record.attempt, record.preemptions) == (TaskState.PLACED, 2, 0)
    assert (record.replica_id, record.node_id, record.incarnation, record.started_ms) == ("", "", "", 0)
    assert (record.determinism_class, record.token_log) == ("c1", "a#7")
    audit = requeue_of(record, 9, "n", at_ms=7, reason="engine_failed")
    assert (audit.event, audit.attempt, audit.run_seq, audit.detail) == ("requeued", 2, 9, {"reason": "engine_failed"})


@pytest.mark.parametrize(
    ("attempt", "preemptions", "again", "gives_back"),
    [(1, 0, "engine_failed", True), (3, 2, "engine_failed", True), (2, 0, "engine_failed", False), (1, 0, "", False)],
)
def test_what_is_lost_again_waits_for_the_scheduler(
    attempt: int, preemptions: int, again: str, gives_back: bool
) -> None:
    placed = msgspec.structs.replace(PLACED, attempt=attempt, preemptions=preemptions)
    core = TaskCore(placed, 4)
    core.claimed(claim_record(placed, now_ms=5, **CLAIM), 5)
    core.conclude(Lost("garbage", again=again))
    assert core.gives_back() is gives_back


def test_the_time_of_attempts_that_ended_in_order_adds_up() -> None:
    core = running()
    core.conclude(Lost("garbage", again="engine_failed"))
    core.released()
    record = core.given_back_record(decode_ms=300)
    for total in (500, 700):
        core = TaskCore(record, 6)
        core.claimed(claim_record(record, now_ms=5, **CLAIM), 7)
        core.conclude(Preempted("u-1"))
        core.released()
        record = core.preempted_record(resume_from=3, decode_ms=200)
        assert record.decode_ms == total
    core = TaskCore(record, 8)
    core.claimed(claim_record(record, now_ms=5, **CLAIM), 9)
    core.conclude(Finished("stop", 3, 5))
    core.released()
    assert core.final_record(now_ms=9, decode_ms=40).decode_ms == 740


def test_an_attempt_that_goes_on_counts_the_stream() -> None:
    core = running()
    core.starts_at(40)
    core.begun()
    assert (core.tokens(2), core.tokens(3)) == (40, 42)
    core.conclude(Finished("stop", 3, 5))
    core.released()
    record = core.final_record(now_ms=9, decode_ms=1)
    assert (record.tokens_out, record.restarted_at) == (45, None)


def test_an_attempt_that_began_anew_says_from_where_on_its_result_counts() -> None:
    core = running()
    core.starts_at(40, 40)
    core.begun()
    core.tokens(2)
    core.conclude(Cancelled("client"))
    core.released()
    record = core.final_record(now_ms=9, decode_ms=1)
    assert (record.tokens_out, record.restarted_at) == (42, 40)


def test_a_cancel_before_the_last_frame_wins() -> None:
    core = running()
    core.begun()
    assert core.tokens(3) == 0
    assert core.conclude(Cancelled("client"))
    assert not core.conclude(Finished("stop", 1, 3))
    core.released()
    record = core.final_record(now_ms=9, decode_ms=2)
    assert (record.state, record.finish_reason, record.tokens_out) == (TaskState.CANCELLED, "cancelled", 3)


def test_a_cancel_after_the_last_frame_is_too_late() -> None:
    core = running()
    core.begun()
    assert core.conclude(Finished("length", 1, 0))
    assert not core.conclude(Cancelled("client"))
    core.released()
    assert core.final_record(now_ms=9, decode_ms=2).state is TaskState.DONE


def test_a_cancel_before_the_claim_is_left_to_the_stored_wish() -> None:
    assert not TaskCore(PLACED, 4).conclude(Cancelled("client"))


def test_a_lost_task_has_no_final_record() -> None:
    core = running()
    core.conclude(Lost("engine died"))
    with pytest.raises(IllegalPhase):
        core.final_record(now_ms=9, decode_ms=2)


def test_the_end_of_a_later_attempt_counts_what_readers_have_already() -> None:
    core = running()
    core.begun()
    core.tokens(2)
    core.sent_before = 4
    core.conclude(Cancelled("client"))
    core.released()
    assert core.final_record(now_ms=9, decode_ms=2).tokens_out == 4


def test_a_failed_task_is_audited_with_its_cause() -> None:
    core = running()
    core.conclude(Failed(error_body(ErrorCode.DECODE_TIMEOUT, "silent", engine=Engine.MOCK, pool_id="p")))
    core.released()
    record = audit_of(core.final_record(now_ms=9, decode_ms=2), 6, "n")
    assert (record.event, record.at_ms, record.detail["error"]) == ("failed", 9, "DECODE_TIMEOUT")


def strict(**changes: object) -> TaskCore:
    request = task_request(**changes)
    run = msgspec.structs.replace(PLACED, request=request, state=TaskState.RUNNING, attempt=2, preemptions=1)
    core = TaskCore(run, 4)
    core.claimed(run, 5)
    return core


def test_what_a_later_attempt_can_repeat_makes_way() -> None:
    core = strict()
    assert core.refuses_preemption(5, tokens_sent=0) == ""
    core.begun()
    core.tokens(3)
    assert core.refuses_preemption(5, tokens_sent=3) == ""
    assert "another claim" in core.refuses_preemption(4, tokens_sent=3)
    assert strict(determinism="best_effort").refuses_preemption(5, tokens_sent=0) == ""
    assert "no later attempt repeats" in strict(determinism="best_effort").refuses_preemption(5, tokens_sent=1)
    assert "not to be interrupted" in strict(failover="fail").refuses_preemption(5, tokens_sent=1)
    assert "only a completion" in strict(workload="embedding").refuses_preemption(5, tokens_sent=0)
    assert "only a completion" in running().refuses_preemption(5, tokens_sent=0), "its request is not known"
    assert TaskCore(PLACED, 4).refuses_preemption(4, tokens_sent=0) == "it is ending"
    core.conclude(Finished("stop", 1, 3))
    assert core.refuses_preemption(5, tokens_sent=3) == "it is ending"


def test_a_preempted_task_goes_back_to_the_scheduler_with_all_it_needs() -> None:
    core = strict(seed=3)
    core.begun()
    core.tokens(3)
    core.tokens_in = 7
    assert core.conclude(Preempted("u-1"))
    assert not core.conclude(Finished("stop", 7, 3))
    assert not core.conclude(Lost("died"))
    core.released()
    assert not core.conclude(Cancelled("client")), "too late: the stored wish is for whoever has it next"
    record = core.preempted_record(resume_from=3, decode_ms=0)
    assert (record.state, record.attempt, record.preemptions) == (TaskState.PLACED, 3, 2)
    assert (record.replica_id, record.node_id, record.incarnation) == ("", "", "")
    assert (record.tokens_in, record.tokens_out) == (7, 3)
    assert record.request == core.run.request
    with pytest.raises(IllegalPhase):
        core.final_record(now_ms=9, decode_ms=2)


def test_a_cancel_ends_what_is_being_preempted() -> None:
    core = strict()
    core.begun()
    assert core.conclude(Preempted("u-1"))
    assert core.conclude(Cancelled("client"))
    assert not core.conclude(Preempted("u-1"))
    core.released()
    assert core.final_record(now_ms=9, decode_ms=2).state is TaskState.CANCELLED


def test_the_audit_of_a_preemption_names_the_attempt_that_was_stopped() -> None:
    core = running()
    core.conclude(Preempted("u-1"))
    core.released()
    after = core.preempted_record(resume_from=4, decode_ms=0)
    audit = preemption_of(core.run, after, 6, at_ms=9, stop_ms=12, urgent_task_id="u-1")
    assert (audit.event, audit.attempt, audit.replica_id, audit.run_seq) == ("preempted", 1, "r", 6)
    assert audit.detail == {"resume_from": 4, "preemptions": 1, "stop_ms": 12, "urgent_task_id": "u-1"}


def test_the_seed_is_the_requests_or_follows_from_the_task() -> None:
    assert seed_of("A", 7) == 7
    assert seed_of("6F1E0C9E", None) == seed_of("6f1e0c9e", None)
    assert all(0 <= seed_of(str(number), None) < SEED_SPACE for number in range(100))


@pytest.mark.parametrize("seed", range(30))
def test_in_any_order_of_events_one_outcome_stands(seed: int) -> None:
    chance = random.Random(seed)
    core, first, counted = running(), None, 0
    outcomes: list[Outcome] = [
        Finished("stop", 1, 1),
        Cancelled("client"),
        Lost("x"),
        Preempted("u-1"),
        Failed(error_body(ErrorCode.INTERNAL, "x", engine=None, pool_id="p")),
    ]
    for _ in range(40):
        if chance.random() < 0.1:
            outcome = chance.choice(outcomes)
            if core.conclude(outcome):
                assert first is None or (isinstance(first, Preempted) and isinstance(outcome, Cancelled))
                first = outcome
        elif core.phase is Phase.CALLING:
            core.begun()
        elif first is None:
            counted += core.tokens(2) - counted + 2
        else:
            with pytest.raises(IllegalPhase):
                core.tokens(1)
        assert core.outcome is first
        assert core.tokens_out == counted
