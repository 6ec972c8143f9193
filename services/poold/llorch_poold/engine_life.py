"""One life of one engine process: from its command line to its end. Made anew for every start.

Readiness has three gates: model and engine are present (the caller brings them), and the process answers as ours: its
pid is alive, listens on the port itself, and /props names our model. A port that is taken answers 200 in another
engine's name.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from llorch_poold.adapters.launch import HOST, Launch
from llorch_poold.adapters.llamacpp import LlamaCpp
from llorch_poold.adapters.port import EngineBroke, EngineFailure, Generation, GenerationCall, TokenSink
from llorch_poold.engine_http import EngineHttp
from llorch_poold.interruption import NotShown, show_interruption
from llorch_poold.node_context import CHAT_TEMPLATE, INTERRUPTIBLE_DECODE, TOOLS
from llorch_poold.prefill_line import PrefillLine
from llorch_poold.process import EngineChild, EngineProcesses, listens
from llorch_poold.self_test import renders_chats, self_test, wait_slot_free
from llorch_shared.lifecycle import first_of
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Workload

log = logging.getLogger(__name__)

READY_POLL_S: Final = 0.05
HEALTH_EVERY_S: Final = 2.0
HEALTH_MISSES_MAX: Final = 5
NO_GPU_WORDS: Final = "no usable GPU found"
"""llama-server's warning when it ignores -ngl."""


class EngineLife:
    """`broke` holds the reason once it is known why this life must end."""

    def __init__(self, child: EngineChild, launch: Launch, processes: EngineProcesses) -> None:
        self._child: Final = child
        self._launch: Final = launch
        self._processes: Final = processes
        self.adapter: Final = LlamaCpp(EngineHttp(HOST, launch.port))
        self.line: Final = PrefillLine(launch.batch)
        self.slots = 0
        self.broke = ""

    @classmethod
    async def start(cls, processes: EngineProcesses, replica_id: str, launch: Launch) -> "EngineLife":
        """Raises EngineBroke."""
        try:
            child = await processes.spawn(replica_id, launch)
        except OSError as error:
            raise EngineBroke(f"cannot start {launch.argv[0]}: {error}") from error
        return cls(child, launch, processes)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        """False as soon as its end is decided."""
        return self._child.alive and not self.broke

    async def until_ready(self, spec: PoolSpec, timeout_s: float, progress: Callable[[str], None]) -> None:
        """The health gate. Raises EngineBroke."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if not self._child.alive:
                        await self._child.wait()
                        raise EngineBroke(self._child.explain_exit())
                    health = await self.adapter.health()
                    if health.ready and await asyncio.to_thread(listens, self._child.pid, self._launch.port):
                        break
                    progress("the engine is loading the model")
                    await asyncio.sleep(READY_POLL_S)
                props = await self.adapter.props()
        except TimeoutError as error:
            raise EngineBroke(f"the engine was not ready in {timeout_s:g} s: {self._child.log_tail()}") from error
        if props.model_path != self._launch.model_path:
            raise EngineBroke(
                f"another engine answers on port {self._launch.port}: it serves {props.model_path!r}, "
                f"not {self._launch.model_path!r}"
            )
        if not self._child.alive:
            raise EngineBroke(self._child.explain_exit())
        if self._launch.gpu and NO_GPU_WORDS in await asyncio.to_thread(self._child.log_head):
            raise EngineBroke("the engine sees no GPU and would run on the CPU, which is never a fallback (ORCH-1102)")
        self.slots = min(spec.slots, props.slots_total)
        if self.slots < 1:
            raise EngineBroke("the engine offers no slot")

    async def test(self, spec: PoolSpec, *, timeout_s: float, free_timeout_s: float) -> None:
        """Raises EngineFailure."""
        try:
            await self_test(self.adapter, spec, timeout_s=timeout_s, free_timeout_s=free_timeout_s)
        except EngineFailure:
            if not self._child.alive:
                await self._child.wait()
                raise EngineBroke(self._child.explain_exit()) from None
            raise

    async def _interruptible(self, spec: PoolSpec, *, timeout_s: float, free_timeout_s: float) -> bool:
        """Whether this engine has shown `interruptible_decode`. One that has not serves all the same, once it has let
        go of what it was asked for. Raises EngineFailure."""
        try:
            await show_interruption(self.adapter, spec, self.slots, free_timeout_s)
        except NotShown as problem:
            log.warning("this engine cannot be interrupted and resumed, its tasks are not preempted: %s", problem)
            for slot in {0, self.slots - 1}:
                await first_of(wait_slot_free(self.adapter, slot, timeout_s), self._child.wait())
            if not self._child.alive:
                raise EngineBroke(self._child.explain_exit()) from problem
            return False
        return True

    async def features(self, spec: PoolSpec, *, timeout_s: float, free_timeout_s: float) -> tuple[str, ...]:
        """What this engine has shown that not every one can. Raises EngineFailure."""
        if Workload.COMPLETION not in spec.serves:
            return ()
        chats = await renders_chats(self.adapter)
        shown = {
            INTERRUPTIBLE_DECODE: await self._interruptible(spec, timeout_s=timeout_s, free_timeout_s=free_timeout_s),
            CHAT_TEMPLATE: chats,
            TOOLS: chats and (await self.adapter.props()).tools,
        }
        return tuple(name for name, can in shown.items() if can)

    def submit(self, call: GenerationCall, sink: TokenSink) -> Generation:
        return self.adapter.submit(call, sink)

    async def free_slot(self, slot: int, timeout_s: float) -> None:
        """Returns when the slot is free: because the engine says so, or because the engine is no more."""
        try:
            await first_of(wait_slot_free(self.adapter, slot, timeout_s), self._child.wait())
        except EngineBroke as error:
            self.kill(str(error))
            await self._child.wait()

    def kill(self, reason: str) -> None:
        self.broke = self.broke or reason
        self._child.kill()

    async def broken_before(self, *waits: Awaitable[Any]) -> str:
        """Until the first of `waits` is done, whose exception is raised, or this life is over: returns why; else empty.
        Its process and its health are watched meanwhile."""
        reason: list[str] = []

        async def watch() -> None:
            reason.append(await self._until_broken())

        await first_of(watch(), *waits)
        return reason[0] if reason else ""

    async def _until_broken(self) -> str:
        watch = asyncio.create_task(self._watch_health(), name="engine health")
        try:
            await self._child.wait()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        return self.broke or self._child.explain_exit()

    async def _watch_health(self) -> None:
        misses = 0
        while True:
            await asyncio.sleep(HEALTH_EVERY_S)
            self._child.bound_log()
            health = await self.adapter.health()
            misses = 0 if health.live else misses + 1
            if misses >= HEALTH_MISSES_MAX:
                self.kill(f"the engine does not answer: {health.detail}")

    async def end(self) -> None:
        """Stop the process for sure and forget it. Safe to call twice."""
        await self.adapter.close()
        await self._child.stop()
        self._processes.collected(self._child)
