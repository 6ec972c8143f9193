"""A reader of a token stream: whatever order frames arrive in, the client sees each index once, in order."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.streaming.outgoing import PIECE_BYTES
from llorch_shared.streaming.reader import Mode, Reader
from llorch_shared.wire import frames
from llorch_shared.wire.frames import Cursor, Event, peek, split_events

BUFFER = 64 * 1024
STARTED = frames.encode_started(frames.Started(queue_position=0, predicted_start_ms=0))


def token(index: int, attempt: int = 1) -> bytes:
    return frames.encode_token(attempt, index, f" w{index}")


def tokens(first: int, last: int, attempt: int = 1) -> bytes:
    return b"".join(token(index, attempt) for index in range(first, last + 1))


def metrics(number: int) -> bytes:
    return frames.encode_metrics(frames.Metrics(queue_depth=number))


def end(count: int, attempt: int = 1, reason: str = "stop") -> bytes:
    return frames.encode_end(attempt, frames.End(tokens_out=count, decode_ms=1, decode_time_ms=1, finish_reason=reason))


def give(reader: Reader, *sent: bytes) -> None:
    for data in sent:
        reader.live(peek(data), data)


def replay(reader: Reader, *stored: bytes) -> bool:
    reader.begin_replay()
    for data in stored:
        reader.replayed(data)
    return reader.end_replay()


def seen(reader: Reader) -> list[str]:
    return [brief(event) for event in split_events(reader.take())]


def brief(event: Event) -> str:
    return f"{event.event} {event.id}".strip()


def fresh(cursor: Cursor | None = None, *, in_step: bool = True, buffer_bytes: int = BUFFER) -> Reader:
    return Reader(cursor, buffer_bytes=buffer_bytes, in_step=in_step)


def restart(index: int, attempt: int = 2) -> bytes:
    return frames.encode_metrics(frames.Metrics(attempt=attempt, kv_migrated=False, restarted_at=index))


def goes_on(index: int, attempt: int = 2) -> bytes:
    return frames.encode_metrics(frames.Metrics(attempt=attempt, kv_migrated=False, resume_from=index))


def announced(attempt: int) -> bytes:
    return frames.encode_metrics(frames.Metrics(attempt=attempt, kv_migrated=False))


def test_live_frames_are_sent_joined_and_unchanged() -> None:
    reader = fresh()
    give(reader, STARTED, tokens(0, 2), metrics(1), token(3), end(4))
    assert reader.take() == STARTED + tokens(0, 2) + metrics(1) + token(3) + end(4)
    assert reader.done
    assert reader.take() == b""


def test_much_at_once_is_sent_in_pieces_of_whole_frames() -> None:
    reader = fresh(buffer_bytes=32 * PIECE_BYTES)
    sent = [STARTED, *(tokens(1000 * number, 1000 * number + 999) for number in range(10)), token(10_000)]
    give(reader, *sent)
    pieces = []
    while piece := reader.take():
        pieces.append(piece)
    assert b"".join(pieces) == b"".join(sent)
    assert len(pieces) > 5
    assert all(len(piece) <= max(PIECE_BYTES, len(tokens(9000, 9999))) for piece in pieces)
    assert all(piece.endswith(b"\n\n") for piece in pieces)


def test_a_frame_that_comes_twice_is_sent_once() -> None:
    reader = fresh()
    give(reader, STARTED, STARTED, token(0), token(0), tokens(0, 2), token(2))
    assert seen(reader) == ["started", "token 1-0", "token 1-1", "token 1-2"]


def test_a_gap_makes_the_reader_read_the_stored_stream_and_lose_nothing() -> None:
    reader = fresh()
    give(reader, STARTED, token(0), token(3))
    assert seen(reader) == ["started", "token 1-0"]
    assert reader.wants_replay
    reader.begin_replay()
    give(reader, token(4))
    for data in (STARTED, token(0), token(1), token(2), token(3)):
        assert reader.replayed(data)
    assert reader.end_replay()
    assert reader.mode is Mode.LIVE
    assert seen(reader) == ["token 1-1", "token 1-2", "token 1-3", "token 1-4"]


def test_a_missing_start_is_looked_for_once() -> None:
    reader = fresh()
    give(reader, token(0))
    assert reader.wants_replay
    assert replay(reader, STARTED, token(0))
    assert seen(reader) == ["started", "token 1-0"]


def test_tokens_missing_before_the_end_are_looked_for() -> None:
    reader = fresh()
    give(reader, STARTED, token(0), end(3))
    assert not reader.done
    assert seen(reader) == ["started", "token 1-0"]
    assert replay(reader, STARTED, token(0), token(1), token(2), end(3))
    assert seen(reader) == ["token 1-1", "token 1-2", "end 1-3"]


def test_an_end_that_is_stored_before_its_tokens_does_not_end_the_stream_short() -> None:
    """A restarted bus has forgotten the tokens; the end was published before the node repeated what it kept."""
    for begun in (fresh(Cursor(1, 0), in_step=False), fresh(in_step=False)):
        assert not replay(begun, end(3))
        assert begun.take() == b""
        assert begun.wants_replay
        assert replay(begun, end(3), STARTED, tokens(0, 2), end(3))
        assert seen(begun)[-3:] == ["token 1-1", "token 1-2", "end 1-3"]


def test_a_hole_in_the_stored_stream_does_not_end_it_short() -> None:
    reader = fresh(in_step=False)
    reader.begin_replay()
    assert reader.replayed(STARTED)
    assert not reader.replayed(token(2))
    assert not reader.replayed(end(3))
    assert not reader.end_replay()
    assert reader.take() == STARTED
    assert reader.wants_replay
    assert replay(reader, token(0), token(1), token(2), end(3))
    assert seen(reader) == ["token 1-0", "token 1-1", "token 1-2", "end 1-3"]


def test_a_reader_that_resumes_gets_only_what_follows_its_cursor() -> None:
    reader = fresh(Cursor(1, 1), in_step=False)
    assert reader.wants_replay
    assert replay(reader, STARTED, tokens(0, 3), end(4))
    assert seen(reader) == ["token 1-2", "token 1-3", "end 1-4"]


def test_frames_of_an_older_attempt_are_dropped_once_a_newer_was_seen() -> None:
    reader = fresh()
    give(reader, STARTED, token(0, 1), metrics(2), token(1, 2), token(2, 1), token(1, 1), token(2, 2), end(3, 1))
    assert not reader.done
    give(reader, end(3, 2))
    assert seen(reader) == ["started", "token 1-0", "metrics", "token 2-1", "token 2-2", "end 2-3"]


def test_nothing_is_taken_from_a_node_that_wakes_up_after_it_lost_the_task() -> None:
    announced = frames.encode_metrics(frames.Metrics(attempt=2, kv_migrated=False))
    stored = (STARTED, tokens(0, 1), announced, tokens(2, 9, 1), tokens(2, 3, 2), end(4, 2))
    live, late = fresh(), fresh(in_step=False)
    give(live, *stored)
    assert replay(late, *stored)
    for reader in (live, late):
        assert seen(reader)[3:] == ["metrics", "token 2-2", "token 2-3", "end 2-4"]


def test_a_slow_reader_loses_metrics_first_and_then_follows_the_stored_stream() -> None:
    reader = fresh(buffer_bytes=len(STARTED) + len(tokens(0, 2)))
    give(reader, STARTED, metrics(1), metrics(2), tokens(0, 1), token(2))
    assert reader.metrics_dropped == 2
    assert reader.mode is Mode.LIVE
    give(reader, token(3), token(4))
    assert reader.mode is Mode.BEHIND
    sent = seen(reader)
    assert replay(reader, STARTED, metrics(1), metrics(2), tokens(0, 1), token(2), token(3), token(4), token(5))
    sent += seen(reader)
    assert [line for line in sent if line.startswith("token")] == [f"token 1-{i}" for i in range(6)]


def test_too_many_live_frames_during_a_replay_make_another_one() -> None:
    reader = fresh(in_step=False, buffer_bytes=100)
    reader.begin_replay()
    for index in range(10):
        give(reader, token(index))
    assert not reader.end_replay()
    assert replay(reader, STARTED, *[token(index) for index in range(10)])
    assert seen(reader) == ["started", *[f"token 1-{i}" for i in range(10)]]


def test_no_token_leaves_after_a_cancel() -> None:
    reader = fresh()
    give(reader, STARTED, token(0))
    reader.take()
    give(reader, token(1))
    reader.hold()
    give(reader, token(2), token(3))
    assert reader.take() == b""
    give(reader, end(4, reason="cancelled"))
    assert seen(reader) == ["end 1-4"]


def test_a_cancel_that_came_too_late_costs_no_token() -> None:
    reader = fresh()
    give(reader, STARTED, token(0))
    reader.hold()
    give(reader, token(1), end(2))
    assert seen(reader) == ["started", "token 1-0", "token 1-1", "end 1-2"]


def test_a_reader_behind_is_released_by_the_end_it_does_not_take() -> None:
    reader = fresh(buffer_bytes=60)
    reader.hold()
    give(reader, STARTED, token(0), token(1), end(2))
    assert not reader.done
    assert seen(reader) == ["started"]
    assert replay(reader, STARTED, token(0), token(1), end(2))
    assert seen(reader)[-1] == "end 1-2"


def test_a_late_reader_of_a_cancelled_task_gets_its_end_and_no_token() -> None:
    reader = fresh(in_step=False)
    reader.silence()
    assert replay(reader, STARTED, tokens(0, 5), end(6, reason="cancelled"))
    assert seen(reader) == ["started", "end 1-6"]


def test_a_record_in_a_final_state_ends_a_stream_whose_end_was_lost() -> None:
    reader = fresh()
    give(reader, STARTED, token(0))
    reader.hold()
    reader.finish(frames.encode_error(1, 1, ErrorBody(code=ErrorCode.WORKER_RESET, message="lost")))
    assert seen(reader) == ["started", "token 1-0", "error 1-1"]
    give(reader, token(1))
    assert reader.take() == b""


def test_nothing_follows_the_end() -> None:
    reader = fresh()
    give(reader, STARTED, token(0), end(1), token(1), end(1), metrics(3))
    assert seen(reader) == ["started", "token 1-0", "end 1-1"]


@dataclass
class Script:
    """What a node published for one task, in order, and where the live path lost or doubled it."""

    stored: list[bytes]
    total: int
    fates: list[int] = field(default_factory=list)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    total = draw(st.integers(0, 12))
    switch = draw(st.integers(0, total))
    stored = [STARTED]
    index, attempt, switched = 0, 1, False
    while index < total:
        if index >= switch and not switched and draw(st.booleans()):
            switched, attempt = True, 2
            stored.append(metrics(100 + index))
            if draw(st.booleans()) and index > 0:
                stored.append(token(draw(st.integers(0, index - 1)), 1))
        size = draw(st.integers(1, min(3, total - index)))
        stored.append(tokens(index, index + size - 1, attempt))
        index += size
        if draw(st.booleans()):
            stored.append(metrics(index))
    stored.append(end(total, attempt))
    fates = draw(st.lists(st.integers(0, 5), min_size=len(stored), max_size=len(stored)))
    return Script(stored, total, fates)


@settings(max_examples=400, deadline=None)
@given(
    script=scripts(),
    in_step=st.booleans(),
    cursor=st.integers(-1, 12),
    joined=st.integers(0, 6),
    buffer_bytes=st.sampled_from([64, 200, BUFFER]),
    taking=st.lists(st.booleans(), min_size=40, max_size=40),
    chunk=st.integers(1, 4),
)
def test_every_index_once_in_order_one_start_at_most_one_end_last(
    script: Script,
    in_step: bool,
    cursor: int,
    joined: int,
    buffer_bytes: int,
    taking: list[bool],
    chunk: int,
) -> None:
    resumed = Cursor(1, cursor) if 0 <= cursor < script.total else None
    starts_in_step = in_step and resumed is None
    reader = fresh(resumed, in_step=starts_in_step, buffer_bytes=buffer_bytes)
    first = 0 if starts_in_step else min(joined, len(script.stored))
    sent = b""
    position = first
    replay_at: int | None = None
    steps = iter(taking * 8)
    while position < len(script.stored) or not reader.done:
        if next(steps) or position >= len(script.stored):
            sent += reader.take()
            if replay_at is not None:
                for data in script.stored[replay_at : min(replay_at + chunk, position)]:
                    reader.replayed(data)
                replay_at += chunk
                if replay_at >= position:
                    reader.end_replay()
                    replay_at = None
            elif reader.wants_replay:
                reader.begin_replay()
                replay_at = 0
            elif position >= len(script.stored) and not reader.done:
                reader.lost()
        if position < len(script.stored):
            data, fate = script.stored[position], script.fates[position]
            position += 1
            if fate != 0:
                give(reader, data)
            if fate == 1:
                give(reader, data)
    sent += reader.take()
    events = split_events(sent)
    indices = [int(event.id.partition("-")[2]) for event in events if event.event == "token"]
    assert indices == list(range(0 if resumed is None else resumed.token + 1, script.total))
    names = [event.event for event in events]
    assert names.count("started") <= 1
    assert names.count("end") == 1
    assert names[-1] == "end"
    if resumed is None:
        assert names[0] in ("started", "metrics")
        assert names.count("started") == 1


BEGUN_ANEW = (
    STARTED,
    tokens(0, 2),
    announced(2),
    restart(3),
    tokens(3, 4, 2),
    announced(3),
    restart(5, 3),
    token(5, 3),
)


def test_a_restart_is_told_between_the_tokens_live_and_late_and_resumed() -> None:
    after = [f"token 1-{index}" for index in range(3)]
    rest = ["metrics", "metrics", "token 2-3", "token 2-4", "metrics", "metrics", "token 3-5"]
    live, late, resumed = fresh(), fresh(in_step=False), fresh(Cursor(1, 1), in_step=False)
    give(live, *BEGUN_ANEW)
    assert seen(live) == ["started", *after, *rest]
    assert replay(late, *BEGUN_ANEW)
    assert seen(late) == ["started", *after, *rest]
    assert replay(resumed, *BEGUN_ANEW)
    assert seen(resumed) == ["token 1-2", *rest]


def test_a_restart_that_comes_before_tokens_that_are_missing_waits_for_them() -> None:
    reader = fresh()
    give(reader, STARTED, tokens(0, 1), announced(2), restart(3))
    assert seen(reader) == ["started", "token 1-0", "token 1-1", "metrics"]
    assert reader.wants_replay
    assert replay(reader, *BEGUN_ANEW[:4])
    assert reader.take() == token(2) + restart(3)


def test_a_reader_that_came_back_after_a_restart_is_told_at_most_that_it_was() -> None:
    reader = fresh(Cursor(3, 5), in_step=False)
    assert replay(reader, *BEGUN_ANEW, token(6, 3))
    out = split_events(reader.take())
    assert [event.id for event in out if event.event == "token"] == ["3-6"]
    assert not reader.done


def test_a_reader_that_does_not_keep_up_is_told_of_a_restart_all_the_same() -> None:
    reader = fresh(buffer_bytes=200)
    give(reader, STARTED, metrics(1), restart(0), metrics(2))
    assert restart(0) in reader.take()
    assert reader.metrics_dropped


def test_a_lost_attempt_says_nothing_of_restarts_any_more() -> None:
    reader = fresh()
    give(reader, STARTED, tokens(0, 2), announced(2), announced(3), restart(3, 2), restart(3, 3), token(3, 3))
    assert reader.take() == STARTED + tokens(0, 2) + announced(2) + announced(3) + restart(3, 3) + token(3, 3)


def test_a_reader_with_tokens_that_the_next_attempt_does_not_go_on_from_is_told_so() -> None:
    """A node that had lost the task was heard once more, before the announcement reached this gateway."""
    for told in (goes_on(2), restart(2)):
        reader = fresh()
        give(reader, STARTED, tokens(0, 2), announced(2), told, token(2, 2))
        *_, last = split_events(reader.take())
        assert last.event == "error"
        assert b"tokens_differ" in last.data
        assert reader.done
        resumed = fresh(Cursor(1, 2), in_step=False)
        replay(resumed, STARTED, tokens(0, 1), announced(2), token(2), told, tokens(2, 3, 2))
        assert split_events(resumed.take())[-1].event == "error"
        late = fresh(in_step=False)
        assert replay(late, STARTED, tokens(0, 1), announced(2), token(2), told, tokens(2, 3, 2))
        assert seen(late)[-2:] == ["token 2-2", "token 2-3"]


def test_a_cursor_that_names_no_attempt_is_believed() -> None:
    reader = fresh(Cursor(0, 2), in_step=False)
    assert replay(reader, STARTED, tokens(0, 1), announced(2), goes_on(2), tokens(2, 3, 2))
    assert seen(reader)[-1] == "token 2-3"


def test_tokens_that_were_missed_before_an_announcement_are_found_behind_it() -> None:
    """Heard live: the next attempt. Stored: what the earlier one said before."""
    reader = fresh()
    give(reader, STARTED, token(0), announced(2), token(3, 2))
    assert seen(reader) == ["started", "token 1-0", "metrics"]
    assert replay(reader, STARTED, tokens(0, 2), announced(2), token(3, 2))
    assert seen(reader) == ["token 1-1", "token 1-2", "token 2-3"]


def test_a_replay_that_goes_on_where_the_last_one_ended_knows_who_speaks_there() -> None:
    reader = fresh(in_step=False)
    assert replay(reader, STARTED, token(0), announced(2))
    reader.lost()
    reader.begin_replay(anew=False)
    assert reader.replayed(token(1)), "of the attempt that is over"
    assert reader.replayed(frames.encode_token(2, 1, " other"))
    assert reader.end_replay()
    assert b" other" in reader.take()


def test_a_replay_that_was_refused_knows_who_spoke_at_that_place() -> None:
    reader = fresh(in_step=False)
    reader.begin_replay()
    assert reader.replayed(STARTED)
    assert not reader.replayed(token(2))
    reader.replayed(announced(2))
    assert not reader.end_replay()
    reader.begin_replay(anew=False)
    for data in (tokens(0, 2), announced(2), token(3, 2)):
        assert reader.replayed(data)
    assert reader.end_replay()
    assert [event.id for event in split_events(reader.take()) if event.id] == ["1-0", "1-1", "1-2", "2-3"]


def near(reader: Reader, *stored: bytes, live: bytes = b"", named: int = 1) -> bool:
    """Replay from late in the stored stream; `live` comes meanwhile, and the record named an attempt before."""
    reader.begin_replay(anew=False, near=named)
    if live:
        give(reader, live)
    for data in stored:
        reader.replayed(data)
    return reader.end_replay()


def test_a_reader_that_is_back_soon_finds_what_it_missed_near_the_end_of_the_stream() -> None:
    reader = fresh(Cursor(1, 4), in_step=False)
    assert near(reader, tokens(2, 3), tokens(4, 6), metrics(1), token(7), live=token(8))
    assert seen(reader) == ["token 1-5", "token 1-6", "metrics", "token 1-7", "token 1-8"]
    assert reader.mode is Mode.LIVE


def test_a_frame_that_ends_where_the_reader_stands_is_enough_to_be_in_step() -> None:
    reader = fresh(Cursor(1, 4), in_step=False)
    assert near(reader, tokens(2, 4))
    give(reader, token(5))
    assert seen(reader) == ["token 1-5"]


def test_one_that_was_away_for_longer_reads_the_whole_stream() -> None:
    for window in ((), (token(6), token(7)), (metrics(1),), (tokens(0, 2),)):
        reader = fresh(Cursor(1, 4), in_step=False)
        assert not near(reader, *window)
        assert replay(reader, STARTED, *(token(index) for index in range(8)), end(8))
        assert [each for each in seen(reader) if each != "metrics"] == [
            "token 1-5",
            "token 1-6",
            "token 1-7",
            "end 1-8",
        ]


def test_near_the_end_an_earlier_attempt_is_not_listened_to() -> None:
    """A node that lost the task while it slept adds to the stream when it wakes."""
    reader = fresh(Cursor(2, 4), in_step=False)
    assert near(reader, token(4, 2), token(5, 1), token(6, 1), token(5, 2), live=token(6, 2))
    assert seen(reader) == ["token 2-5", "token 2-6"]
    reader = fresh(Cursor(2, 4), in_step=False)
    assert not near(reader, token(4, 1), token(5, 1)), "what touches is not of the reader's attempt"


def test_an_attempt_that_began_since_is_announced_near_the_end() -> None:
    reader = fresh(Cursor(1, 4), in_step=False)
    assert near(reader, token(4), token(5), goes_on(6), token(6, 1), token(6, 2))
    assert seen(reader) == ["token 1-5", "metrics", "token 2-6"]


def test_the_end_is_found_near_the_end() -> None:
    reader = fresh(Cursor(1, 4), in_step=False)
    assert near(reader, token(5), end(6))
    assert seen(reader) == ["token 1-5", "end 1-6"]
    reader = fresh(Cursor(1, 4), in_step=False)
    assert near(reader, end(5))
    assert seen(reader) == ["end 1-5"]


def repeats(count: int, attempt: int = 2) -> bytes:
    return frames.encode_metrics(frames.Metrics(attempt=attempt, kv_migrated=False, tokens_out=count))


def preempted(index: int, attempt: int = 2) -> bytes:
    return frames.encode_metrics(frames.Metrics(attempt=attempt, preempted=True, resume_from=index))


def in_step_at(reader: Reader, stored: bytes, *live: bytes, named: int = 1) -> bool:
    """`stored` is the last frame that the stored stream has; `live` comes meanwhile."""
    reader.begin_replay(near=named)
    give(reader, *live)
    reader.tip(stored)
    return reader.end_replay()


def test_a_reader_that_has_all_is_in_step_by_the_last_frame_alone() -> None:
    for named, stored, following in (
        (1, token(4), token(5)),
        (1, tokens(3, 4), token(5)),
        (2, token(4), token(5, 2)),
        (2, goes_on(5), token(5, 2)),
        (2, repeats(5), token(5, 2)),
        (2, repeats(3), tokens(3, 5, 2)),
        (2, preempted(5), token(5, 2)),
        (2, restart(5), token(5, 2)),
        (5, repeats(5, 5), token(5, 5)),
    ):
        reader = fresh(Cursor(1, 4), in_step=False)
        assert in_step_at(reader, stored, named=named)
        give(reader, following)
        assert seen(reader)[-1].startswith("token")
        assert (reader.next_index, reader.mode) == (6, Mode.LIVE)


def test_the_last_frame_brings_what_it_has_and_what_came_meanwhile() -> None:
    reader = fresh(Cursor(1, 4), in_step=False)
    assert in_step_at(reader, tokens(4, 6), token(7))
    assert seen(reader) == ["token 1-5", "token 1-6", "token 1-7"]
    reader = fresh(Cursor(1, 4), in_step=False)
    assert in_step_at(reader, end(5))
    assert seen(reader) == ["end 1-5"]


def test_a_last_frame_that_proves_nothing_is_not_listened_to() -> None:
    for named, stored in (
        (1, token(6)),
        (1, token(3)),
        (1, metrics(1)),
        (2, announced(2)),
        (2, goes_on(6)),
        (2, goes_on(4)),
        (2, repeats(6)),
        (3, goes_on(5, 3)),
        (2, token(5, 2)),
        (2, token(5)),
        (3, goes_on(5)),
        (2, end(5, 2)),
        (1, STARTED),
    ):
        reader = fresh(Cursor(1, 4), in_step=False)
        assert not in_step_at(reader, stored, named=named), (named, stored)
        assert seen(reader) == []
        assert reader.next_index == 5


def test_the_next_attempt_is_found_near_the_end_with_what_it_said() -> None:
    for told in (goes_on(5), repeats(5), repeats(4), restart(5)):
        reader = fresh(Cursor(1, 4), in_step=False)
        assert near(reader, token(5), announced(2), told, token(5, 2), live=token(6, 2), named=2)
        assert seen(reader) == ["metrics", "token 2-5", "token 2-6"]


@given(
    cursor=st.integers(0, 29),
    since=st.integers(0, 30),
    stored=st.integers(0, 30),
    sizes=st.lists(st.integers(1, 4), min_size=30, max_size=30),
)
@settings(max_examples=300)
def test_wherever_the_newest_frames_begin_nothing_is_missed_or_doubled(
    cursor: int, since: int, stored: int, sizes: list[int]
) -> None:
    messages: list[bytes] = []
    first = 0
    for size in sizes:
        last = min(29, first + size - 1)
        if first <= last:
            messages.append(tokens(first, last))
        first = last + 1
    messages.append(end(30))
    cut = min(stored, len(messages))
    reader = fresh(Cursor(1, cursor), in_step=False)
    reader.begin_replay(anew=False, near=1)
    give(reader, *messages[cut:])
    for data in messages[min(since, cut) : cut]:
        reader.replayed(data)
    if not reader.end_replay():
        assert replay(reader, STARTED, *messages)
    assert seen(reader) == [*(f"token 1-{index}" for index in range(cursor + 1, 30)), "end 1-30"]
    assert reader.done
