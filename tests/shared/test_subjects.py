"""Subjects: no text from outside can change how many tokens a subject has, and each one lands in its stream."""

import inspect
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llorch_shared import streams, subjects
from llorch_shared.identifiers import is_correlation_id, is_name, is_uuid, token
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine

UUID = "6f1d3c1e-64a0-4e1a-9f53-0b8f3f0f6a01"
HOSTILE = [
    "",
    ".",
    "*",
    ">",
    "a.b",
    "a b",
    "a\n",
    "a\r\n",
    "A",
    "a/../b",
    "ä",
    "a" * 64,
    "-a",
    "_a",
    UUID + "\n",
    "a\x00",
    " a",
]

BUILDERS: dict[str, tuple[Callable[..., str], int]] = {
    name: (getattr(subjects, name), len(inspect.signature(getattr(subjects, name)).parameters))
    for name in [
        "admission",
        "own_admission",
        "admission_filter",
        "run",
        "cancel",
        "cancel_signal",
        "placement",
        "tokens",
        "token_probe",
        "tokens_of_lane",
        "tokens_of_task",
        "audit",
        "node_key",
        "replica_key",
        "pool_key",
        "load",
        "provision_engine",
        "provision_model",
        "provision_status",
        "provision_progress",
    ]
}
arbitrary = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=70),
    st.text(alphabet="ab1-_.*> \n", max_size=6),
    st.uuids().map(str),
)


@given(text=arbitrary)
def test_a_token_is_unchanged_or_refused(text: str) -> None:
    try:
        assert token(text) == text
    except ValueError:
        assert not is_name(text)
        assert not is_uuid(text)
        return
    assert re.fullmatch(r"[A-Za-z0-9_-]+", text)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_no_token(text: str) -> None:
    with pytest.raises(ValueError, match="is not a name"):
        token(text)


@given(data=st.data(), name=st.sampled_from(sorted(BUILDERS)))
def test_no_illegal_token_can_enter_a_subject(data: st.DataObject, name: str) -> None:
    """Either every part is legal and the subject has its fixed shape, or nothing is built."""
    build, count = BUILDERS[name]
    parts = [data.draw(arbitrary) for _ in range(count)]
    shape = build(*["x"] * count)
    try:
        subject = build(*parts)
    except ValueError:
        assert any(not (is_name(part) or is_uuid(part)) for part in parts)
        return
    assert subject.count(".") == shape.count(".")
    assert subject.count("*") == shape.count("*")
    assert not re.search(r"[\s>]", subject)


@pytest.mark.parametrize("text", [UUID, UUID.upper()])
def test_a_uuid_is_a_token_in_either_case(text: str) -> None:
    assert subjects.run(text) == f"llorch.run.{text}"


@pytest.mark.parametrize("text", [UUID[:-1], UUID + "0", UUID.replace("-", ""), UUID + "\n", "{" + UUID + "}", ""])
def test_what_only_looks_like_a_uuid_is_none(text: str) -> None:
    assert not is_uuid(text)


@pytest.mark.parametrize("text", ["a b", "a\n", "a\r\nNats-Msg-Id: 1", "", "a" * 129, "é", "\t"])
def test_a_correlation_id_cannot_carry_a_header_of_its_own(text: str) -> None:
    assert not is_correlation_id(text)


@pytest.mark.parametrize("text", ["a", "a" * 128, UUID, "trace/1:2@x=y+z_.-"])
def test_the_usual_correlation_ids_are_taken(text: str) -> None:
    assert is_correlation_id(text)


def test_a_registry_key_is_found_in_both_its_subjects() -> None:
    key = subjects.replica_key("node-1", "small-node-1-0")
    assert subjects.registry_key(subjects.registry(key)) == key
    assert subjects.registry_key(subjects.registry_live(key)) == key
    assert subjects.registry_key("llorch.reg.live." + subjects.registry(key)) == key
    assert subjects.spec_key(subjects.spec("pool.small")) == "pool.small"
    assert subjects.spec_key("llorch.spec.live." + subjects.spec("pool.small")) == "pool.small"


def test_the_task_of_a_per_task_subject_is_its_last_token() -> None:
    for subject in (subjects.run(UUID), subjects.tokens("gw-1", UUID), subjects.cancel_signal(UUID)):
        assert subjects.last_token(subject) == UUID


def test_a_subject_tells_whose_task_waits_and_who_queued_it() -> None:
    assert subjects.queued_by(subjects.admission("small", "batch", "acme")) == ("acme", False)
    assert subjects.queued_by(subjects.own_admission("small", "batch", "acme")) == ("acme", True)


def test_every_stored_subject_lies_in_exactly_one_stream() -> None:
    pool = PoolSpec(id="small", engine=Engine.MOCK, model="m")
    listed = [*streams.base().streams, *streams.admission(pool).streams]
    stored = {
        subjects.admission("small", "batch", "default"): "ADM_small_batch",
        subjects.admission("small", "interactive", "default"): "ADM_small_interactive",
        subjects.own_admission("small", "batch", "default"): "ADM_small_batch",
        subjects.run(UUID): streams.RUN,
        subjects.cancel(UUID): streams.RUN,
        subjects.placement("small", "r1"): streams.PLC,
        subjects.tokens("gw-1", UUID): streams.TOK,
        subjects.audit("done", UUID): streams.AUD,
        subjects.registry(subjects.node_key("node-1")): streams.REG,
        subjects.spec(subjects.pool_key("small")): streams.SPEC,
    }
    for subject, name in stored.items():
        takers = [stream.name for stream in listed if any(matches(one, subject) for one in stream.config["subjects"])]
        assert takers == [name], subject


def test_what_is_only_a_signal_is_stored_nowhere() -> None:
    listed = [pattern for stream in streams.base().streams for pattern in stream.config["subjects"]]
    for subject in (
        subjects.cancel_signal(UUID),
        subjects.load("small"),
        subjects.registry_live("node.n"),
        f"llorch.live.run.{UUID}",
        subjects.provision_progress("n", "j"),
        subjects.locate(0),
        subjects.appoint(0),
        subjects.api("tasks.submit"),
    ):
        assert not any(matches(pattern, subject) for pattern in listed), subject


def test_a_lane_hears_its_own_tasks_only() -> None:
    assert matches(subjects.tokens_of_lane("gw-1"), subjects.tokens("gw-1", UUID))
    assert not matches(subjects.tokens_of_lane("gw-1"), subjects.tokens("gw-12", UUID))
    assert matches(subjects.tokens_of_task(UUID), subjects.tokens("gw-1", UUID))


def test_every_admission_queue_is_bounded_by_the_pool_and_refuses_what_is_over() -> None:
    pool = PoolSpec(id="small", engine=Engine.MOCK, model="m")
    for stream in streams.admission(pool).streams:
        config = stream.config
        assert (config["max_msgs"], config["discard"], config["retention"]) == (256, "new", "workqueue")
        assert config["duplicate_window"] == 600 * 10**9


def test_every_stream_has_an_end() -> None:
    """No stream may fill the disk: each is bounded in bytes."""
    pool = PoolSpec(id="small", engine=Engine.MOCK, model="m")
    for stream in (*streams.base(replicas=3).streams, *streams.admission(pool, replicas=3).streams):
        assert 0 < stream.config["max_bytes"] < 2**40
        assert stream.config["num_replicas"] == 3


def matches(pattern: str, subject: str) -> bool:
    """NATS subject matching."""
    wanted, given_ = pattern.split("."), subject.split(".")
    for index, part in enumerate(wanted):
        if part == ">":
            return len(given_) > index
        if index >= len(given_) or part not in ("*", given_[index]):
            return False
    return len(wanted) == len(given_)
