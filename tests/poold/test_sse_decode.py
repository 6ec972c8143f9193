"""Server-sent events at any split."""

import random

import pytest

from llorch_poold.sse_decode import EVENT_BYTES_MAX, SseDecoder, StreamTooLong

STREAM = (
    b": ping\n\n"
    b'data: {"content":" \xc3\xa9t\xc3\xa9"}\n\n'
    b"event: x\nid: 4\ndata:no space\n\n"
    b'data: {"content":"\xf0\x9f\x8e\x89"}\r\n\r\n'
    b"data: two\ndata: lines\n\n"
    b"\n\n"
    b"data: last\n\n"
)
PAYLOADS = [
    '{"content":" été"}'.encode(),
    b"no space",
    '{"content":"🎉"}'.encode(),
    b"two\nlines",
    b"last",
]


def test_a_whole_stream_in_one_read() -> None:
    decoder = SseDecoder()
    assert decoder.feed(STREAM) == PAYLOADS
    assert not decoder.pending


@pytest.mark.parametrize("seed", range(50))
def test_any_split_gives_the_same_payloads(seed: int) -> None:
    chance = random.Random(seed)
    decoder, position, payloads = SseDecoder(), 0, []
    while position < len(STREAM):
        size = chance.randrange(1, 1 + chance.choice((1, 3, 40)))
        payloads += decoder.feed(STREAM[position : position + size])
        position += size
    assert payloads == PAYLOADS


def test_a_stream_cut_inside_an_event_is_seen() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: whole\n\ndata: ha") == [b"whole"]
    assert decoder.pending


def test_an_endless_event_is_refused() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"x" * EVENT_BYTES_MAX) == []
    with pytest.raises(StreamTooLong):
        decoder.feed(b"x")
