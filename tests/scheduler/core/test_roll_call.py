"""Who counts as gone: nobody listens several times in a row, and nothing else."""

from llorch_scheduler.core.roll_call import ASKS_PER_S, OPEN_MAX, SETTLE_MS, STRIKES, RollCall

EVERY_MS, AGAIN_MS, STEP_MS = 200, 100, 20


class Asker:
    """Asks every 20 ms whoever is due; `there` answer, `asleep` do not, of the others the bus says at once that nobody
    listens."""

    def __init__(self, *names: str, settled: bool = True) -> None:
        self.roll = RollCall(every_ms=EVERY_MS, again_ms=AGAIN_MS)
        self.names = set(names)
        self.there = set(names)
        self.asleep: set[str] = set()
        self.asked: list[tuple[int, str]] = []
        self.found: list[tuple[int, str]] = []
        self.at_ms = 10_000
        self.roll.connected(self.at_ms)
        if settled:
            self.run(SETTLE_MS + 3 * EVERY_MS)

    def run(self, ms: int) -> None:
        for _ in range(ms // STEP_MS):
            self.roll.expect(self.names, self.at_ms)
            for name in self.roll.due(self.at_ms):
                self.asked.append((self.at_ms, name))
                if name in self.asleep:
                    self.roll.silent(name, self.at_ms)
                elif name in self.there:
                    self.roll.present(name)
                elif self.roll.absent(name, self.at_ms):
                    self.found.append((self.at_ms, name))
            self.at_ms += STEP_MS

    def gone_after(self, ms: int) -> set[str]:
        self.run(ms)
        return set(self.roll.gone)


LATER_MS = 100_000


def heard(name: str) -> RollCall:
    """Long connected, and `name` has answered."""
    roll = RollCall(every_ms=EVERY_MS, again_ms=AGAIN_MS)
    roll.connected(0)
    roll.expect([name], 0)
    roll.present(name)
    return roll


def test_a_process_that_is_there_is_asked_at_its_pace_and_never_gone() -> None:
    asker = Asker("a")
    asker.asked.clear()
    assert asker.gone_after(2_000) == set()
    assert len(asker.asked) == 2_000 // EVERY_MS


def test_a_dead_process_is_gone_after_three_answers_that_nobody_listens() -> None:
    asker = Asker("a", "b")
    asker.there.remove("a")
    died_ms = asker.at_ms
    assert asker.gone_after(1_000) == {"a"}
    first_ms, name = asker.found[0]
    assert name == "a"
    assert first_ms - died_ms <= EVERY_MS + (STRIKES - 1) * AGAIN_MS + STRIKES * STEP_MS


def test_one_that_is_gone_is_told_of_again_until_it_is_not_expected_any_more() -> None:
    asker = Asker("a")
    asker.there.remove("a")
    asker.run(2_000)
    assert len(asker.found) >= 5
    asker.names.remove("a")
    assert asker.gone_after(STEP_MS) == set()


def test_a_connection_that_is_back_soon_is_no_loss() -> None:
    asker = Asker("a")
    for _ in range(20):
        asker.there.remove("a")
        asker.run(AGAIN_MS)
        asker.there.add("a")
        asker.run(EVERY_MS + AGAIN_MS)
    assert asker.found == []


def test_a_process_that_sleeps_is_not_gone() -> None:
    asker = Asker("a")
    asker.asleep.add("a")
    assert asker.gone_after(10_000) == set()


def test_silence_in_between_begins_the_count_anew() -> None:
    roll = heard("a")
    for _ in range(10):
        assert not any(roll.absent("a", LATER_MS) for _ in range(STRIKES - 1))
        roll.silent("a", LATER_MS + 1)
    assert not any(roll.absent("a", LATER_MS) for _ in range(STRIKES - 1))
    assert roll.absent("a", LATER_MS)


def test_one_that_is_gone_and_answers_again_is_not_gone() -> None:
    asker = Asker("a")
    asker.there.remove("a")
    assert asker.gone_after(1_000) == {"a"}
    asker.there.add("a")
    assert asker.gone_after(EVERY_MS + STEP_MS) == set()


def test_silence_does_not_bring_back_one_that_is_gone() -> None:
    asker = Asker("a")
    asker.there.remove("a")
    asker.run(1_000)
    asker.asleep.add("a")
    assert asker.gone_after(1_000) == {"a"}


def test_one_that_was_never_heard_is_never_gone() -> None:
    """It is of a release that does not answer."""
    asker = Asker("a")
    asker.names.add("old")
    assert asker.gone_after(5_000) == set()


def test_after_a_restart_of_the_bus_the_others_have_time_to_come_back() -> None:
    asker = Asker("a", "b", "c")
    asker.roll.disconnected()
    asker.there.clear()
    asker.run(3_000)
    asker.roll.connected(asker.at_ms)
    asker.run(SETTLE_MS - STEP_MS)
    assert asker.roll.gone == set()
    asker.there = {"a", "b"}
    assert asker.gone_after(2_000) == {"c"}


def test_answers_do_not_count_before_the_connection_has_stood_for_a_while() -> None:
    roll = heard("a")
    roll.absent("a", LATER_MS)
    roll.disconnected()
    assert not any(roll.absent("a", LATER_MS) for _ in range(STRIKES))
    roll.connected(LATER_MS)
    assert not any(roll.absent("a", LATER_MS) for _ in range(STRIKES))
    settled_ms = LATER_MS + SETTLE_MS
    assert not any(roll.absent("a", settled_ms) for _ in range(STRIKES - 1))
    assert roll.absent("a", settled_ms)


def test_a_question_that_a_process_took_into_its_death_does_not_delay_that_it_is_found_gone() -> None:
    roll = heard("a")
    asked_ms = LATER_MS
    assert roll.due(asked_ms) == ["a"]
    for strike in range(1, STRIKES):
        at_ms = asked_ms + strike * EVERY_MS
        assert roll.due(at_ms) == ["a"]
        assert not roll.absent("a", at_ms)
    roll.silent("a", asked_ms)
    assert roll.absent("a", asked_ms + STRIKES * EVERY_MS)


def test_a_process_that_sleeps_has_few_questions_open() -> None:
    roll = RollCall(every_ms=EVERY_MS, again_ms=AGAIN_MS)
    roll.connected(0)
    roll.expect(["a"], 0)
    asked = [roll.due(SETTLE_MS + number * EVERY_MS) for number in range(100)]
    assert sum(map(len, asked)) == OPEN_MAX
    roll.silent("a", SETTLE_MS)
    assert roll.due(SETTLE_MS + 100 * EVERY_MS) == ["a"]


def test_many_are_asked_in_turn_within_the_limit_and_a_dead_one_is_still_found() -> None:
    names = [f"n{number}" for number in range(200)]
    asker = Asker(*names)
    asker.run(3_000)
    asker.asked.clear()
    began_ms = asker.at_ms
    asker.run(4_000)
    assert len(asker.asked) <= ASKS_PER_S * 4 + 10
    assert {name for _, name in asker.asked} == set(names)
    asker.there.remove("n17")
    assert asker.gone_after(4_000) == {"n17"}
    assert began_ms < asker.found[0][0]
