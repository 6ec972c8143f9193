"""A second attempt continues a stream only if it says the same (ARCHITECTURE, invariant 4)."""

import random

import pytest

from llorch_poold.core.prefix import PrefixGuard, PrefixMismatch, Sent, sent_before
from llorch_shared.wire.frames import Metrics, Started, encode_metrics, encode_started, encode_token


def test_what_was_sent_is_not_sent_again() -> None:
    guard = PrefixGuard({0: " a", 1: " b"})
    assert guard.take(0, [" a"]) == []
    assert not guard.passed
    assert guard.take(1, [" b", " c"]) == [(2, " c")]
    assert guard.passed
    guard.end(3)


def test_one_different_byte_is_a_mismatch() -> None:
    with pytest.raises(PrefixMismatch):
        PrefixGuard({0: " a", 1: " b"}).take(0, [" a", " B"])


def test_an_attempt_that_ends_before_the_prefix_does_is_a_mismatch() -> None:
    guard = PrefixGuard({0: " a", 1: " b"})
    guard.take(0, [" a"])
    with pytest.raises(PrefixMismatch):
        guard.end(1)


def test_a_hole_in_what_was_sent_is_filled() -> None:
    guard = PrefixGuard({0: " a", 2: " c"})
    assert guard.take(0, [" a", " b", " c"]) == [(1, " b")]


def test_what_a_lost_attempt_adds_after_the_next_was_announced_does_not_count() -> None:
    announced = encode_metrics(Metrics(attempt=2, kv_migrated=False))
    sent = sent_before([encode_token(1, 0, " a"), announced, encode_token(1, 1, " b"), encode_token(2, 1, " c")])
    assert dict(sent.tokens) == {0: " a", 1: " c"}
    assert sent.count == 2


def test_the_backlog_tells_what_readers_have() -> None:
    started = encode_started(Started(queue_position=0, predicted_start_ms=0))
    sent = sent_before(
        [started, encode_token(1, 0, " a") + encode_token(1, 1, "\n"), encode_token(2, 1, " x"), b"no frame"]
    )
    assert (sent.started, sent.tokens) == (True, {0: " a", 1: "\n"})


@pytest.mark.parametrize("seed", range(30))
def test_however_the_reads_fall_every_token_is_sent_once(seed: int) -> None:
    chance = random.Random(seed)
    texts = [f" {chance.randrange(5)}" for _ in range(50)]
    sent = {index: texts[index] for index in range(50) if chance.random() < 0.4}
    guard, position = PrefixGuard(sent), 0
    fresh: list[tuple[int, str]] = []
    while position < 50:
        count = min(50 - position, chance.randrange(1, 9))
        fresh += guard.take(position, texts[position : position + count])
        position += count
    guard.end(50)
    assert sorted([*fresh, *sent.items()]) == list(enumerate(texts))


def test_the_next_token_of_a_stream_is_the_first_that_readers_do_not_have() -> None:
    sent = Sent(started=True, tokens={0: "a", 1: "b", 2: "c", 4: "e"})
    assert [sent.next_index(taken) for taken in range(7)] == [3, 3, 3, 3, 5, 5, 6]
    assert Sent(started=False, tokens={}).next_index(2) == 2
