"""What an engine must show before it is ready (ORCH-3504): a token of each workload of its pool, a cancel that frees
the slot, readable metrics."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from llorch_poold.adapters.port import (
    EngineAdapter,
    EngineBroke,
    EngineFailure,
    Finish,
    GenerationCall,
    RequestRejected,
)
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import ChatMessage, ChatRole, Determinism, Priority, TaskRequest, Workload

log = logging.getLogger(__name__)

_SAID: Final = "Hello"
_NIL: Final = "00000000-0000-0000-0000-000000000000"
FREE_POLL_S: Final = 0.02
FREE_POLL_MAX_S: Final = 0.04
"""How much later than the slot its receipt may be."""
CANCEL_TOKENS: Final = 32


class _Probe:
    """Sink of one test generation."""

    def __init__(self) -> None:
        self.begun: Final = asyncio.Event()
        self.done: Final = asyncio.Event()
        self.count = 0
        self.failure: EngineFailure | None = None

    def on_begin(self) -> None:
        self.begun.set()

    def on_prompt(self, tokens_in: int) -> None:
        self.begun.set()

    def on_tokens(self, texts: Sequence[str], more: Sequence[bytes] = ()) -> None:
        self.count += len(texts)

    def on_finish(self, finish: Finish) -> None:
        self.done.set()
        self.begun.set()

    def on_failure(self, failure: EngineFailure) -> None:
        self.failure = failure
        self.done.set()
        self.begun.set()


async def self_test(adapter: EngineAdapter, spec: PoolSpec, *, timeout_s: float, free_timeout_s: float) -> None:
    """Raises EngineFailure."""
    try:
        async with asyncio.timeout(timeout_s):
            for workload in spec.serves:
                await _one_token(adapter, spec, workload)
            if Workload.COMPLETION in spec.serves:
                await _cancel(adapter, spec, free_timeout_s)
            if not await adapter.counters():
                raise EngineBroke("the engine's metrics have no counter")
    except TimeoutError as error:
        raise EngineBroke(f"the self-test took longer than {timeout_s:g} s") from error


async def renders_chats(adapter: EngineAdapter) -> bool:
    """Whether the model's own chat template makes a prompt of a conversation. One that does not serves prompts all the
    same. Raises EngineBroke."""
    try:
        prompt = await adapter.render_chat([ChatMessage(role=ChatRole.USER, content=_SAID)])
    except RequestRejected as error:
        log.info("this engine takes no chats: %s", error)
        return False
    return _SAID in prompt


async def _one_token(adapter: EngineAdapter, spec: PoolSpec, workload: Workload) -> None:
    probe = _Probe()
    generation = adapter.submit(probe_call(spec, tokens=1, workload=workload), probe)
    try:
        await probe.done.wait()
    finally:
        generation.abort()
    if probe.failure is not None:
        raise EngineBroke(f"the self-test of the workload {workload} got nothing: {probe.failure}")
    if probe.count != 1:
        raise EngineBroke(f"the self-test of the workload {workload} asked for one token and got {probe.count}")


async def _cancel(adapter: EngineAdapter, spec: PoolSpec, free_timeout_s: float) -> None:
    probe = _Probe()
    generation = adapter.submit(probe_call(spec, tokens=CANCEL_TOKENS), probe)
    try:
        await probe.begun.wait()
    finally:
        generation.abort()
    if probe.failure is not None:
        raise EngineBroke(f"the self-test could not begin a generation: {probe.failure}")
    await wait_slot_free(adapter, 0, free_timeout_s)


async def wait_slot_free(adapter: EngineAdapter, slot: int, timeout_s: float) -> None:
    """Ask until the engine says that the slot is idle. Raises EngineBroke when it does not say so in time."""
    delay = FREE_POLL_S / 2
    answer = "still busy"
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    if await adapter.slot_free(slot):
                        return
                except EngineBroke as error:
                    answer = f"not told about ({error})"
                await asyncio.sleep(delay)
                delay = min(FREE_POLL_MAX_S, delay * 1.5)
    except TimeoutError as error:
        raise EngineBroke(f"slot {slot} is {answer} {timeout_s:g} s after its call was closed") from error


def probe_call(
    spec: PoolSpec, *, tokens: int, slot: int = 0, seed: int = 1, workload: Workload = Workload.COMPLETION
) -> GenerationCall:
    """A strict request that is nobody's task."""
    request = TaskRequest(
        task_id=_NIL,
        session_id=_NIL,
        workload=workload,
        model_ref=spec.model,
        engine=spec.engine,
        ctx=spec.ctx,
        priority=Priority.BATCH,
        max_tokens=tokens,
        deadline_ms=1,
        determinism=Determinism.STRICT,
        prompt=None if workload is Workload.EMBEDDING else _SAID,
        inputs=None if workload is Workload.COMPLETION else (_SAID,),
    )
    return GenerationCall(request=request, seed=seed, slot=slot, correlation_id="self-test")
