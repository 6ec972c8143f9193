"""Slots and pace of the mock engine: many streams on one timer.

A paced engine advances all its streams on one wheel of ticks, an unthrottled one writes blocks and stops while a socket
is full.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from llorch_poold.mock_cache import SlotCache
from llorch_poold.mock_faults import Fault, Faults
from llorch_poold.mock_generation import Generation, Socket
from llorch_poold.mock_log import GenerationLog
from llorch_poold.mock_output import Completion
from llorch_poold.mock_prefill import Prefill

TICK_S: Final = 0.004
DEFERRED_MAX: Final = 1024


class Occupant(Protocol):
    """Who has a slot."""

    prompt_tokens: int
    prompt_read: int
    cached: int
    """Prompt tokens that its slot held already."""
    sent: int

    @property
    def total(self) -> int: ...


class Job(Occupant, Protocol):
    """A call that has its answer whole."""

    prompt: str
    slot: int
    log_number: int

    def begin(self) -> None: ...


class MockEngine:
    """Slots, pace and faults of one mock engine. `rate` is tokens per second of each stream, 0 is unthrottled."""

    def __init__(
        self,
        *,
        slots: int,
        ctx: int,
        rate: float,
        prefill_s: float,
        stamp: bool,
        prefill_rate: float = 0.0,
        batch: int = 512,
        log: GenerationLog | None = None,
    ) -> None:
        self.ctx: Final = ctx
        self.rate: Final = rate
        self.prefill_s: Final = prefill_s
        self.stamp: Final = stamp
        self._log: Final = log
        self.slots: Final[list[Occupant | None]] = [None] * slots
        self.cache: Final = SlotCache(slots)
        self._erasures: Final[list[tuple[int, Callable[[int], None]]]] = []
        self.deferred: deque[Generation] = deque()
        self.tokens_total = 0
        self.prompt_tokens_total = 0
        self._faults: Final = Faults()
        self.prefill: Final = Prefill(rate=prefill_rate, batch=batch)
        self._loop: Final = asyncio.get_running_loop()
        self._wheel: dict[int, list[Generation]] = {}
        self._turn = 0
        self._ticking = False
        self.now: Final = self._loop.time

    def set_faults(self, faults: Iterable[Fault]) -> None:
        self._faults.set(faults)

    def take_fault(self, seed: int) -> Fault | None:
        """The fault of the next generation."""
        return self._faults.take(seed)

    def take_result_fault(self) -> Fault | None:
        """The fault of the next result of an input."""
        return self._faults.take_result()

    def refuses_erasure(self) -> bool:
        return self._faults.take_erasure() is not None

    def erase(self, slot: int, answer: Callable[[int], None]) -> None:
        """`answer` is called with the tokens that were erased: when the task that is in the slot is done."""
        if self.slots[slot] is None:
            answer(self.cache.erase(slot))
        else:
            self._erasures.append((slot, answer))

    def enter(self, job: Job, slot: int) -> None:
        """A call that is answered at once or not at all. Raises OverflowError when the slot that it wishes, or every
        one, is busy: nobody here asks for more than there are."""
        free = [number for number in range(len(self.slots)) if self.slots[number] is None and slot in (-1, number)]
        if not free:
            raise OverflowError
        job.slot = free[0]
        self.slots[job.slot] = job
        self.cache.take(job.slot, job.prompt, reuse=False)
        self.prompt_tokens_total += job.prompt_tokens
        if self._log is not None:
            job.log_number = self._log.begun(prompt=job.prompt, seed=0, total=job.total)
        job.begin()

    def leave(self, job: Job) -> None:
        self._empty(job.slot, job.prompt_read, 0)
        self.tokens_total += job.sent
        if self._log is not None:
            self._log.ended(job.log_number, job.sent)
        self._fill()

    def submit(self, socket: Socket, request: Completion, fault: Fault | None) -> Generation:
        """Raises OverflowError when too many wait."""
        generation = Generation(self, socket, request, fault)
        if len(self.deferred) >= DEFERRED_MAX:
            raise OverflowError
        self.deferred.append(generation)
        self._fill()
        return generation

    def end(self, generation: Generation) -> None:
        if generation.over:
            return
        generation.over = True
        if generation.slot >= 0:
            if self._log is not None:
                self._log.ended(generation.log_number, generation.sent)
            self._empty(generation.slot, generation.prompt_read, generation.sent)
            self._fill()
        elif generation in self.deferred:
            self.deferred.remove(generation)

    def _empty(self, slot: int, prompt_read: int, sent: int) -> None:
        self.slots[slot] = None
        self.cache.left(slot, prompt_read, sent)
        for each in [each for each in self._erasures if each[0] == slot]:
            self._erasures.remove(each)
            each[1](self.cache.erase(slot))

    def schedule(self, generation: Generation) -> None:
        if generation.due <= self.now():
            self._loop.call_soon(self._advance, generation)
            return
        tick = max(self._turn + 1, int(generation.due / TICK_S)) if self._ticking else int(generation.due / TICK_S)
        self._wheel.setdefault(tick, []).append(generation)
        if not self._ticking:
            self._ticking = True
            self._turn = int(self.now() / TICK_S)
            self._loop.call_later(TICK_S, self._tick)

    def _advance(self, generation: Generation) -> None:
        generation.advance(self.now())

    def _tick(self) -> None:
        now = self.now()
        self._turn = int(now / TICK_S)
        for tick in sorted(tick for tick in self._wheel if tick <= self._turn):
            for generation in self._wheel.pop(tick):
                generation.advance(now)
        if self._wheel:
            self._loop.call_later(TICK_S, self._tick)
        else:
            self._ticking = False

    def _fill(self) -> None:
        for generation in list(self.deferred):
            wanted = generation.request.id_slot
            candidates = range(len(self.slots)) if not 0 <= wanted < len(self.slots) else (wanted,)
            free = next((slot for slot in candidates if self.slots[slot] is None), None)
            if free is not None:
                self.deferred.remove(generation)
                self.slots[free] = generation
                generation.slot = free
                generation.cached = self.cache.take(
                    free, generation.request.prompt, reuse=generation.request.cache_prompt
                )
                self.prompt_tokens_total += generation.prompt_tokens
                if self._log is not None:
                    request = generation.request
                    generation.log_number = self._log.begun(
                        prompt=request.prompt, seed=request.seed, total=generation.total
                    )
                generation.begin()
