"""Does the faults of a plan to a running system, and writes down when each began and when it was over.

The checker does not read what is written here; the report does.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx
import msgspec

from chaos.clock import JumpingClock
from chaos.plan import LEADER_OF, NATS, Fault, FaultKind
from llorch_shared import subjects
from llorch_shared.bus.port import BusError
from llorch_shared.wire.registry import LeaseRecord
from support.link import Link
from support.small_disk import fill
from support.system import System

STOP_S: Final = 15.0
THIEF: Final = "thief"
LEAD_WITHIN_S: Final = 60.0
STANDS_S: Final = 3.0
"""A scheduler that has just connected waits 2 s before it finds anybody gone."""
LEAD_POLL_S: Final = 0.2
STORES_WITHIN_S: Final = 60.0
CAUGHT_UP_WITHIN_S: Final = 180.0
"""A server that was cut off may ask for what it lacks several times ("will retry"), for a minute and more."""
THEFT_TTL_S: Final = 2.0
"""What a stranger wrote goes away as any lease that nobody renews."""


class Injected(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A fault that was made, in Unix seconds."""

    fault: Fault
    began: float
    over: float
    skipped: str = ""
    """Why it was not made; empty when it was."""


class Skipped(Exception):
    """This fault cannot be made here and now; the message says why."""


class Nemesis:
    """`ballast` is a file beside the bus's store that may fill its small disk, None when there is no such disk."""

    def __init__(
        self, system: System, links: Mapping[str, Link], clocks: Mapping[str, JumpingClock], ballast: Path | None
    ) -> None:
        self._system: Final = system
        self._links: Final = links
        self._clocks: Final = clocks
        self._ballast: Final = ballast
        self.injected: Final[list[Injected]] = []
        self.problems: Final[list[str]] = []
        """What a victim did that no fault explains."""
        self._victims: Final[dict[str, asyncio.Lock]] = {}
        """A victim that takes long to stop or start again has its next fault when it has; so has a cluster."""
        self._deeds: Final[dict[FaultKind, Callable[[Fault], Awaitable[None]]]] = {
            FaultKind.KILL: self._kill,
            FaultKind.TERM: self._term,
            FaultKind.PAUSE: self._pause,
            FaultKind.NATS_KILL: self._kill,
            FaultKind.NATS_PAUSE: self._pause,
            FaultKind.ENGINE_KILL: self._kill_engine,
            FaultKind.ENGINE_PAUSE: self._pause_engine,
            FaultKind.CUT: self._cut,
            FaultKind.STALL: self._stall,
            FaultKind.DELAY: self._slow,
            FaultKind.CLOCK: self._set_clock,
            FaultKind.LEASE_THEFT: self._steal_lease,
            FaultKind.DISK_FULL: self._fill_disk,
        }
        assert set(self._deeds) == set(FaultKind)

    async def follow_plan(self, plan: Sequence[Fault]) -> None:
        """Each fault at its time or soon after, counted from now; returns when the last is over."""
        began = time.time()
        async with asyncio.TaskGroup() as group:
            for fault in plan:
                group.create_task(self._do(fault, began + fault.at_s))

    async def _do(self, fault: Fault, at: float) -> None:
        await asyncio.sleep(at - time.time())
        victim = LEADER_OF if fault.target.startswith(LEADER_OF) else fault.target
        async with self._victims.setdefault(victim, asyncio.Lock()):
            if fault.when_all_lead:
                await self._all_lead()
            began, skipped = time.time(), ""
            try:
                await self._deeds[fault.kind](fault)
            except Skipped as why:
                skipped = str(why)
            self.injected.append(Injected(fault=fault, began=began, over=time.time(), skipped=skipped))

    async def _all_lead(self) -> None:
        """At most `LEAD_WITHIN_S`: a scheduler that does not come back is found by the checker."""
        schedulers = [name for name in self._system.processes if name.startswith("scheduler-")]
        deadline, since = time.monotonic() + LEAD_WITHIN_S, time.monotonic()
        while time.monotonic() < deadline and time.monotonic() - since < STANDS_S:
            try:
                leading = [await self._system.metric(name, "scheduler_active") for name in schedulers]
            except httpx.HTTPError:
                leading = [0.0]
            if not all(leading):
                since = time.monotonic()
            await asyncio.sleep(LEAD_POLL_S)

    async def _kill(self, fault: Fault) -> None:
        target = await self._resolved(fault.target)
        self._must_run(target)
        await asyncio.to_thread(self._system.kill9, target)
        await asyncio.sleep(fault.lasts_s)
        await self._system.restart(target, wait_ready=False)
        await self._caught_up()

    async def _term(self, fault: Fault) -> None:
        self._must_run(fault.target)
        process = self._system.processes[fault.target]
        started = process.handles(signal.SIGTERM)
        code = await asyncio.to_thread(process.stop, STOP_S)
        if code != 0 and (started or code != -signal.SIGTERM):
            self.problems.append(f"{fault.target} ended with {code} when it was asked to stop")
        await asyncio.sleep(fault.lasts_s)
        await self._system.restart(fault.target, wait_ready=False)

    async def _pause(self, fault: Fault) -> None:
        self._must_run(fault.target)
        await self._stop_and_go(self._system.pid_of(fault.target), fault.lasts_s)

    async def _kill_engine(self, fault: Fault) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._engine(fault), signal.SIGKILL)

    async def _pause_engine(self, fault: Fault) -> None:
        with contextlib.suppress(ProcessLookupError):
            await self._stop_and_go(self._engine(fault), fault.lasts_s)

    async def _cut(self, fault: Fault) -> None:
        target = await self._resolved(fault.target)
        cluster = self._system.cluster
        links = [self._links[target]] if target in self._links or cluster is None else cluster.links_of(target)
        for link in links:
            link.cut()
        await asyncio.sleep(fault.lasts_s)
        for link in links:
            link.mend()
        await self._caught_up()

    async def _stall(self, fault: Fault) -> None:
        link = self._links[fault.target]
        link.stall()
        await asyncio.sleep(fault.lasts_s)
        link.mend()

    async def _slow(self, fault: Fault) -> None:
        link = self._links[fault.target]
        link.slow(fault.strength)
        await asyncio.sleep(fault.lasts_s)
        link.mend()

    async def _set_clock(self, fault: Fault) -> None:
        clock = self._clocks[fault.target]
        clock.set(fault.strength)
        await asyncio.sleep(fault.lasts_s)
        clock.set(0.0)

    async def _steal_lease(self, fault: Fault) -> None:
        key = subjects.registry(subjects.lease_key(int(fault.target)))
        record = LeaseRecord(holder=THIEF, epoch=0, renewed_ms=int(time.time() * 1000))
        try:
            await self._system.bus.store(key, msgspec.json.encode(record), ttl_s=THEFT_TTL_S, timeout_s=1)
        except BusError as error:
            raise Skipped(f"the bus did not take it: {error!r}") from error

    async def _fill_disk(self, fault: Fault) -> None:
        if self._ballast is None:
            raise Skipped("no small disk can be mounted here")
        await asyncio.to_thread(fill, self._ballast)
        await asyncio.sleep(fault.lasts_s)
        self._ballast.unlink()
        await self._stores_again()

    async def _stores_again(self) -> None:
        """At most `STORES_WITHIN_S`: another fault of the server would hide that nobody brings it back."""
        key, deadline = subjects.registry("chaos"), time.monotonic() + STORES_WITHIN_S
        while time.monotonic() < deadline:
            with contextlib.suppress(BusError):
                await self._system.bus.store(key, b"", ttl_s=THEFT_TTL_S, timeout_s=1)
                return
        self.problems.append(f"the bus stores nothing {STORES_WITHIN_S:.0f} s after there is room again")

    async def _stop_and_go(self, pid: int, lasts_s: float) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(lasts_s)
        finally:
            os.kill(pid, signal.SIGCONT)

    def _engine(self, fault: Fault) -> int:
        engines = self._system.engines_of(fault.target)
        if not engines:
            raise Skipped(f"{fault.target} has no engine just now")
        return engines[int(fault.strength * len(engines))]

    async def _resolved(self, target: str) -> str:
        """Who leads a stream is known when the fault is due."""
        if not target.startswith(LEADER_OF):
            return target
        try:
            return await self._system.leader_of(target.removeprefix(LEADER_OF))
        except BusError as error:
            raise Skipped(f"nobody tells who leads: {error!r}") from error

    async def _caught_up(self) -> None:
        """At most `CAUGHT_UP_WITHIN_S`: of three servers one may be away, not two."""
        deadline = time.monotonic() + CAUGHT_UP_WITHIN_S
        while self._system.cluster is not None and not await self._system.copies_are_current():
            if time.monotonic() > deadline:
                self.problems.append(f"copies of streams are behind {CAUGHT_UP_WITHIN_S:.0f} s after a server's return")
                return
            await asyncio.sleep(LEAD_POLL_S)

    def _must_run(self, name: str) -> None:
        if name.startswith(NATS):
            return
        process = self._system.processes[name]
        if not process.running:
            self.problems.append(f"{name} had ended by itself with {process.exit_code}")
            process.start()
