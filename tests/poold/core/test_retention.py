"""Frames are kept while they may be needed, within the bound."""

import random

import pytest

from llorch_poold.core.retention import FRAME_OVERHEAD_BYTES, KEEP_ENDED_S, FrameRetention
from llorch_shared.wire.frames import (
    MESSAGE_BYTES_MAX,
    End,
    Kind,
    Started,
    encode_end,
    encode_started,
    encode_token,
    peek,
)


def test_frames_come_back_in_order_with_tokens_joined() -> None:
    kept = FrameRetention(1_000_000).open("t", "s")
    started = encode_started(Started(queue_position=0, predicted_start_ms=0))
    end = encode_end(1, End(tokens_out=5, decode_ms=1, decode_time_ms=1, finish_reason="length"))
    for part in (started, *(encode_token(1, index, "x") for index in range(5)), end):
        kept.add(part)
    messages = list(kept.messages())
    assert [peek(message).kind for message in messages] == [Kind.STARTED, Kind.TOKENS, Kind.END]
    assert peek(messages[1])[2:] == (0, 4)
    assert b"".join(messages) == b"".join(kept.parts)


def test_joined_frames_stay_under_the_message_limit() -> None:
    kept = FrameRetention(100_000_000).open("t", "s")
    for index in range(40):
        kept.add(encode_token(1, index, "x" * 50_000))
    messages = list(kept.messages())
    assert len(messages) > 3
    assert all(len(message) <= MESSAGE_BYTES_MAX for message in messages)


def test_ended_tasks_are_forgotten_after_a_minute() -> None:
    retention = FrameRetention(1_000_000)
    retention.open("old", "s").add(b"x")
    retention.open("runs", "s").add(b"x")
    retention.end("old", now=10)
    retention.expire(now=10 + KEEP_ENDED_S - 1)
    assert retention.get("old") is not None
    retention.expire(now=10 + KEEP_ENDED_S)
    assert retention.get("old") is None
    assert retention.get("runs") is not None


def test_over_the_bound_ended_tasks_go_before_running_ones() -> None:
    retention = FrameRetention(3 * (100 + FRAME_OVERHEAD_BYTES))
    for name in ("first", "second", "runs"):
        retention.open(name, "s").add(b"x" * 100)
    retention.end("second", now=1)
    retention.end("first", now=2)
    runs = retention.get("runs")
    assert runs is not None
    runs.add(b"y" * 100)
    assert retention.get("second") is None
    assert retention.get("first") is not None
    assert len(runs.parts) == 2


def test_a_task_that_is_too_large_alone_is_not_kept_half() -> None:
    retention = FrameRetention(1_000)
    kept = retention.open("huge", "s")
    for _ in range(20):
        kept.add(b"x" * 100)
    assert kept.dropped
    assert list(kept.messages()) == []
    assert retention.size == 0


@pytest.mark.parametrize("seed", range(10))
def test_the_bound_holds_whatever_happens(seed: int) -> None:
    chance = random.Random(seed)
    retention = FrameRetention(20_000)
    for step in range(2_000):
        name = f"t{chance.randrange(12)}"
        kept = retention.get(name)
        choice = chance.random()
        if kept is None or choice < 0.05:
            retention.open(name, "s")
        elif choice < 0.1:
            retention.end(name, now=step)
        elif choice < 0.12:
            retention.expire(now=step)
        else:
            kept.add(b"x" * chance.randrange(300))
        assert retention.size <= retention.limit
        assert retention.size == sum(each.size for each in retention.all())
