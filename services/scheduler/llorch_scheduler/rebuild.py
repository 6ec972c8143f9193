"""What a new term reads before it decides: unfinished runs from the floor on, and the wishes to cancel.

The floor (`floor.run`) is written by the active scheduler; no unfinished run lies below it, so finished ones of the
last 72 hours are not read.
"""

import logging
from typing import Final

import msgspec

from llorch_scheduler.core.events import RunChanged, TaskCancelled
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, WrongSequence
from llorch_shared.live_table import LiveTable
from llorch_shared.wire.registry import FLOOR_DECODER, RunFloor
from llorch_shared.wire.run import CANCEL_DECODER, RUN_DECODER

log = logging.getLogger(__name__)

PAGE: Final = 10_000
CANCELS_BEFORE_FLOOR: Final = 5_000
"""Wishes are looked for this many sequences below the floor: one for a queued task has no run record that holds the
floor. A wish that is older still is found by the node after its claim."""


async def read_runs(bus: Bus, floor: int, at_ms: int) -> tuple[list[RunChanged], int]:
    """The newest record of every run from the floor on, in order of their sequences, and the last sequence read."""
    events: list[RunChanged] = []
    seq = max(0, floor - 1)
    while True:
        messages = await bus.replay(streams.RUN, subjects.ALL_RUNS, from_seq=seq + 1, limit=PAGE)
        for message in messages:
            seq = message.seq
            try:
                events.append(RunChanged(at_ms=at_ms, record=RUN_DECODER.decode(message.data), seq=message.seq))
            except msgspec.DecodeError:
                log.exception("the run record at %s #%d cannot be read", message.subject, message.seq)
        if len(messages) < PAGE:
            return events, seq


async def read_cancels(bus: Bus, floor: int, at_ms: int) -> list[TaskCancelled]:
    """Stored wishes to cancel, oldest first."""
    wishes: list[TaskCancelled] = []
    seq = max(0, floor - CANCELS_BEFORE_FLOOR)
    while True:
        messages = await bus.replay(streams.RUN, subjects.ALL_CANCELS, from_seq=seq + 1, limit=PAGE)
        for message in messages:
            seq = message.seq
            wishes.append(cancelled(message.subject, message.data, at_ms))
        if len(messages) < PAGE:
            return wishes


def cancelled(subject: str, data: bytes, at_ms: int) -> TaskCancelled:
    """The task is named by the subject; the payload adds the reason and may be missing or unreadable."""
    try:
        reason = CANCEL_DECODER.decode(data).reason
    except msgspec.DecodeError:
        reason = "client"
    return TaskCancelled(at_ms=at_ms, task_id=subjects.last_token(subject).lower(), reason=reason)


def read_floor(registry: LiveTable) -> int:
    """1, the beginning, when nobody wrote a floor yet or it cannot be read."""
    data = registry.values.get(subjects.RUN_FLOOR_KEY)
    if data is None:
        return 1
    try:
        return max(1, FLOOR_DECODER.decode(data).seq)
    except msgspec.DecodeError:
        log.exception("%s cannot be read; all runs are read instead", subjects.RUN_FLOOR_KEY)
        return 1


class Floor:
    """Keeps `floor.run` up to date. Only ever raised within a term."""

    def __init__(self, bus: Bus, registry: LiveTable) -> None:
        self._bus: Final = bus
        self._registry: Final = registry
        self._written = 0

    async def write(self, seq: int) -> None:
        """Failing is harmless: a lower floor costs reading time at the next takeover."""
        if seq <= self._written:
            return
        key = subjects.RUN_FLOOR_KEY
        try:
            await self._bus.store(
                subjects.registry(key),
                msgspec.json.encode(RunFloor(seq=seq)),
                expect_seq=self._registry.seq(key),
            )
            self._written = seq
        except WrongSequence:
            log.debug("the floor moved elsewhere; written again at the next turn")
        except BusError as error:
            log.warning("the run floor could not be written: %s", error)
