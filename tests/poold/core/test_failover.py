"""What a later attempt does about a stream whose beginning readers have."""

import random

import msgspec
import pytest

from llorch_poold.core.failover import Anew, Begin, Complete, GoOn, Plan, Refuse, Repeat, plan
from llorch_poold.core.prefix import Sent, sent_before
from llorch_shared.errors import ResetDetail
from llorch_shared.wire.frames import Metrics, Started, encode_metrics, encode_started, encode_token
from llorch_shared.wire.task import Determinism, Failover, OutputMode, TaskRequest
from support.node_harness import task_request

SAMPLED = {"determinism": "best_effort"}


def sent(count: int, *, restarted_at: int | None = None) -> Sent:
    return Sent(started=True, tokens={i: f" {i}" for i in range(count)}, restarted_at=restarted_at)


def decide(before: Sent, *, known: bool = True, same_class: bool = True, **changes: object) -> Plan:
    fields = {"max_tokens": 10, "prompt": "Say:", **changes}
    return plan(task_request(**fields), before, known=known, same_class=same_class)


@pytest.mark.parametrize("failover", Failover)
@pytest.mark.parametrize("determinism", Determinism)
def test_with_nothing_sent_a_task_is_simply_run_again(failover: Failover, determinism: Determinism) -> None:
    assert decide(sent(0), failover=failover, determinism=determinism) == Begin()
    assert decide(Sent(started=False, tokens={}), failover=failover, determinism=determinism) == Begin()


@pytest.mark.parametrize("failover", [Failover.RESUME, Failover.RESTART])
@pytest.mark.parametrize("mode", OutputMode)
def test_a_strict_task_is_repeated_and_compared(failover: Failover, mode: OutputMode) -> None:
    assert decide(sent(4), failover=failover, output_mode=mode) == Repeat()
    assert decide(sent(4), failover=failover, output_mode=mode, same_class=False) == Repeat(), "the comparison decides"


@pytest.mark.parametrize("determinism", Determinism)
def test_with_tools_nothing_that_was_sent_is_repeated_or_gone_on_from(determinism: Determinism) -> None:
    wish = {"determinism": determinism, "tools": [{"name": "f"}]}
    assert decide(sent(0), **wish) == Begin()
    assert decide(sent(4), **wish) == Refuse(ResetDetail.FAILOVER_REFUSED)
    assert decide(sent(4), **wish, failover="restart") == Anew(4)


def test_a_sampled_task_goes_on_from_its_prompt_and_its_text() -> None:
    decided = decide(sent(4), **SAMPLED)
    assert isinstance(decided, GoOn)
    assert (decided.first, decided.request.prompt, decided.request.max_tokens) == (4, "Say: 0 1 2 3", 6)


def test_a_token_without_text_counts_and_says_nothing() -> None:
    before = Sent(started=True, tokens={0: "a", 1: "", 2: "", 3: "é"})
    decided = decide(before, **SAMPLED)
    assert isinstance(decided, GoOn)
    assert (decided.first, decided.request.prompt, decided.request.max_tokens) == (4, "Say:aé", 6)


def test_a_sampled_task_may_begin_anew_behind_what_was_sent() -> None:
    assert decide(sent(4), failover="restart", **SAMPLED) == Anew(4)
    assert decide(sent(9, restarted_at=4), failover="restart", **SAMPLED) == Anew(9)


@pytest.mark.parametrize("determinism", Determinism)
def test_a_task_may_rather_fail(determinism: Determinism) -> None:
    assert decide(sent(4), failover="fail", determinism=determinism) == Refuse(ResetDetail.FAILOVER_FAIL)


@pytest.mark.parametrize("mode", [OutputMode.JSON, OutputMode.EDITS])
def test_output_that_is_bound_to_a_schema_does_not_go_on_from_its_half(mode: OutputMode) -> None:
    assert decide(sent(4), output_mode=mode, **SAMPLED) == Refuse(ResetDetail.FAILOVER_REFUSED)
    assert decide(sent(4), output_mode=mode, failover="restart", **SAMPLED) == Anew(4)


def test_where_every_token_was_sent_nothing_is_left_to_generate() -> None:
    assert decide(sent(10), **SAMPLED) == Complete()
    assert decide(sent(10), failover="restart", **SAMPLED) == Complete()
    assert decide(sent(14, restarted_at=4), failover="restart", **SAMPLED) == Complete(4)
    assert decide(sent(10, restarted_at=4), failover="restart", **SAMPLED) == Anew(10)
    assert decide(sent(10), output_mode="json", **SAMPLED) == Complete(), "it is whole, whatever it is bound to"


@pytest.mark.parametrize("before", [sent(0), sent(4), sent(10)])
@pytest.mark.parametrize("failover", Failover)
def test_nobody_goes_on_from_what_may_be_a_part(before: Sent, failover: Failover) -> None:
    decided = decide(before, known=False, failover=failover, **SAMPLED)
    assert isinstance(decided, Refuse)
    assert decided.detail in (ResetDetail.TOKENS_LOST, ResetDetail.FAILOVER_FAIL)


def test_a_hole_in_what_was_sent_is_never_gone_on_from() -> None:
    holed = Sent(started=True, tokens={0: "a", 2: "c"})
    beheaded = Sent(started=False, tokens={0: "a"})
    for before in (holed, beheaded):
        assert decide(before, **SAMPLED) == Refuse(ResetDetail.TOKENS_LOST)
        assert decide(before, failover="restart", **SAMPLED) == Refuse(ResetDetail.TOKENS_LOST)
        assert decide(before) == Repeat(), "a strict task fills it, if it says the same"


def test_a_strict_task_whose_tokens_are_lost_is_repeated_only_where_it_says_the_same() -> None:
    assert decide(sent(0), known=False) == Repeat()
    assert decide(sent(0), known=False, same_class=False) == Refuse(ResetDetail.TOKENS_LOST)


@pytest.mark.parametrize("detail", ResetDetail)
def test_a_refusal_says_why(detail: ResetDetail) -> None:
    assert len(Refuse(detail).message) > 60


def test_the_backlog_tells_where_the_output_began_anew() -> None:
    frames = [
        encode_started(Started(queue_position=0, predicted_start_ms=0)),
        encode_token(1, 0, " a"),
        encode_metrics(Metrics(attempt=2, kv_migrated=False)),
        encode_metrics(Metrics(attempt=2, kv_migrated=False, restarted_at=1)),
        encode_token(2, 1, " b"),
    ]
    assert sent_before(frames).restarted_at == 1
    later = encode_metrics(Metrics(attempt=3, kv_migrated=False, restarted_at=2))
    assert sent_before([*frames, later]).restarted_at == 2
    late = encode_metrics(Metrics(attempt=2, restarted_at=1))
    assert sent_before([*frames, later, late]).restarted_at == 2, "a lost attempt says nothing more"


@pytest.mark.parametrize("seed", range(60))
def test_over_any_losses_a_stream_has_every_index_once_and_its_result_is_one_text(seed: int) -> None:
    """An engine that says `<attempt>.<n>` and is lost at a random token, again and again."""
    chance = random.Random(seed)
    request = task_request(
        max_tokens=chance.randrange(1, 30),
        prompt="p",
        determinism=chance.choice(list(Determinism)),
        failover=chance.choice(list(Failover)),
        output_mode=chance.choice(list(OutputMode)),
    )
    strict = request.determinism is Determinism.STRICT
    stream: dict[int, str] = {}
    restarted_at: int | None = None
    for attempt in range(1, 12):
        before = Sent(started=bool(stream), tokens=dict(stream), restarted_at=restarted_at)
        decided: Plan = Begin() if attempt == 1 else plan(request, before, known=True, same_class=chance.random() < 0.5)
        first, asked = 0, request
        if isinstance(decided, Refuse):
            assert stream
            assert request.failover is Failover.FAIL or request.output_mode is not OutputMode.TEXT
            return
        if isinstance(decided, Complete):
            break
        if isinstance(decided, GoOn):
            first, asked = decided.first, decided.request
            assert asked.prompt == "p" + "".join(stream.values()), "nothing is said twice, nothing is left out"
        elif isinstance(decided, Anew):
            first = restarted_at = decided.first
        lost_after = chance.randrange(asked.max_tokens + 2)
        for number in range(min(lost_after, asked.max_tokens)):
            text = f" {number}" if strict else f" {attempt}.{number}"
            index = first + number
            assert isinstance(decided, Begin | Repeat) or index not in stream
            assert stream.setdefault(index, text) == text
        assert sorted(stream) == list(range(len(stream)))
        if lost_after > asked.max_tokens:
            break
    else:
        return
    assert len(stream) - (restarted_at or 0) == request.max_tokens
    if request.failover is Failover.RESTART and not strict:
        result = [stream[index] for index in range(restarted_at or 0, len(stream))]
        assert [text.partition(".")[2] for text in result] == [str(number) for number in range(len(result))]


def test_the_request_of_the_task_is_not_changed() -> None:
    request: TaskRequest = task_request(max_tokens=10, **SAMPLED)
    before = msgspec.json.encode(request)
    plan(request, sent(4), known=True, same_class=True)
    assert msgspec.json.encode(request) == before


EMBED = {"workload": "embedding", "prompt": None, "inputs": ("a", "b", "c", "d"), "max_tokens": 9}


@pytest.mark.parametrize("determinism", Determinism)
@pytest.mark.parametrize("failover", [Failover.RESUME, Failover.RESTART])
def test_results_of_inputs_stand_and_the_next_input_is_asked_for(determinism: Determinism, failover: Failover) -> None:
    """No result depends on another: none is made again, whatever the task says of its output."""
    wish = {**EMBED, "determinism": determinism, "failover": failover}
    decided = decide(sent(3), **wish)
    assert isinstance(decided, GoOn)
    assert (decided.first, decided.request.inputs) == (3, ("a", "b", "c", "d"))
    assert decide(sent(4), **wish) == Complete()
    assert decide(sent(0), **wish) == Begin()
    assert decide(sent(3), known=False, **wish) == Refuse(ResetDetail.TOKENS_LOST)
    assert decide(sent(3), **{**wish, "failover": "fail"}) == Refuse(ResetDetail.FAILOVER_FAIL)
