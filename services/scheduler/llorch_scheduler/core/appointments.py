"""When refused clients are to come back: each is promised a place of the queue for a moment, and finds it kept.

Promises follow each other at a part of the rate at which places are given back (a virtual schedule, as in GCRA):

    next ← max(next, now + max(0, reserve + due + 1 - free) / rate) + 1 / (promised_share · trust · rate)

`trust` falls from 1 to 1 - DOUBT as one looks further ahead than one has looked back: who leaves the queue, and how
fast, changes in the first minutes of a crowd.

A client that comes at its time, or up to `grace` later, gets a free place; one that comes early is told the rest,
unless there is a place for everybody who was promised one. Who has no promise gets a place only beyond those that are
kept: one for each promise that is due, and `reserve` against chance, because what is given back is a random process.
With promised_share = 0.9 the deficit of such a process exceeds m places about once in exp(0.2 · m) tries, so half of
the capacity, at most RESERVE_MAX, is kept, and where that is little, less is promised: 1 - 1.5 / reserve of the rate.
Never more than half of the capacity is kept: clients that stay away leave no slot idle.

Memory is bounded by PROMISES_MAX; promises that nobody claimed are forgotten after their grace.
"""

from collections import OrderedDict
from heapq import heappop, heappush
from typing import Final

from llorch_scheduler.core.drain import Drain
from llorch_shared.waiting import RETRY_MIN_MS
from llorch_shared.wire.policy import WaitingSpec
from llorch_shared.wire.registry import Appointment

PROMISES_MAX: Final = 65_536
RESERVE_MAX: Final = 32
SHARE_MIN: Final = 0.2
DOUBT: Final = 0.3
EARLY_MS: Final = 250
"""Clocks and networks differ: who comes so much before its time is in time."""
GRANTED_MS: Final = 2_000
"""Who was let in arrives at the scheduler within this time, or not at all."""


class Appointments:
    """Of one class of one pool. `ask` is O(log promises)."""

    __slots__ = ("_due", "_ends", "_expected", "_granted", "_late_ms", "_next_ms", "_times")

    def __init__(self) -> None:
        self._times: Final[dict[str, int]] = {}
        """When each client is expected."""
        self._expected: Final[list[tuple[int, str]]] = []
        """Heap of those whose time has not come."""
        self._due: Final[dict[str, int]] = {}
        """Clients whose time has come, with the end of their grace."""
        self._ends: Final[list[tuple[int, str]]] = []
        """Heap of these ends; an entry that differs from `_due` is stale."""
        self._granted: Final[OrderedDict[str, int]] = OrderedDict()
        """Let in and not seen to arrive yet."""
        self._next_ms = 0.0
        """No earlier time is promised to anybody."""
        self._late_ms = 0.0
        """No earlier time is told to those who came as told and found no place."""

    @property
    def outstanding(self) -> int:
        """Promises that hold for now or later."""
        return len(self._times)

    def ask(self, client: str, at_ms: int, *, capacity: int, free: int, drain: Drain, spec: WaitingSpec) -> Appointment:
        """May this task be admitted now? `free`: places of the queue that are not taken as far as is known, of
        `capacity`. `drain`: how they are given back."""
        self._pass(at_ms, spec)
        free -= len(self._granted)
        time_ms = self._times.get(client)
        if time_ms is not None:
            if at_ms < time_ms - EARLY_MS and free < len(self._times):
                return Appointment(admit=False, retry_after_ms=time_ms - at_ms, promised=True)
            if free > 0:
                return self._grant(client, at_ms)
            return self._later(client, at_ms, drain.per_ms, spec)
        if free > self._kept(capacity):
            return self._grant(client, at_ms)
        reserve = _reserve(capacity)
        lacking = max(0, reserve + len(self._due) + 1 - free)
        share = min(spec.promised_share, max(SHARE_MIN, 1 - 1.5 / max(1, reserve)))
        return self._promise(client, at_ms, lacking, drain, spec, share=share)

    def arrived(self, client: str) -> None:
        """Its task is in the queue."""
        if self._granted:
            self._granted.pop(client, None)
        if self._times:
            self._forget(client)

    def step(self, at_ms: int, spec: WaitingSpec) -> None:
        """Time passes: what is due, and what is forgotten. Amortised O(log promises) each."""
        self._pass(at_ms, spec)

    def _kept(self, capacity: int) -> int:
        return min(len(self._due) + _reserve(capacity), capacity // 2) if self._times else 0

    def _grant(self, client: str, at_ms: int) -> Appointment:
        """The promise stands until the task arrives: the server may still refuse it."""
        self._granted[client] = at_ms + GRANTED_MS
        self._granted.move_to_end(client)
        return Appointment(admit=True)

    def _promise(
        self, client: str, at_ms: int, lacking: int, drain: Drain, spec: WaitingSpec, *, share: float
    ) -> Appointment:
        """`lacking`: places that must be given back before one is nobody's. `share`: of the rate that is promised."""
        if drain.per_ms <= 0:
            return Appointment(admit=False, retry_after_ms=drain.begins_ms)
        first_ms = at_ms + drain.begins_ms + lacking / drain.per_ms
        time_ms = round(max(self._next_ms, first_ms, at_ms + RETRY_MIN_MS))
        ahead_ms = time_ms - at_ms
        if ahead_ms > spec.retry_max_ms or len(self._times) >= PROMISES_MAX:
            return Appointment(admit=False, retry_after_ms=min(spec.retry_max_ms, ahead_ms))
        trust = 1 - DOUBT * ahead_ms / (ahead_ms + drain.watched_ms)
        self._next_ms = time_ms + 1 / (drain.per_ms * share * trust)
        self._times[client] = time_ms
        heappush(self._expected, (time_ms, client))
        return Appointment(admit=False, retry_after_ms=ahead_ms, promised=True)

    def _later(self, client: str, at_ms: int, rate_per_ms: float, spec: WaitingSpec) -> Appointment:
        """It came as told and there is no place: less was given back than expected. The next one is its own, and those
        that were not promised anything yet come later."""
        step_ms = 1 / rate_per_ms if rate_per_ms > 0 else RETRY_MIN_MS
        self._late_ms = min(max(self._late_ms, at_ms) + step_ms, at_ms + spec.retry_max_ms)
        self._next_ms = max(self._next_ms, self._late_ms)
        wait_ms = max(RETRY_MIN_MS, round(self._late_ms - at_ms))
        self._is_due(client, at_ms + wait_ms + spec.grace_ms)
        return Appointment(admit=False, retry_after_ms=wait_ms, promised=True)

    def _is_due(self, client: str, until_ms: int) -> None:
        self._due[client] = until_ms
        heappush(self._ends, (until_ms, client))

    def _pass(self, at_ms: int, spec: WaitingSpec) -> None:
        while self._granted and next(iter(self._granted.values())) <= at_ms:
            self._granted.popitem(last=False)
        while self._expected and self._expected[0][0] <= at_ms + EARLY_MS:
            time_ms, client = heappop(self._expected)
            if self._times.get(client) == time_ms:
                self._is_due(client, time_ms + spec.grace_ms)
        while self._ends and self._ends[0][0] <= at_ms:
            until_ms, client = heappop(self._ends)
            if self._due.get(client) == until_ms:
                self._forget(client)

    def _forget(self, client: str) -> None:
        self._times.pop(client, None)
        self._due.pop(client, None)


def _reserve(capacity: int) -> int:
    return min(RESERVE_MAX, capacity // 2)
