"""Reading server-sent events over connections that break."""

import pytest

from llorch_ctl.core.event_stream import EVENT_BYTES_MAX, BadStream, Reading
from llorch_shared.wire.frames import End, Started, encode_end, encode_started, encode_token

STARTED = encode_started(Started(queue_position=0, predicted_start_ms=0))
END = encode_end(1, End(tokens_out=3, decode_ms=1, decode_time_ms=1, finish_reason="stop"))
TOKENS = [encode_token(1, index, f" w{index}") for index in range(3)]


def names(reading: Reading, data: bytes) -> list[str]:
    return [event.id or event.event for event in reading.feed(data)]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_pieces_of_any_size_give_the_same_events(size: int) -> None:
    reading, whole = Reading(), STARTED + b"".join(TOKENS) + END
    seen = [name for at in range(0, len(whole), size) for name in names(reading, whole[at : at + size])]
    assert seen == ["started", "1-0", "1-1", "1-2", "1-3"]
    assert reading.ended


def test_tokens_that_come_again_are_not_shown_again() -> None:
    reading = Reading()
    assert names(reading, TOKENS[0] + TOKENS[1]) == ["1-0", "1-1"]
    reading.connection_lost()
    assert names(reading, TOKENS[1] + TOKENS[2] + END) == ["1-2", "1-3"]


def test_half_an_event_of_a_lost_connection_is_forgotten() -> None:
    reading = Reading()
    reading.feed(TOKENS[0] + TOKENS[1][:-5])
    reading.connection_lost()
    assert reading.last_id == "1-0"
    assert names(reading, TOKENS[1]) == ["1-1"]


def test_comments_and_retry_are_no_events() -> None:
    reading = Reading()
    assert reading.feed(b": still here\n\nretry: 250\n\n") == []
    assert reading.retry_ms == 250
    assert reading.last_id == ""


def test_nothing_follows_the_end() -> None:
    reading = Reading()
    assert names(reading, END + TOKENS[0]) == ["1-3"]


def test_what_is_no_event_stream_is_not_collected_for_ever() -> None:
    with pytest.raises(BadStream):
        Reading().feed(b"x" * (EVENT_BYTES_MAX + 1))
