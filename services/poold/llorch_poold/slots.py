"""The slots of one replica's engine and the tasks in them: each placed task gets one of its own (ARCHITECTURE,
invariant 6) and keeps it until the engine says that it is free.

Not here: when an engine starts, ends or is ready. Tasks of an engine that broke are lost and say nothing more.
"""

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from llorch_poold.adapters.port import EngineBroke, Generation, GenerationCall, TokenSink
from llorch_poold.core.slot_memory import Session, Use
from llorch_poold.core.task import Phase
from llorch_poold.engine_life import EngineLife
from llorch_poold.node_context import NodeContext, ReplicaFacts
from llorch_poold.prefill_line import Turn
from llorch_poold.slot_eraser import SlotEraser
from llorch_poold.task_run import TaskRun, session_of
from llorch_shared.bus.port import Delivery
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.run import Placement
from llorch_shared.wire.spec import TimeoutSpec
from llorch_shared.wire.task import ChatMessage, KvHint, Tool

log = logging.getLogger(__name__)

HAND_OVER_S: Final = 5.0
"""How long tasks may take to make way at the end of a drain; what is left then is lost with the engine."""
LOST_S: Final = 1.0
"""How long the tasks of a broken engine may take to see it."""


class Slots:
    """`timeouts` are those of the present specification. `dropped` is called when a task that was placed here turns out
    to be somebody else's."""

    def __init__(self, node: NodeContext, *, timeouts: Callable[[], TimeoutSpec], dropped: Callable[[], None]) -> None:
        self._node: Final = node
        self.timeouts: Final = timeouts
        self._dropped: Final = dropped
        self._life: EngineLife | None = None
        self._facts: ReplicaFacts | None = None
        self._open = False
        self.runs: Final[dict[int, TaskRun]] = {}
        self._work: Final[dict[asyncio.Task[None], TaskRun]] = {}
        self._ahead: Final[deque[Placement]] = deque()
        """Signalled, and without a slot yet: the scheduler knows of an end before its slot is free. Bounded by them."""
        self._freed: Final = asyncio.Event()
        self._eraser: Final = SlotEraser(
            node.metrics, running=lambda: self.runs, freed=self._slot_freed, replace=self._replace_engine
        )

    def open(self, life: EngineLife, facts: ReplicaFacts) -> None:
        self._life, self._facts, self._open = life, facts, True
        self._eraser.open(facts, life)
        self._slot_freed()

    def close(self) -> None:
        """Take no more; what runs goes on."""
        self._open = False
        self._ahead.clear()

    def free_slots(self) -> int:
        """None of an engine that is gone: whose claim would name it would have lost an attempt."""
        if not self._open or self._life is None or not self._life.alive:
            return 0
        return self._life.slots - len(self.runs.keys() | self._eraser.busy.keys())

    async def wait_free_slot(self) -> None:
        while self.free_slots() <= 0:
            self._freed.clear()
            await self._freed.wait()

    def holds(self, placement: Placement) -> bool:
        """Whether this very placement was begun."""
        return any(run.is_of(placement) for run in self.runs.values())

    def begin_ahead(self, placement: Placement) -> None:
        """What cannot be taken is stored for the replica a moment later. A node that slept may read that first: begun
        twice, both could take one claim for theirs."""
        if self.holds(placement) or placement in self._ahead:
            return
        if self.free_slots() > 0:
            self.begin(placement, None)
        elif self._open and self._life is not None and len(self._ahead) < self._life.slots:
            self._ahead.append(placement)

    def _slot_freed(self) -> None:
        while self._ahead and self.free_slots() > 0:
            self.begin(self._ahead.popleft(), None)
        self._freed.set()

    def begin(self, placement: Placement, delivery: Delivery | None) -> None:
        """Give a placed task a slot of its own, of which there is one. `delivery`: of one that is stored."""
        assert self._facts is not None
        assert self._life is not None
        slot = self._eraser.memory.pick(session_of(placement.run), self.runs.keys() | self._eraser.busy.keys())
        run = TaskRun(self._node, self, self._facts, slot=slot, placement=placement, delivery=delivery)
        self.runs[slot] = run
        task = asyncio.create_task(self._hold(run), name=f"task {run.task_id}")
        self._work[task] = run
        task.add_done_callback(self._work.pop)

    async def _hold(self, run: TaskRun) -> None:
        try:
            await run.run()
        except Exception:
            log.exception("task %s: the node failed to carry it", run.task_id)
            if self._life is not None:
                self._life.kill("a task could not be carried to its end")
        finally:
            if self.runs.get(run.slot) is run:
                del self.runs[run.slot]
                self._eraser.memory.left(run.slot, run.session, now_ms(), generated=run.generated)
                self._eraser.sweep()
            self._slot_freed()
            if run.left:
                self._dropped()
        await run.audit()

    # what tasks ask of their engine

    def submit(self, call: GenerationCall, sink: TokenSink) -> Generation:
        if self._life is None or not self._life.alive:
            asyncio.get_running_loop().call_soon(sink.on_failure, EngineBroke("the engine is gone"))
            return _NoGeneration()
        memory = self._eraser.memory
        if memory.is_due(call.slot):
            cold = msgspec.structs.replace(call.request, kv_hint=KvHint.COLD)
            call = dataclasses.replace(call, request=cold)
        memory.entered(call.slot, self.runs[call.slot].session, now_ms())
        return self._life.submit(call, sink)

    @property
    def engine_lives(self) -> bool:
        return self._life is not None and self._life.alive

    def join_line(self, prompt: str) -> Turn | None:
        return self._life.line.join(prompt) if self._life is not None else None

    async def prompt_tokens(self, prompt: str) -> int:
        if self._life is None:
            raise EngineBroke("the engine is gone")
        return await self._life.adapter.prompt_tokens(prompt)

    async def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        if self._life is None:
            raise EngineBroke("the engine is gone")
        return await self._life.adapter.render_chat(messages, tools)

    async def free_slot(self, slot: int, patience_ms: int = 0) -> None:
        if self._life is not None:
            timeout_ms = max(patience_ms, self._node.settings.slot_free_timeout_ms)
            await self._life.free_slot(slot, timeout_ms / 1000)

    # sessions

    def sessions(self) -> dict[Session, Use]:
        """Whose text the engine holds. A session whose task runs is in use now."""
        held = self._eraser.memory.sessions()
        for run in self.runs.values():
            if run.session in held:
                held[run.session] = held[run.session]._replace(used_ms=now_ms())
        return held

    def session_ended(self, session_id: str, tenant: str = "") -> None:
        """What the engine holds of it is erased: at once, or when the task that is in the slot has left. Empty tenant:
        whoever's it is."""
        self._eraser.memory.end(session_id, tenant)

    def sweep(self) -> None:
        """Erase what is due."""
        self._eraser.sweep()

    def _replace_engine(self, reason: str) -> None:
        """Its end takes with it what it holds. No task is in it."""
        self.close()
        if self._life is not None:
            self._life.kill(reason)

    # the end

    async def finished(self, timeout_s: float) -> bool:
        """Wait for the tasks that run, at most so long. Returns whether none is left."""
        if self._work:
            await asyncio.wait(set(self._work), timeout=timeout_s)
        return not self._work

    async def hand_over(self) -> None:
        """Ask the tasks that run to stop where another replica can go on, and wait until they have."""
        for run in list(self.runs.values()):
            run.hand_over()
        await self.finished(HAND_OVER_S)

    def lose(self, reason: str) -> None:
        """The engine is gone, and the tasks with it."""
        self.close()
        for run in list(self.runs.values()):
            run.lose(reason)
        self._life = self._facts = None
        self._eraser.close()

    async def cleared(self, *, for_good: bool) -> None:
        """Wait until the lost tasks have seen it. For good: what is left is handed to the node if its end is being
        stored or told, else ended."""
        if not self._work:
            return
        _, left = await asyncio.wait(set(self._work), timeout=LOST_S)
        for task in left if for_good else ():
            if self._work[task].phase in (Phase.STORING, Phase.ENDED):
                self._node.settling.add(task)
                task.add_done_callback(self._node.settling.discard)
            else:
                task.cancel()


class _NoGeneration:
    def abort(self) -> None:
        """There is no call to close."""
