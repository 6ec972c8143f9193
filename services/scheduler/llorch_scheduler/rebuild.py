"""What a new term reads before it decides: unfinished runs from the floor on, and the wishes to cancel.

The floor (`floor.run.<shard>`) is written by the scheduler that holds the shard; no unfinished run of its pools lies
below it, so finished ones of the last 72 hours are not read. Runs of other shards' pools are not ours. Nor are those
that a newer release wrote: its scheduler decides about them when it has the shard, so the floor stays below them.
"""

import logging
from typing import Final, NamedTuple

import msgspec

from llorch_scheduler.core.events import RunChanged, TaskCancelled
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError, WrongSequence
from llorch_shared.live_table import LiveTable
from llorch_shared.readable import UNREADABLE
from llorch_shared.wire.registry import FLOOR_DECODER, RunFloor
from llorch_shared.wire.run import CANCEL_DECODER, decode_run
from llorch_shared.wire.version import Kind, NewerVersion, Unreadable, version_headers

log = logging.getLogger(__name__)

PAGE: Final = 10_000
CANCELS_BEFORE_FLOOR: Final = 5_000
"""Wishes are looked for this many sequences below the floor: one for a queued task has no run record that holds the
floor. A wish that is older still is found by the node after its claim."""


class Runs(NamedTuple):
    events: list[RunChanged]
    """The newest record of every run of the shard, in order of their sequences."""
    last_seq: int
    """The last that was read."""
    newer: int
    """Records that a newer release wrote; they were passed over."""
    newer_seq: int | None
    """The lowest sequence among these."""


async def read_runs(bus: Bus, shard: int, floor: int, at_ms: int) -> Runs:
    """From the floor on. Raises BusError."""
    events: list[RunChanged] = []
    newer: list[int] = []
    seq = max(0, floor - 1)
    while True:
        messages = await bus.replay(streams.RUN, subjects.ALL_RUNS, from_seq=seq + 1, limit=PAGE)
        for message in messages:
            seq = message.seq
            try:
                record = decode_run(message.data, message.headers)
            except NewerVersion:
                newer.append(seq)
                continue
            except Unreadable:
                log.exception("the run record at %s #%d cannot be read", message.subject, message.seq)
                continue
            if subjects.shard_of(record.pool_id) == shard:
                events.append(RunChanged(at_ms=at_ms, record=record, seq=seq))
        if len(messages) < PAGE:
            return Runs(events, seq, len(newer), min(newer, default=None))


async def read_cancels(bus: Bus, floor: int, at_ms: int) -> list[TaskCancelled]:
    """Stored wishes to cancel, oldest first, of all shards: a wish names no pool. Raises BusError."""
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
    except UNREADABLE:
        reason = "client"
    return TaskCancelled(at_ms=at_ms, task_id=subjects.last_token(subject).lower(), reason=reason)


def read_floor(registry: LiveTable, shard: int) -> int:
    """1, the beginning, when nobody wrote a floor yet or it cannot be read."""
    key = subjects.floor_key(shard)
    data = registry.values.get(key)
    if data is None:
        return 1
    try:
        return max(1, FLOOR_DECODER.decode(data).seq)
    except msgspec.DecodeError:
        log.exception("%s cannot be read; all runs are read instead", key)
        return 1


class Floor:
    """Keeps `floor.run.<shard>` up to date. Only ever raised within a term."""

    def __init__(self, bus: Bus, registry: LiveTable, shard: int) -> None:
        self._bus: Final = bus
        self._registry: Final = registry
        self._key: Final = subjects.floor_key(shard)
        self._written = 0

    async def write(self, seq: int) -> None:
        """Failing is harmless: a lower floor costs reading time at the next takeover."""
        if seq <= self._written:
            return
        try:
            await self._bus.store(
                subjects.registry(self._key),
                msgspec.json.encode(RunFloor(seq=seq)),
                headers=version_headers(Kind.REGISTRY),
                expect_seq=self._registry.seq(self._key),
            )
            self._written = seq
        except WrongSequence:
            log.debug("the floor moved elsewhere; written again at the next turn")
        except BusError as error:
            log.warning("the run floor could not be written: %s", error)
