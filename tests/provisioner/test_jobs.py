"""One job per wish, its moves, its book."""

import pytest

from llorch_provisioner.core.jobs import FAILURE_REPEATED_MS, MOVES, Answer, Job, JobBook, JobMove, JobState, job_id
from llorch_shared.identifiers import is_name
from llorch_shared.wire.provision import EnsureEngine, EnsureModel, PlanStep, ResolvedModel
from llorch_shared.wire.provisioning_spec import ProvisioningSpec
from llorch_shared.wire.task import Engine

STEPS = (
    PlanStep(kind="check", detail="c"),
    PlanStep(kind="verify", detail="wheel"),
    PlanStep(kind="extract", detail="e"),
    PlanStep(kind="verify", detail="file"),
)
MODEL = ResolvedModel(model_ref="a", model_id="a", local_path="/a", size_bytes=1, digest="sha256:x")


def job(name: str = "j") -> Job:
    return Job(name, "node-1", "model a", STEPS, 0)


def ended(name: str = "j", *, at: int = 0) -> Job:
    made = job(name)
    made.start(at)
    made.finish(MODEL, at)
    return made


def test_equal_wishes_share_an_id_and_it_fits_a_subject() -> None:
    first = EnsureEngine(engine=Engine.LLAMACPP, provisioning=ProvisioningSpec(env={"A": "1", "B": "2"}))
    again = EnsureEngine(engine=Engine.LLAMACPP, provisioning=ProvisioningSpec(env={"B": "2", "A": "1"}))
    assert job_id(first) == job_id(again)
    assert is_name(job_id(first))
    others = {
        job_id(EnsureEngine(engine=Engine.VLLM, provisioning=first.provisioning)),
        job_id(EnsureModel(model_ref="a")),
        job_id(EnsureModel(model_ref="a", checksum="b")),
        job_id(first),
    }
    assert len(others) == 4


def test_a_job_tells_its_steps_bytes_and_result() -> None:
    made = job()
    assert made.event(1).step == 0
    made.start(1)
    made.begin("check", 2)
    made.begin("verify", 3)
    made.advance(5, 10)
    told = made.event(4)
    assert (told.step, told.steps, told.kind, told.detail) == (2, 4, "verify", "wheel")
    assert (told.bytes_done, told.bytes_total, told.done) == (5, 10, False)
    made.begin("extract", 5)
    made.begin("verify", 6)
    assert (made.event(6).detail, made.event(6).bytes_done) == ("file", 0)
    made.finish(MODEL, 7)
    assert (made.event(8).done, made.event(8).result, made.event(8).error) == (True, MODEL, "")


def test_work_must_follow_its_plan() -> None:
    made = job()
    made.start(0)
    made.begin("extract", 1)
    with pytest.raises(ValueError, match="no step 'check'"):
        made.begin("check", 2)


@pytest.mark.parametrize("state", list(JobState))
@pytest.mark.parametrize("move", list(JobMove))
def test_only_moves_of_the_table_are_made(state: JobState, move: JobMove) -> None:
    made = job()
    made.state = state
    act = {
        JobMove.STARTED: lambda: made.start(1),
        JobMove.FINISHED: lambda: made.finish(MODEL, 1),
        JobMove.BROKE: lambda: made.fail("e", "h", 1),
    }[move]
    if move in MOVES.get(state, {}):
        act()
        assert made.state is MOVES[state][move]
    else:
        with pytest.raises(ValueError, match="is not a move"):
            act()
        assert made.state is state


def test_a_wish_under_way_is_joined_and_one_that_ended_is_run_again() -> None:
    book = JobBook()
    assert book.answer("j", 0) is Answer.RUN
    made = job()
    book.add(made)
    assert book.answer("j", 0) is Answer.JOIN
    made.start(1)
    assert book.answer("j", 1) is Answer.JOIN
    made.finish(MODEL, 2)
    assert book.answer("j", 3) is Answer.RUN


def test_a_failure_is_repeated_for_a_moment_and_then_tried_again() -> None:
    book = JobBook()
    made = job()
    book.add(made)
    made.start(0)
    made.fail("no", "do", 1_000)
    assert book.answer("j", 1_000 + FAILURE_REPEATED_MS - 1) is Answer.REPEAT
    assert book.answer("j", 1_000 + FAILURE_REPEATED_MS) is Answer.RUN


def test_the_book_is_bounded() -> None:
    book = JobBook(waiting_max=2, ended_kept_max=3)
    for number in range(10):
        book.add(ended(f"old-{number}"))
    assert [event.job for event in book.events(0)] == ["old-7", "old-8", "old-9"]
    book.add(job("a"))
    book.add(job("b"))
    assert book.answer("c", 0) is Answer.BUSY
    assert book.answer("a", 0) is Answer.JOIN
