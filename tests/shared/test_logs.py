"""Log lines: valid JSON, fields beside a sentence, and nothing in them that could be a secret."""

import json
import logging
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llorch_shared import logs
from llorch_shared.wire.task import Priority

SECRET = "hunter2-SECRET"


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("llorch.test", logging.INFO, __file__, 1, message, arguments, None)
    made.__dict__.update(extra)
    return made


def line(made: logging.LogRecord) -> dict[str, object]:
    text = logs.JsonLines("gateway").format(made)
    assert "\n" not in text
    decoded: dict[str, object] = json.loads(text)
    return decoded


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What a configured process writes; the root logger is put back afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: capsys.readouterr().err
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_narrated_event_has_its_sentence_and_its_fields(stderr: Callable[[], str]) -> None:
    logs.configure("scheduler")
    logs.narrate(
        logging.getLogger("llorch"),
        "places task 7 on small-1",
        actor="scheduler",
        action="place",
        target="small-1",
        correlation_id="c1",
        priority=Priority.BATCH,
        queue_position=0,
        candidates=["a", "b"],
        pinned=False,
        replica_id="",
        node_id=None,
    )
    written = json.loads(stderr())
    assert written.pop("ts").endswith("Z")
    assert written == {
        "level": "info",
        "service": "scheduler",
        "logger": "llorch",
        "human": "places task 7 on small-1",
        "actor": "scheduler",
        "action": "place",
        "target": "small-1",
        "correlation_id": "c1",
        "priority": "batch",
        "queue_position": 0,
        "candidates": ["a", "b"],
        "pinned": False,
    }


@given(text=st.text(max_size=60), value=st.text(max_size=60))
def test_any_text_makes_one_valid_line(text: str, value: str) -> None:
    written = line(record("%s", text, task_id=value))
    assert written["service"] == "gateway"
    if value and logs.redact(value) == value:
        assert written["task_id"] == value


def test_an_exception_stays_on_its_line() -> None:
    try:
        raise ValueError(f"bad header Authorization: Bearer {SECRET}")
    except ValueError:
        made = record("could not read it")
        made.exc_info = sys.exc_info()
    written = line(made)
    assert "ValueError" in str(written["exception"])
    assert SECRET not in json.dumps(written)


def test_a_value_json_does_not_know_is_written_as_text() -> None:
    assert line(record("x", where=ValueError("boom")))["where"] == "boom"


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"authorization: bearer {SECRET}",
        f"{{'Authorization': 'Bearer {SECRET}'}}",
        f'{{"authorization":"{SECRET}"}}',
        f"X-API-Key: {SECRET}",
        f'"x-api-key": "{SECRET}"',
        f"nats://user:{SECRET}@127.0.0.1:4222",
        f"https://u:{SECRET}@host/path",
        f"https://host/path?token={SECRET}&a=1",
        f"https://host/path?api_key={SECRET}",
        f"password={SECRET}",
        f"PASSWORD={SECRET};",
        f"AUTH_TOKEN={SECRET}",
        f"client_secret={SECRET}",
        f"Authorization: Basic {SECRET}",
        f'{{"password": "{SECRET}"}}',
        f"nats://:{SECRET}@127.0.0.1:4222",
        f"https://{SECRET}@host/path",
        f"https://u:a/{SECRET}@host/path",
    ],
)
def test_a_planted_secret_does_not_reach_the_log(text: str) -> None:
    assert SECRET not in logs.redact(text)
    assert SECRET not in json.dumps(line(record(text)))
    assert SECRET not in json.dumps(line(record("failed: %s", text, last_error=text)))
    assert SECRET not in logs.Pretty("gateway").format(record(text))


def test_a_secret_inside_a_structured_field_does_not_reach_the_log() -> None:
    planted = {
        "headers": {"note": f"Bearer {SECRET}"},
        "urls": [f"nats://u:{SECRET}@h:1"],
        "error": OSError(f"token={SECRET}"),
    }
    assert SECRET not in json.dumps(line(record("x", **planted)))


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "task 0a1b tokens_out=3",
        "http://127.0.0.1:8080/v1/tasks",
        "a token arrived",
        "nats://127.0.0.1:4222",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert logs.redact(text) == text


@pytest.mark.parametrize("name", ["token", "Authorization", "password", "api_key"])
def test_a_field_named_like_a_secret_is_masked_whatever_it_holds(name: str) -> None:
    assert SECRET not in json.dumps(line(record("x", **{name: SECRET, "headers": {name: SECRET}})))


def test_a_line_is_written_even_for_text_that_is_no_unicode_and_numbers_of_any_size() -> None:
    written = line(record("\udcff", size=2**80, ratio=float("nan")))
    assert written["human"] == "\udcff"
    assert written["size"] == 2**80


def test_the_terminal_style_is_one_readable_line(stderr: Callable[[], str]) -> None:
    logs.configure("poold", style="pretty", level="debug")
    logging.getLogger("llorch").debug("starts engine 1")
    written = stderr()
    assert written.count("\n") == 1
    assert "poold" in written
    assert "starts engine 1" in written


def test_configuring_twice_does_not_double_the_lines(stderr: Callable[[], str]) -> None:
    logs.configure("poold")
    logs.configure("poold")
    logging.getLogger("llorch").info("once")
    assert stderr().count("once") == 1


def test_libraries_do_not_narrate(stderr: Callable[[], str]) -> None:
    logs.configure("poold")
    logging.getLogger("httpx").info("HTTP Request")
    logging.getLogger("nats").warning("slow consumer")
    written = stderr()
    assert "HTTP Request" not in written
    assert "slow consumer" in written
