"""Who may give the engine a long prompt."""

from llorch_poold.prefill_line import CHARACTERS_PER_TOKEN, PrefillLine, Turn

BATCH = 64
LONG = "x" * (CHARACTERS_PER_TOKEN * BATCH + 1)


def come(turns: list[Turn]) -> list[bool]:
    return [turn.has_come for turn in turns]


def test_long_prompts_come_one_at_a_time_in_their_order() -> None:
    line = PrefillLine(BATCH)
    turns = [line.join(LONG) for _ in range(3)]
    assert come(turns) == [True, False, False]
    turns[0].leave()
    assert come(turns) == [True, True, False]
    turns[1].leave()
    assert come(turns) == [True, True, True]


def test_what_fits_in_a_batch_does_not_stand_in_line() -> None:
    line = PrefillLine(BATCH)
    line.join(LONG)
    assert line.join(LONG[:-1]).has_come
    assert line.join("").has_come


def test_one_that_leaves_while_it_waits_calls_nobody() -> None:
    line = PrefillLine(BATCH)
    turns = [line.join(LONG) for _ in range(3)]
    turns[1].leave()
    assert come(turns) == [True, False, False]
    turns[0].leave()
    assert come(turns) == [True, False, True]


def test_leaving_twice_is_leaving_once() -> None:
    line = PrefillLine(BATCH)
    turns = [line.join(LONG) for _ in range(3)]
    turns[0].leave()
    turns[0].leave()
    assert come(turns) == [True, True, False]


def test_an_empty_line_is_as_a_new_one() -> None:
    line = PrefillLine(BATCH)
    line.join(LONG).leave()
    assert line.join(LONG).has_come
