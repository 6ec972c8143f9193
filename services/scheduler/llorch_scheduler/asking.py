"""Asks other processes on the bus whether they are there; `core/roll_call` decides what the answers mean.

A process whose connection is gone is known to be gone in a fraction of a second, where its registry key would take
seconds to expire. A mistake is harmless: a lease is taken by compare-and-set on the revision that was seen, and so is
every task on its run record.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Final

from llorch_scheduler.core.roll_call import RollCall
from llorch_shared.bus.port import Bus, BusError, NoResponder

log = logging.getLogger(__name__)

LOOK_S: Final = 0.05
EXPECT_MS: Final = 200
"""How often it is looked who is to be asked."""
ANSWER_S: Final = 1.0


class Asking:
    """`expected` names whom to ask, `subject_of` where; `gone` is told of each that is gone, again at every ask."""

    def __init__(
        self,
        bus: Bus,
        roll: RollCall,
        *,
        expected: Callable[[], Collection[str]],
        subject_of: Callable[[str], str],
        gone: Callable[[str], None],
    ) -> None:
        self._bus: Final = bus
        self._roll: Final = roll
        self._expected: Final = expected
        self._subject_of: Final = subject_of
        self._gone: Final = gone
        bus.on_disconnect(roll.disconnected)

    async def keep(self) -> None:
        """Ask until cancelled."""
        expected_ms = -EXPECT_MS
        async with asyncio.TaskGroup() as asks:
            while True:
                at_ms = _now_ms()
                if at_ms - expected_ms >= EXPECT_MS:
                    expected_ms = at_ms
                    self._roll.expect(self._expected(), at_ms)
                if self._bus.connected:
                    self._roll.connected(at_ms)
                    for name in self._roll.due(at_ms):
                        asks.create_task(self._ask(name), name=f"ask {name}")
                await asyncio.sleep(LOOK_S)

    async def _ask(self, name: str) -> None:
        asked_ms = _now_ms()
        try:
            await self._bus.request(self._subject_of(name), b"", timeout_s=ANSWER_S)
        except NoResponder:
            if self._roll.absent(name, _now_ms()):
                self._gone(name)
        except BusError as error:
            log.debug("%s does not answer: %s", name, error)
            self._roll.silent(name, asked_ms)
        else:
            self._roll.present(name)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
