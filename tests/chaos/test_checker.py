"""The checker itself: a clean history has no violation, and each kind that is planted is found, alone."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from chaos import history
from chaos.checks import check
from chaos.evidence import AFTER, ENGINES, HISTORY, After, Counter, load
from chaos.history import Answered, Asked, Closed, Ended, Odd, Op, Opened, Outcome, Restarted, RunSeen, Turned
from chaos.samples import T0, TASK, TOKENS, WORDS, World
from chaos.violations import Kind
from llorch_poold.mock_log import LogEvent, LogLine
from llorch_shared.errors import ErrorBody, ErrorCode, ResetDetail
from llorch_shared.wire.audit import AuditEvent
from llorch_shared.wire.task import Failover, OutputMode, TaskState

SUBMITTED, ACCEPTED, TOKENS_AT, DONE_AT, ENDED_AT = 0, 1, 5, 6, 7


def lost(world: World) -> None:
    world.run = None
    del world.audits[1]


def stays_placed(world: World) -> None:
    world.change_run(state=TaskState.PLACED)
    del world.audits[1]


def unsure_but_placed(world: World) -> None:
    world.entries[ACCEPTED] = answered(Outcome.UNSURE)
    stays_placed(world)


def changed_after_its_end(world: World) -> None:
    world.entries.append(RunSeen(at=T0 + 3, task=TASK, seq=13, state="placed", attempt=2))


def two_audited_ends(world: World) -> None:
    world.audits.append(world.audit(AuditEvent.DONE, 13))


def two_admissions(world: World) -> None:
    world.audits += [world.audit(AuditEvent.ADMITTED, 0, actor=f"gateway/{number}") for number in range(2)]


def answered(outcome: Outcome, *, op: int = 1, at: float = 0.1, status: int = 202) -> Answered:
    return Answered(at=T0 + at, op=op, task=TASK, what=Op.SUBMIT, via="gateway-1", outcome=outcome, status=status)


def refused_when_sent_again(world: World) -> None:
    world.entries.append(Asked(at=T0 + 3, op=9, task=TASK, what=Op.SUBMIT, via="gateway-1"))
    world.entries.append(answered(Outcome.REFUSED, op=9, at=3.1, status=429))


def reader_told_unknown(world: World) -> None:
    world.entries.append(Turned(at=T0 + 3, reader=8, task=TASK, via="gateway-2", status=404, code="INVALID_PARAMS"))
    world.entries.append(Ended(at=T0 + 3, reader=8, task=TASK, tokens_out=TOKENS, finish_reason="length"))
    world.entries[-1:-1] = [world.tokens(*range(TOKENS), reader=8, at=2.9)]


def failed(world: World, code: ErrorCode, attempt: int) -> None:
    world.change_run(
        state=TaskState.FAILED, attempt=attempt, finish_reason="", error=ErrorBody(code=code, message="engine lost")
    )
    world.audits[1] = world.audit(AuditEvent.FAILED, 12)
    world.entries[DONE_AT] = RunSeen(at=T0 + 2, task=TASK, seq=12, state="failed", attempt=attempt)
    world.entries[ENDED_AT] = Ended(at=T0 + 2.1, reader=2, task=TASK, code=str(code), message="engine lost")


def failed_at_once(world: World) -> None:
    failed(world, ErrorCode.WORKER_RESET, 1)


def dropped(world: World) -> None:
    failed(world, ErrorCode.QUEUE_FULL_DROP_LRU, 1)
    world.change_run(state=TaskState.DROPPED)
    world.audits[1] = world.audit(AuditEvent.DROPPED, 12)


def cancelled_by_nobody(world: World) -> None:
    world.cancelled()
    del world.entries[-2:]


def receipt_before_the_end(world: World) -> None:
    world.cancelled(receipt_at=1.35)


def engine_goes_on(world: World) -> None:
    world.cancelled()
    world.generations = [world.generation(1.0, 1.8, sent=4)]


def generated_again(world: World) -> None:
    world.generations.append(world.generation(2.5, 3.0))


def never_generated(world: World) -> None:
    world.generations = [world.generation(1.0, None, sent=0)]


def another_seed(world: World) -> None:
    world.generations.insert(0, world.generation(0.5, 0.6, sent=2, seed=8, total=4))


def ended_in_the_future(world: World) -> None:
    world.change_run(ended_ms=int((T0 + 302) * 1000))


def admitted_before_it_was_asked_for(world: World) -> None:
    world.change_run(admitted_ms=int((T0 - 300) * 1000))


def ended_before_it_was_placed(world: World) -> None:
    world.entries[DONE_AT] = RunSeen(at=T0 + 9, task=TASK, seq=12, state="done", attempt=1)
    world.change_run(placed_ms=int((T0 + 7) * 1000))


def audited_late(world: World) -> None:
    world.audits[0] = msgspec.structs.replace(world.audits[0], at_ms=int((T0 + 302) * 1000))


def gap(world: World) -> None:
    world.entries[TOKENS_AT] = world.tokens(0, 1, 3, 4)
    world.entries[ENDED_AT] = Ended(at=T0 + 2.1, reader=2, task=TASK, tokens_out=TOKENS, finish_reason="length")


def doubled(world: World) -> None:
    world.entries[TOKENS_AT] = world.tokens(0, 1, 1, 2, 3)


def other_words(world: World) -> None:
    tokens = world.tokens(*range(TOKENS))
    tokens.texts[2] = " else"
    world.entries[TOKENS_AT] = tokens


def short(world: World) -> None:
    world.entries[TOKENS_AT] = world.tokens(0, 1, 2)


def extra(world: World) -> None:
    world.cancelled()
    world.entries[TOKENS_AT] = world.tokens(0, 1, 2, 3, at=1.2)


def begun_anew(world: World) -> None:
    world.lost_its_engine(failover=Failover.RESTART)


def goes_on_from_less_than_was_sent(world: World) -> None:
    world.lost_its_engine()
    world.generations[1] = world.generation(1.4, 2.0, total=4, sent=4, behind=world.words[0])


def goes_on_with_what_no_engine_began(world: World) -> None:
    world.lost_its_engine()
    del world.generations[1]
    world.change_run(state=TaskState.CANCELLED, finish_reason="cancelled")
    world.entries[-1] = Ended(at=T0 + 2.1, reader=2, task=TASK, tokens_out=TOKENS, finish_reason="cancelled")
    world.entries[-2] = RunSeen(at=T0 + 2, task=TASK, seq=12, state="cancelled", attempt=2)
    world.entries.append(Asked(at=T0 + 1.9, op=3, task=TASK, what=Op.CANCEL, via="gateway-2"))
    world.audits[2] = world.audit(AuditEvent.CANCELLED, 12)


def restart_not_told(world: World) -> None:
    begun_anew(world)
    del world.entries[6]


def restart_told_late(world: World) -> None:
    begun_anew(world)
    world.entries[6:8] = [world.tokens(2), world.entries[6], world.tokens(3, 4, 5, 6)]


def restart_told_early(world: World) -> None:
    begun_anew(world)
    world.entries[5:8] = [world.tokens(0), world.entries[6], world.tokens(*range(1, 7))]


def restart_told_where_there_was_none(world: World) -> None:
    world.entries[5:6] = [world.tokens(0, 1), Restarted(at=T0, reader=2, task=TASK, index=2), world.tokens(2, 3, 4)]


def restart_not_recorded(world: World) -> None:
    begun_anew(world)
    world.change_run(restarted_at=None)
    world.entries[-1] = Ended(at=T0 + 2.1, reader=2, task=TASK, tokens_out=7, finish_reason="length")


def end_silent_about_a_restart(world: World) -> None:
    begun_anew(world)
    world.entries[-1] = Ended(at=T0 + 2.1, reader=2, task=TASK, tokens_out=7, finish_reason="length")


def gave_up(world: World, detail: ResetDetail, **asked: object) -> None:
    """After the loss of one engine."""
    world.lost_its_engine(**asked)
    world.generations = world.generations[:1]
    error = ErrorBody(code=ErrorCode.WORKER_RESET, message="lost", detail=detail)
    world.change_run(state=TaskState.FAILED, tokens_out=2, finish_reason="", error=error, restarted_at=None)
    world.audits[2] = world.audit(AuditEvent.FAILED, 12)
    del world.entries[6:-2]
    world.entries[-2:] = [
        RunSeen(at=T0 + 2, task=TASK, seq=12, state="failed", attempt=2),
        Ended(at=T0 + 2.1, reader=2, task=TASK, code="WORKER_RESET", message="lost"),
    ]
    world.stream = {"texts": dict(enumerate(world.words[:2])), "ends": ("{}",)}


def gave_up_although_it_may_go_on(world: World) -> None:
    gave_up(world, ResetDetail.FAILOVER_FAIL)


def gave_up_text(world: World) -> None:
    gave_up(world, ResetDetail.FAILOVER_REFUSED)


def gave_up_although_nothing_was_lost(world: World) -> None:
    gave_up(world, ResetDetail.TOKENS_LOST)


def said_something_else(world: World) -> None:
    gave_up(world, ResetDetail.TOKENS_DIFFER)


def after_the_end(world: World) -> None:
    world.entries.append(Closed(at=T0 + 3, reader=2, task=TASK, why="again"))


def after_a_receipt(world: World) -> None:
    world.cancelled()
    world.entries[TOKENS_AT] = world.tokens(0, 1, 2, at=1.9)


def without_an_end(world: World) -> None:
    world.entries[ENDED_AT] = Closed(at=T0 + 2.1, reader=2, task=TASK, why="cut")


def end_of_another_kind(world: World) -> None:
    world.entries[ENDED_AT] = Ended(at=T0 + 2.1, reader=2, task=TASK, code="WORKER_RESET", message="lost")


def not_audited(world: World) -> None:
    del world.audits[1]


def audited_as_failed(world: World) -> None:
    world.audits[1] = world.audit(AuditEvent.FAILED, 12)


def charged_for_other_tokens(world: World) -> None:
    world.audits[1] = world.audit(AuditEvent.DONE, 12, detail={"tokens_out": TOKENS + 1})


def charged_to_another(world: World) -> None:
    world.audits[1] = world.audit(AuditEvent.DONE, 12, tenant="other")


def log_with_other_words(world: World) -> None:
    world.stream["texts"] = {**world.stream["texts"], 2: " else"}


def log_without_a_token(world: World) -> None:
    world.stream["texts"] = {0: world.stream["texts"][0]}


def two_terminal_frames(world: World) -> None:
    world.stream["ends"] = ("{}", '{"code":"INTERNAL"}')


def uncounted(world: World) -> None:
    del world.audits[0]


def queue_not_drained(world: World) -> None:
    world.after["unsettled"] = ("1 message in ADM_a_batch",)


def record_tampered_with(world: World) -> None:
    world.after["record_faults"] = ("altered is not what its hash was made of",)


def odd(world: World) -> None:
    world.entries.append(Odd(at=T0, task=TASK, what="a 500 without an envelope"))


PLANTED: dict[Kind, list[Callable[[World], None]]] = {
    Kind.LOST: [lost, stays_placed, unsure_but_placed],
    Kind.ENDED_TWICE: [changed_after_its_end, two_audited_ends],
    Kind.ADMITTED_TWICE: [two_admissions],
    Kind.REFUSED_LATER: [refused_when_sent_again, reader_told_unknown, dropped],
    Kind.FAILED_WITHOUT_CAUSE: [
        *(failed_at_once, gave_up_although_it_may_go_on, gave_up_text, gave_up_although_nothing_was_lost),
        said_something_else,
    ],
    Kind.CANCELLED_UNASKED: [cancelled_by_nobody],
    Kind.RECEIPT_UNTRUE: [receipt_before_the_end],
    Kind.RUNS_ON: [engine_goes_on],
    Kind.RAN_AFTER_END: [generated_again],
    Kind.NOT_RUN: [never_generated],
    Kind.UNEQUAL_RUNS: [another_seed],
    Kind.GAP: [gap],
    Kind.DOUBLED: [doubled],
    Kind.RESTART_UNTOLD: [
        *(restart_not_told, restart_told_late, restart_told_early, restart_told_where_there_was_none),
        restart_not_recorded,
    ],
    Kind.WRONG_TEXT: [other_words, goes_on_from_less_than_was_sent, goes_on_with_what_no_engine_began],
    Kind.SHORT: [short],
    Kind.EXTRA: [extra],
    Kind.AFTER_END: [after_the_end],
    Kind.AFTER_RECEIPT: [after_a_receipt],
    Kind.WITHOUT_END: [without_an_end],
    Kind.END_UNTRUE: [end_of_another_kind, end_silent_about_a_restart],
    Kind.NOT_AUDITED: [not_audited],
    Kind.AUDIT_UNTRUE: [audited_as_failed, charged_for_other_tokens, charged_to_another, record_tampered_with],
    Kind.LOG_UNTRUE: [log_with_other_words, log_without_a_token, two_terminal_frames],
    Kind.TIME_UNTRUE: [ended_in_the_future, admitted_before_it_was_asked_for, ended_before_it_was_placed, audited_late],
    Kind.COUNTER_UNTRUE: [uncounted],
    Kind.UNSETTLED: [queue_not_drained],
    Kind.ODD: [odd],
}
FOLLOWS: dict[Kind, set[Kind]] = {
    Kind.GAP: {Kind.SHORT},
    Kind.WRONG_TEXT: {Kind.LOG_UNTRUE},
    Kind.RESTART_UNTOLD: {Kind.NOT_RUN},
}
"""A missing token is missing in the count, too; what readers got of a stream was in its log; what a record counts as
the result is longer where it does not know of a restart."""


def test_every_kind_of_violation_is_planted() -> None:
    assert set(PLANTED) == set(Kind)


@pytest.mark.parametrize(
    ("kind", "plant"),
    [(kind, plant) for kind, plants in PLANTED.items() for plant in plants],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_planted_violation_is_found(kind: Kind, plant: Callable[[World], None]) -> None:
    world = World()
    plant(world)
    found = {violation.kind for violation in check(world.evidence())}
    assert kind in found
    assert found - {kind} <= FOLLOWS.get(kind, set())


def test_a_clean_history_has_none() -> None:
    assert check(World().evidence()) == []


def test_a_cancelled_task_is_clean() -> None:
    world = World()
    world.cancelled()
    assert check(world.evidence()) == []


def test_a_cancelled_stream_may_show_fewer_tokens_than_its_end_counts() -> None:
    world = World()
    world.cancelled()
    world.entries[TOKENS_AT] = world.tokens(0, 1, at=1.2)
    assert check(world.evidence()) == []


def test_another_gateway_may_deliver_late_what_was_sent_before_the_receipt() -> None:
    world = World()
    world.cancelled(via="gateway-2")
    world.entries[TOKENS_AT] = world.tokens(0, 1, 2, at=1.9)
    world.entries[ENDED_AT] = Ended(at=T0 + 2, reader=2, task=TASK, tokens_out=3, finish_reason="cancelled")
    assert check(world.evidence()) == []


def test_a_task_may_fail_for_having_lost_three_engines() -> None:
    world = World()
    failed(world, ErrorCode.WORKER_RESET, 3)
    assert check(world.evidence()) == []


def test_tokens_may_be_gone_with_the_servers_memory_and_the_reader_is_told() -> None:
    world = World()
    gone = "tokens of this stream are no longer kept; the task itself is not affected"
    world.entries[TOKENS_AT] = world.tokens(0, 1)
    world.entries[ENDED_AT] = Ended(at=T0 + 2.1, reader=2, task=TASK, code="INTERNAL", message=gone)
    world.stream = {}
    world.after["tokens_since"] = T0 + 1.8
    assert check(world.evidence()) == []
    world.after["tokens_since"] = T0 - 1
    assert {violation.kind for violation in check(world.evidence())} == {Kind.END_UNTRUE, Kind.LOG_UNTRUE}


def test_a_task_that_was_cancelled_before_an_engine_began_is_no_start() -> None:
    world = World()
    world.cancelled()
    world.generations, world.stream, world.entries[TOKENS_AT] = [], {"ends": ("{}",)}, world.tokens()
    world.after["counters"] = (Counter(process="poold-1", metric="tasks_started_total", value=0, whole=True),)
    assert check(world.evidence()) == []


def test_the_end_of_a_lost_nodes_task_may_count_only_what_a_restarted_server_holds() -> None:
    world = World()
    world.cancelled()
    world.entries[TOKENS_AT] = world.tokens(0, 1, 2, 3, at=1.2)
    world.after["tokens_since"] = T0 + 1.3
    assert check(world.evidence()) == []
    world.change_run(incarnation="the node's own end")
    assert [violation.kind for violation in check(world.evidence())] == [Kind.EXTRA]


@pytest.mark.parametrize("failover", [Failover.RESUME, Failover.RESTART])
def test_a_sampled_task_that_lost_its_engine_is_clean(failover: Failover) -> None:
    world = World()
    world.lost_its_engine(failover=failover)
    assert check(world.evidence()) == []


def test_a_reader_that_comes_back_behind_a_restart_may_be_told_of_it_once_more() -> None:
    world = World()
    begun_anew(world)
    told = world.entries[6]
    world.entries[7:8] = [
        world.tokens(2, 3),
        Closed(at=T0 + 1.6, reader=2, task=TASK, why="cut"),
        Opened(at=T0 + 1.6, reader=2, task=TASK, via="gateway-2", cursor="2-3"),
        told,
        world.tokens(4, 5, 6),
    ]
    assert check(world.evidence()) == []


def test_an_engine_that_died_when_it_had_said_everything_is_asked_no_more() -> None:
    world = World()
    world.lost_its_engine()
    world.words[:] = WORDS
    world.entries[5:7] = [world.tokens(*range(TOKENS))]
    world.generations = [world.generation(1.0, None, sent=0)]
    world.stream = {"texts": dict(enumerate(WORDS)), "ends": ("{}",)}
    assert check(world.evidence()) == []
    world.stream = {"texts": dict(enumerate(WORDS[:4])), "ends": ("{}",)}
    world.entries[5] = world.tokens(*range(4))
    assert Kind.NOT_RUN in {violation.kind for violation in check(world.evidence())}


@pytest.mark.parametrize(
    ("detail", "asked"),
    [
        (ResetDetail.FAILOVER_FAIL, {"failover": Failover.FAIL}),
        (ResetDetail.FAILOVER_REFUSED, {"output_mode": OutputMode.JSON}),
    ],
)
def test_a_stream_may_end_where_its_task_says_so(detail: ResetDetail, asked: dict[str, object]) -> None:
    world = World()
    gave_up(world, detail, **asked)
    assert check(world.evidence()) == []


def test_a_sampled_stream_may_end_when_the_server_has_forgotten_its_beginning() -> None:
    world = World()
    gave_up(world, ResetDetail.TOKENS_LOST)
    world.after["tokens_since"] = T0 + 1.3
    assert check(world.evidence()) == []


def test_two_gateways_at_once_may_answer_one_task_differently() -> None:
    world = World()
    world.entries.append(Asked(at=T0 + 0.05, op=9, task=TASK, what=Op.SUBMIT, via="gateway-2"))
    world.entries.append(answered(Outcome.REFUSED, op=9, at=0.2, status=429))
    assert check(world.evidence()) == []


def test_an_unsure_task_without_a_record_was_never_one() -> None:
    world = World()
    world.entries = [world.entries[SUBMITTED], answered(Outcome.UNSURE)]
    world.run, world.audits, world.generations, world.stream, world.after["counters"] = None, [], [], {}, ()
    assert check(world.evidence()) == []


def test_a_reader_that_stayed_away_for_the_time_of_grace_may_have_cancelled() -> None:
    world = World()
    world.cancelled()
    del world.entries[-2:]
    world.entries[ENDED_AT] = Closed(at=T0 + 1.3, reader=2, task=TASK, why="left")
    world.change_run(ended_ms=int((T0 + 11.4) * 1000))
    world.entries[DONE_AT] = RunSeen(at=T0 + 11.4, task=TASK, seq=12, state="cancelled", attempt=1)
    back: list[history.Opened | history.Ended] = [
        Opened(at=T0 + 12, reader=2, task=TASK, via="gateway-2", cursor="1-2"),
        Ended(at=T0 + 12, reader=2, task=TASK, tokens_out=3, finish_reason="cancelled"),
    ]
    assert check_with(world, back) == []


def check_with(world: World, entries: list[history.Opened | history.Ended]) -> list[Kind]:
    world.entries += entries
    return [violation.kind for violation in check(world.evidence())]


def test_a_run_is_judged_again_from_its_folder(tmp_path: Path) -> None:
    world = World()
    evidence = world.evidence()
    writer = history.Writer(tmp_path / HISTORY)
    for entry in world.entries:
        writer.write(entry)
    writer.close()
    (tmp_path / AFTER).write_bytes(msgspec.json.encode(evidence.after))
    (tmp_path / ENGINES).mkdir()
    story = evidence.stories[TASK]
    assert story.request is not None
    prompt = story.request.prompt or ""
    lines = [
        LogLine(event=LogEvent.BEGIN, number=1, at=T0 + 1, prompt=prompt, seed=7, total=TOKENS),
        LogLine(event=LogEvent.BEGIN, number=2, at=T0 + 1, prompt="a self-test"),
        LogLine(event=LogEvent.END, number=1, at=T0 + 2, sent=TOKENS),
    ]
    text = b"".join(msgspec.json.encode(line) + b"\n" for line in lines) + b'{"event":"be'
    (tmp_path / ENGINES / "1.jsonl").write_bytes(text)
    assert load(tmp_path) == evidence
    assert isinstance(load(tmp_path).after, After)
    assert check(load(tmp_path)) == []
