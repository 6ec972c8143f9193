"""Waits until a system has come to rest after its last fault, and names what has not.

Each question is asked again until its answer is empty or its time is up; an answer that is left is a violation of its
own (`unsettled`), whatever the tasks say.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import httpx
import msgspec

from chaos import allowed
from llorch_shared import states, streams, subjects
from llorch_shared.bus.port import BusError, Message
from llorch_shared.wire.registry import LEASE_DECODER, LOAD_DECODER, REPLICA_DECODER, PoolLoad
from llorch_shared.wire.run import PLACEMENT_DECODER, RUN_DECODER
from llorch_shared.wire.task import REQUEST_DECODER, Priority
from support.client import Refusal
from support.system import System

POLL_S: Final = 0.1
LOAD_OLD_S: Final = 3.0
RECORDED_S: Final = 1.0
"""Without another record, all that will be recorded is."""
CLUSTER_QUEUES_S: Final = 170.0
"""An ack that falls into an election may be kept without the removal of its message; nats-server looks for those every
2 to 2.5 minutes."""
SHOWN: Final = 5
PLACEMENTS: Final = subjects.ALL_PLACEMENTS.removesuffix("*.*")
Question = Callable[[], Awaitable[Any]]


class Settling:
    """Watches a system from the begin of a run; `wait` asks at its end."""

    def __init__(self, system: System) -> None:
        self._system: Final = system
        self._loads: Final[dict[str, tuple[float, PoolLoad]]] = {}
        self._recorded = (-1, 0.0)
        """The last audit record, and since when it is that."""

    async def start(self) -> None:
        def told(message: Any) -> None:
            self._loads[subjects.last_token(message.subject)] = (time.monotonic(), LOAD_DECODER.decode(message.data))

        await self._system.bus.subscribe(subjects.ALL_LOADS, told)

    async def wait(self) -> list[str]:
        """What did not come to rest."""
        questions: list[tuple[str, float, Question]] = [
            ("processes that do not run", 1, self._dead),
            ("messages in queues", CLUSTER_QUEUES_S if self._system.cluster else 40, self._queued),
            ("runs without an end", 40, self._unfinished),
            ("replicas not ready and idle", 30, self._busy),
            ("load reports of a pool at rest", 20, self._loaded),
            ("shards without a scheduler", 15, self._unled),
            ("audit records that still come", 15, self._recording),
        ]
        left = []
        for what, limit_s, question in questions:
            answer = await _until_empty(question, limit_s)
            if answer:
                left.append(f"{what}, {limit_s:g} s after the last: {answer}"[:1000])
        return left

    async def _dead(self) -> list[str]:
        processes = self._system.processes.values()
        return [f"{process.name}: {process.exit_code}" for process in processes if not process.running]

    async def _queued(self) -> dict[str, list[str]]:
        """By stream, the sequences and tasks of what is left."""
        names = [
            streams.admission_stream(pool.id, priority) for pool in self._system.pools for priority in Priority
        ] + [streams.PLC]
        left = {name: await self._system.bus.replay(name, ">") for name in names}
        shown = {
            name: [f"{each.seq}: {_task_of(each)}" for each in found if not await self._may_lie(each)][:SHOWN]
            for name, found in left.items()
        }
        return {name: found for name, found in shown.items() if found}

    async def _may_lie(self, message: Message) -> bool:
        if not message.subject.startswith(PLACEMENTS):
            return False
        last = await self._system.bus.last(streams.RUN, subjects.run(_task_of(message)))
        return allowed.may_lie_among_the_placements(None if last is None else RUN_DECODER.decode(last.data).state)

    async def _unfinished(self) -> list[str]:
        found = await self._system.bus.snapshot(streams.RUN, subjects.ALL_RUNS)
        runs = [RUN_DECODER.decode(message.data) for message in found]
        return [f"{run.task_id} {run.state}" for run in runs if run.state not in states.FINAL]

    async def _busy(self) -> list[str]:
        found = await self._system.bus.snapshot(streams.REG, subjects.registry("replica.>"))
        replicas = [REPLICA_DECODER.decode(message.data) for message in found if not message.deleted]
        wanted = sum(pool.replicas for pool in self._system.pools) * len(self._nodes)
        bad = [
            f"{replica.replica_id} {replica.state} holds {list(replica.active)}"
            for replica in replicas
            if replica.active or replica.state != "ready"
        ]
        return bad if len(replicas) == wanted else [*bad, f"{len(replicas)} replicas instead of {wanted}"]

    async def _loaded(self) -> dict[str, Any]:
        bad: dict[str, Any] = {}
        for pool in self._system.pools:
            at, load = self._loads.get(pool.id, (0.0, None))
            slots = pool.slots * pool.replicas * len(self._nodes)
            if load is None or time.monotonic() - at > LOAD_OLD_S:
                bad[pool.id] = f"nothing told for {LOAD_OLD_S:g} s"
            elif any(load.queued.values()) or load.running or (load.slots_free, load.slots_total) != (slots, slots):
                bad[pool.id] = msgspec.to_builtins(load)
        return bad

    async def _unled(self) -> list[str]:
        left = []
        for pool in self._system.pools:
            key = subjects.registry(subjects.lease_key(subjects.shard_of(pool.id)))
            message = await self._system.bus.last(streams.REG, key)
            if message is None or message.deleted or not LEASE_DECODER.decode(message.data).holder:
                left.append(pool.id)
        return left

    async def _recording(self) -> str:
        """Whoever records gathers for a moment, and looks first whether another gateway has said the same."""
        last = (await self._system.bus.stream_state(streams.AUD)).last_seq
        now = time.monotonic()
        if last != self._recorded[0]:
            self._recorded = (last, now)
        return "" if now - self._recorded[1] >= RECORDED_S else f"the last one is {last}"

    @property
    def _nodes(self) -> list[str]:
        return [name for name in self._system.processes if name.startswith("poold-")]


def _task_of(message: Message) -> str:
    if message.subject.startswith(PLACEMENTS):
        return PLACEMENT_DECODER.decode(message.data).run.task_id
    return REQUEST_DECODER.decode(message.data).task_id


async def _until_empty(question: Question, limit_s: float) -> Any:
    deadline = time.monotonic() + limit_s
    while True:
        try:
            answer = await question()
        except (BusError, httpx.HTTPError, Refusal) as error:
            answer = repr(error)
        if not answer or time.monotonic() > deadline:
            return answer
        await asyncio.sleep(POLL_S)
