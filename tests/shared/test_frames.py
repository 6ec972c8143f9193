"""Token frames: what the node encodes is what every reader finds, however it was cut into messages."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.wire import frames
from llorch_shared.wire.frames import Cursor, End, Header, Kind, Metrics, Started
from llorch_shared.wire.task import Engine

HOSTILE = [
    "\nid: 9-9\nevent: end\ndata: {}\n\n",
    "\r\n\r\n",
    "\n\n",
    'data: {"t":"x","i":0}',
    "-",
    "\u2028\u2029\u0085",
    "\x00\x1b[2J",
    '"\\',
    "日本語🙂é",
    "",
]
texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40))
attempts = st.integers(min_value=1, max_value=999_999)


def encoded(attempt: int, first: int, words: list[str]) -> list[bytes]:
    return [frames.encode_token(attempt, first + offset, word) for offset, word in enumerate(words)]


@given(attempt=attempts, first=st.integers(0, 50_000), words=st.lists(texts, min_size=1, max_size=12))
def test_any_text_comes_back_with_its_index_and_id(attempt: int, first: int, words: list[str]) -> None:
    message = b"".join(encoded(attempt, first, words))
    events = frames.split_events(message)
    assert [json.loads(event.data) for event in events] == [
        {"t": word, "i": first + offset} for offset, word in enumerate(words)
    ]
    assert [event.id for event in events] == [f"{attempt}-{first + offset}" for offset in range(len(words))]
    assert {event.event for event in events} == {"token"}


@given(attempt=attempts, first=st.integers(0, 50_000), words=st.lists(texts, min_size=1, max_size=12))
def test_the_header_of_a_message_is_found_without_decoding_it(attempt: int, first: int, words: list[str]) -> None:
    message = b"".join(encoded(attempt, first, words))
    assert frames.peek(message) == Header(Kind.TOKENS, attempt, first, first + len(words) - 1)


@given(
    attempt=attempts,
    first=st.integers(0, 50_000),
    words=st.lists(texts, min_size=1, max_size=12),
    data=st.data(),
)
def test_what_follows_a_cursor_is_exactly_the_rest(
    attempt: int, first: int, words: list[str], data: st.DataObject
) -> None:
    pieces = encoded(attempt, first, words)
    seen = data.draw(st.integers(min_value=-1, max_value=len(words) - 1))
    assert frames.tokens_after(b"".join(pieces), first + seen) == b"".join(pieces[seen + 1 :])


@given(words=st.lists(texts, min_size=1, max_size=20), data=st.data())
def test_a_reader_that_drops_by_index_has_the_text_however_messages_are_cut_and_repeated(
    words: list[str], data: st.DataObject
) -> None:
    """Two cuts of one stream, interleaved as a live feed and a backlog are: each token is taken once, in order."""
    pieces = encoded(1, 0, words)
    messages = []
    for _ in range(2):
        cuts = sorted(data.draw(st.sets(st.integers(1, len(words)), max_size=5)) | {0, len(words)})
        messages.append([b"".join(pieces[start:stop]) for start, stop in pairwise(cuts)])
    received = b""
    last = -1
    for message in (*messages[0], *messages[1]):
        header = frames.peek(message)
        if header.last <= last:
            continue
        assert header.first <= last + 1
        received += message if header.first == last + 1 else frames.tokens_after(message, last)
        last = header.last
    assert received == b"".join(pieces)


@given(text=texts)
def test_no_text_can_start_an_event_or_end_one(text: str) -> None:
    frame = frames.encode_token(1, 0, text)
    assert frame.count(b"\n\n") == 1
    assert frame.endswith(b"\n\n")
    assert frame.count(b"\nid: ") == 0
    assert frame.count(b"\n") == 4
    assert b"\r" not in frame


@given(message=texts, hint=texts)
def test_an_error_message_can_not_start_an_event_either(message: str, hint: str) -> None:
    body = ErrorBody(code=ErrorCode.WORKER_RESET, message=message, hint=hint)
    frame = frames.encode_error(2, 7, body)
    assert frames.peek(frame) == Header(Kind.ERROR, 2, 7, 7)
    [event] = frames.split_events(frame)
    assert json.loads(event.data)["message"] == message
    assert event.id == "2-7"


def test_each_kind_of_message_is_told_by_its_header() -> None:
    end = End(tokens_out=3, decode_ms=5, decode_time_ms=5, finish_reason="stop")
    started = Started(queue_position=0, predicted_start_ms=0, engine=Engine.MOCK)
    assert frames.peek(frames.encode_started(started)) == Header(Kind.STARTED, 0, -1, -1)
    assert frames.peek(frames.encode_metrics(Metrics(attempt=2, kv_migrated=False))) == Header(Kind.METRICS, 0, -1, -1)
    assert frames.peek(frames.encode_end(4, end)) == Header(Kind.END, 4, 3, 3)


def test_only_token_and_terminal_events_have_an_id() -> None:
    started = frames.encode_started(Started(queue_position=1, predicted_start_ms=2))
    metrics = frames.encode_metrics(Metrics(queue_depth=1))
    end = frames.encode_end(1, End(tokens_out=0, decode_ms=0, decode_time_ms=0, finish_reason="stop"))
    assert [event.id for event in frames.split_events(started + metrics + end)] == ["", "", "1-0"]


def test_started_says_its_required_fields_even_when_they_are_zero() -> None:
    [event] = frames.split_events(frames.encode_started(Started(queue_position=0, predicted_start_ms=0)))
    assert json.loads(event.data) == {"queue_position": 0, "predicted_start_ms": 0}


def test_a_false_metric_is_said_and_an_unknown_one_is_not() -> None:
    [event] = frames.split_events(frames.encode_metrics(Metrics(kv_migrated=False)))
    assert json.loads(event.data) == {"kv_migrated": False}


def test_a_metrics_frame_may_announce_an_attempt() -> None:
    for attempt in (2, 31, 999_999):
        assert frames.announced_attempt(frames.encode_metrics(Metrics(queue_depth=1, attempt=attempt))) == attempt
    assert frames.announced_attempt(frames.encode_metrics(Metrics(queue_depth=1))) == 0


@given(data=st.binary(max_size=80))
@settings(max_examples=300)
def test_foreign_bytes_are_a_bad_frame_and_nothing_else(data: bytes) -> None:
    try:
        frames.peek(data)
    except frames.BadFrame:
        return
    assert data.startswith((b"id: ", b"event: started\n", b"event: metrics\n"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"id: ",
        b"id: 1-0",
        b"id: x-0\nevent: token\ndata: {}\n\n",
        b"id: 1-\nevent: token\ndata: {}\n\n",
        b"id: 1-0\nevent: tea\ndata: {}\n\n",
        b'id: 1-0\nevent: token\ndata: {"t":"a","i":0}\n\nid: 1-x\nevent: token\ndata: {}\n\n',
        b"event: token\ndata: {}\n\n",
        b": comment\n\n",
    ],
)
def test_a_broken_frame_is_refused(data: bytes) -> None:
    with pytest.raises(frames.BadFrame):
        frames.peek(data)


@given(attempt=st.integers(0, 999_999), token=st.integers(0, 999_999_999))
def test_a_cursor_is_read_with_and_without_its_attempt(attempt: int, token: int) -> None:
    assert frames.parse_cursor(f"{attempt}-{token}") == Cursor(attempt, token)
    assert frames.parse_cursor(f"{token}") == Cursor(0, token)


@pytest.mark.parametrize(
    "text", ["", "-", "1-", "-1", "1-2-3", "a", "1-a", "a-1", "1.5", "+1", "٣", "1" * 10, "1" * 7 + "-1", "1 -2", "0x1"]
)
def test_a_bad_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        frames.parse_cursor(text)


@given(text=st.text(max_size=30))
def test_no_cursor_text_does_anything_but_parse_or_raise(text: str) -> None:
    try:
        cursor = frames.parse_cursor(text)
    except ValueError:
        return
    assert cursor.attempt >= 0
    assert cursor.token >= 0
