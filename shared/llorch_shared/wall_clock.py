"""Unix time as this process writes it down and compares it: the time of the bus, carried on by a steady clock.

The wall clock of a machine is set by hand, by NTP or by its host, forwards and back, and no two machines agree. What is
stored here is compared elsewhere: a deadline counts from the time at which the server stored the admission. So the wall
clock is read once, when the process begins; from then on every answer in which the bus tells its time corrects what is
left, and the wall clock is not asked again.

Between two answers time goes on by the monotonic clock (through a suspend, too). A small error is made up for slowly,
so that durations and the order of times stay true; a large one, when the server's own clock was set, at once.
"""

import sys
import time
from collections.abc import Callable
from typing import Final

_MS: Final = 1_000_000
ROUND_TRIP_MAX_NS: Final = 1_000 * _MS
"""An answer that took longer tells nothing: its middle may be anywhere."""
STEP_NS: Final = 2_000 * _MS
"""An error above this is not made up for slowly: what is stored meanwhile would be judged by it."""
SLEW: Final = 20
"""A smaller error is made up for within this many times as long."""

if sys.platform == "linux":

    def steady_ns() -> int:
        """Nanoseconds of a clock that nobody sets and that goes on while the machine is suspended."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

else:
    steady_ns = time.monotonic_ns


class BusClock:
    """`wall_ns` is read once."""

    __slots__ = ("_heard", "_offset_ns", "_owed_ns", "_paid_ns", "_steady_ns")

    def __init__(self, *, wall_ns: Callable[[], int] = time.time_ns, steady: Callable[[], int] = steady_ns) -> None:
        self._steady_ns: Final = steady
        self._offset_ns = wall_ns() - steady()
        self._owed_ns = 0
        """What is still to be made up for, as of `_paid_ns` by the steady clock."""
        self._paid_ns = 0
        self._heard = False

    def now_ms(self) -> int:
        """Unix milliseconds. Never less than before, unless the server's clock was set back."""
        now = self._steady_ns()
        if self._owed_ns:
            self._pay(now)
        return (now + self._offset_ns) // _MS

    def heard(self, server_ms: int, asked_ns: int, answered_ns: int) -> int:
        """The bus said that it is `server_ms`, in answer to a question of `asked_ns` by the steady clock. Returns by
        how many milliseconds the time was set at once: at the first answer, and when the server's clock was set."""
        took = answered_ns - asked_ns
        if took > ROUND_TRIP_MAX_NS:
            return 0
        self._pay(answered_ns)
        error = server_ms * _MS - (asked_ns + took // 2 + self._offset_ns)
        if self._heard and abs(error) <= STEP_NS:
            self._owed_ns = error if abs(error) > took // 2 + _MS else 0
            return 0
        self._heard = True
        self._owed_ns = 0
        self._offset_ns += error
        return round(error / _MS)

    def _pay(self, now: int) -> None:
        most = (now - self._paid_ns) // SLEW
        paid = max(-most, min(most, self._owed_ns))
        self._offset_ns += paid
        self._owed_ns -= paid
        self._paid_ns = now


CLOCK: Final = BusClock()
"""Of this process."""
now_ms: Final = CLOCK.now_ms
