"""The decode time of each attempt as the token log shows it."""

from llorch_shared.bus.port import Message
from llorch_shared.decode_times import decode_times
from llorch_shared.wire.frames import Metrics, encode_metrics, encode_token


def stored(data: bytes, at_ms: int) -> Message:
    return Message(subject="t", data=data, stored_ms=at_ms)


def test_each_attempt_took_from_its_first_token_to_its_last() -> None:
    log = [
        stored(encode_metrics(Metrics(queue_depth=1)), 50),
        stored(encode_token(1, 0, "a"), 100),
        stored(encode_token(1, 1, "b") + encode_token(1, 2, "c"), 140),
        stored(b"no frame", 150),
        stored(encode_token(2, 3, "d"), 900),
        stored(encode_token(2, 4, "e"), 905),
        stored(encode_token(3, 5, "f"), 990),
    ]
    assert decode_times(log) == {1: 40, 2: 5, 3: 0}
    assert decode_times([]) == {}


def test_tokens_that_were_published_again_are_no_later_than_they_were() -> None:
    first = [stored(encode_token(1, index, "x"), 100 + index) for index in range(3)]
    again = [stored(encode_token(1, index, "x"), 5_000 + index) for index in range(3)]
    assert decode_times([*first, *again]) == {1: 2}
    assert decode_times([*first, *again, stored(encode_token(1, 3, "x"), 5_100)]) == {1: 5_000}
