"""Does an engine stop in the middle of a generation, and say the same when it is asked again? (ORCH-3086)

Shown at the start of every engine: a strict generation is stopped after a few tokens, its slot becomes free in time,
and the same request repeats these tokens byte for byte. With more than one slot the repetition runs in another slot
and in company, as a resumed task would. A few tokens are no promise for all of them: what a resumed task says is
compared with what was sent before, always (`core/prefix.py`).
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

from llorch_poold.adapters.port import EngineAdapter, EngineFailure, Finish, Generation, GenerationCall
from llorch_poold.self_test import probe_call, wait_slot_free
from llorch_shared.wire.spec import PoolSpec

STOP_AFTER_TOKENS: Final = 3
TOKENS_MAX: Final = 512
"""So many that no engine is done before it is stopped, and so few that one that does not stop is soon free again."""
PROOF_TIMEOUT_S: Final = 10.0
"""An engine that needs longer for a handful of tokens is too slow to be worth stopping."""


class NotShown(Exception):
    """The engine is not interruptible; the message says what it did instead."""


class _Listener:
    """Takes tokens until it has `wanted` of them, and closes the call in the same breath: a fast engine has sent its
    last token soon after."""

    def __init__(self, wanted: int) -> None:
        self._wanted: Final = wanted
        self.texts: list[str] = []
        self.reached: Final = asyncio.Event()
        self.ended = ""
        self.generation: Generation | None = None

    def on_begin(self) -> None:
        """Nothing to do before the first token."""

    def on_prompt(self, tokens_in: int) -> None:
        """The length of the prompt does not matter here."""

    def on_tokens(self, texts: Sequence[str], more: Sequence[bytes] = ()) -> None:
        self.texts += texts
        if len(self.texts) >= self._wanted:
            self.stop()

    def on_finish(self, finish: Finish) -> None:
        self.ended = f"it ended by itself after {finish.tokens_out} tokens"
        self.reached.set()

    def on_failure(self, failure: EngineFailure) -> None:
        self.ended = str(failure)
        self.reached.set()

    def stop(self) -> None:
        if self.generation is not None:
            self.generation.abort()
        self.reached.set()


async def show_interruption(adapter: EngineAdapter, spec: PoolSpec, slots: int, free_timeout_s: float) -> None:
    """Raises NotShown."""
    try:
        async with asyncio.timeout(PROOF_TIMEOUT_S + 3 * free_timeout_s):
            first = await _interrupted(adapter, spec, 0, STOP_AFTER_TOKENS, free_timeout_s)
            if len(first) == _tokens_of(spec):
                raise NotShown("it was done before it could be stopped")
            async with AsyncExitStack() as company:
                if slots > 1:
                    await company.enter_async_context(_Company(adapter, spec, free_timeout_s))
                again = await _interrupted(adapter, spec, slots - 1, len(first), free_timeout_s)
    except TimeoutError:
        raise NotShown(f"a handful of tokens took longer than {PROOF_TIMEOUT_S:g} s") from None
    except EngineFailure as failure:
        raise NotShown(str(failure)) from failure
    if again[: len(first)] != first:
        raise NotShown("the same seed gave other tokens the second time")


async def _interrupted(
    adapter: EngineAdapter, spec: PoolSpec, slot: int, wanted: int, free_timeout_s: float
) -> list[str]:
    """At least `wanted` tokens of a generation that was stopped then. Raises NotShown, EngineBroke."""
    listener = _Listener(wanted)
    listener.generation = adapter.submit(_call(spec, slot), listener)
    try:
        await listener.reached.wait()
    finally:
        listener.stop()
    if listener.ended:
        raise NotShown(listener.ended)
    await wait_slot_free(adapter, slot, free_timeout_s)
    return listener.texts


class _Company:
    """Another generation in slot 0 while the context lasts."""

    def __init__(self, adapter: EngineAdapter, spec: PoolSpec, free_timeout_s: float) -> None:
        self._adapter: Final = adapter
        self._spec: Final = spec
        self._free_timeout_s: Final = free_timeout_s

    async def __aenter__(self) -> None:
        begun = _Listener(1)
        self._generation = self._adapter.submit(_call(self._spec, 0, seed=2), begun)
        try:
            await begun.reached.wait()
        except asyncio.CancelledError:
            self._generation.abort()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._generation.abort()
        await wait_slot_free(self._adapter, 0, self._free_timeout_s)


def _call(spec: PoolSpec, slot: int, *, seed: int = 1) -> GenerationCall:
    return probe_call(spec, tokens=_tokens_of(spec), slot=slot, seed=seed)


def _tokens_of(spec: PoolSpec) -> int:
    return min(TOKENS_MAX, max(1, spec.ctx // 2))
