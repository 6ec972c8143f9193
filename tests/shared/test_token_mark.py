"""Whether the token log has all of a stream, and where in it a stream begins."""

from llorch_shared.bus.port import StreamState
from llorch_shared.token_mark import first_seq, holds, mark_of


def state(life: str, first: int, last: int) -> StreamState:
    return StreamState(messages=last - first + 1, first_seq=first, last_seq=last, life=life)


def test_a_log_holds_what_was_stored_since_the_mark() -> None:
    mark = mark_of(state("2026-11-21T17:00:00.5Z", 3, 70))
    assert holds(state("2026-11-21T17:00:00.5Z", 3, 90), mark)
    assert holds(state("2026-11-21T17:00:00.5Z", 71, 90), mark)
    assert not holds(state("2026-11-21T17:00:00.5Z", 72, 90), mark), "it has forgotten the oldest"
    assert not holds(state("2026-11-21T18:00:00.5Z", 1, 90), mark), "another life"


def test_an_empty_log_and_a_mark_that_says_nothing() -> None:
    empty = StreamState(messages=0, first_seq=0, last_seq=0, life="a")
    assert holds(state("a", 1, 5), mark_of(empty))
    unseen = mark_of(StreamState(messages=0, first_seq=0, last_seq=0))
    assert not holds(state("a", 1, 5), unseen)
    assert holds(state("a", 3, 5), ""), "an older release made no mark"


def test_a_stream_begins_behind_its_mark_in_the_same_life_only() -> None:
    mark = mark_of(state("2026-11-21T17:00:00.5Z@n1", 3, 70))
    assert first_seq(mark, "2026-11-21T17:00:00.5Z@n1") == 71
    assert first_seq(mark, "2026-11-21T18:00:00.5Z@n1") == 1
    assert first_seq(mark, "") == 1
    assert first_seq("", "") == 1
    assert first_seq(mark_of(StreamState(messages=0, first_seq=0, last_seq=0)), "") == 1
