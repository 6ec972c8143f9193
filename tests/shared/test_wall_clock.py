"""The time that is written down: the bus's, carried on by a clock that nobody sets."""

import random

from llorch_shared.wall_clock import SLEW, STEP_NS, BusClock

MS = 1_000_000
UNIX = 1_760_000_000_000


class Machine:
    """A machine's two clocks, in nanoseconds, and a bus whose clock is `ahead_ms` of the wall clock it began with."""

    def __init__(self, *, ahead_ms: int = 0) -> None:
        self.steady = 5_000 * MS
        self.wall = UNIX * MS
        self.began = self.steady
        self.ahead_ms = ahead_ms
        self.clock = BusClock(wall_ns=lambda: self.wall, steady=lambda: self.steady)

    @property
    def bus_ms(self) -> int:
        return UNIX + self.ahead_ms + (self.steady - self.began) // MS

    def later(self, ms: float) -> None:
        self.steady += round(ms * MS)
        self.wall += round(ms * MS)

    def ask(self, *, there_ms: float = 0, back_ms: float = 0) -> int:
        asked = self.steady
        self.later(there_ms)
        said = self.bus_ms
        self.later(back_ms)
        return self.clock.heard(said, asked, self.steady)


def test_a_wall_clock_that_is_set_changes_nothing() -> None:
    machine = Machine()
    machine.ask()
    for jump_s in (300, -600, 300):
        machine.wall += jump_s * 1000 * MS
        machine.later(1_000)
        assert machine.clock.now_ms() == machine.bus_ms


def test_a_process_that_began_with_a_wrong_clock_takes_the_bus_s_at_its_first_answer() -> None:
    for ahead_ms in (180_000, -180_000):
        machine = Machine(ahead_ms=ahead_ms)
        assert machine.clock.now_ms() == UNIX
        assert machine.ask() == ahead_ms
        assert machine.clock.now_ms() == machine.bus_ms


def test_a_small_error_is_made_up_for_slowly_and_time_never_goes_back() -> None:
    machine = Machine()
    machine.ask()
    machine.ahead_ms = -1_000
    assert machine.ask() == 0
    before = machine.clock.now_ms()
    for _ in range(SLEW * 10):
        machine.later(100)
        now = machine.clock.now_ms()
        assert 90 <= now - before <= 110
        before = now
    assert abs(machine.clock.now_ms() - machine.bus_ms) <= 1


def test_a_server_whose_clock_was_set_is_followed_at_once() -> None:
    machine = Machine()
    machine.ask()
    for ahead_ms in (60_000, -60_000):
        before, machine.ahead_ms = machine.ahead_ms, ahead_ms
        assert machine.ask() == ahead_ms - before
        assert machine.clock.now_ms() == machine.bus_ms


def test_an_answer_that_took_long_tells_nothing_and_one_between_nothing_below_its_doubt() -> None:
    machine = Machine()
    machine.ask()
    machine.ahead_ms = 60_000
    assert machine.ask(back_ms=1_001) == 0
    machine.ahead_ms = 0
    machine.ask(back_ms=400)
    machine.later(60_000)
    assert machine.clock.now_ms() == machine.bus_ms, "the way back may have taken all of it"


def test_whatever_answers_take_the_error_is_never_more_than_half_a_round_trip() -> None:
    dice = random.Random(1)
    for _ in range(50):
        machine, worst = Machine(ahead_ms=dice.choice((0, 5_000, -5_000))), 0.0
        for _ in range(40):
            there, back = dice.choice((0, 1, 40)), dice.choice((0, 1, 40))
            machine.ask(there_ms=there, back_ms=back)
            worst = max(worst, (there + back) / 2)
            machine.later(dice.choice((1, 500, 5_000)))
            assert abs(machine.clock.now_ms() - machine.bus_ms) <= worst + 2
    assert STEP_NS > 1_000 * MS, "what a tolerated round trip may hide is never stepped over"
