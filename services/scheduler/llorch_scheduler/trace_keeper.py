"""Writes the transcripts that no node writes: of tasks that a scheduler ended, and of those whose node died before it
did so. One per term.

The final record says that a transcript was asked for. It is made of the token log and, where the log has no end, of
the record, as a reader's would be. It is written after the end was told, one at a time, unless the task has one
already; the next term looks at the ends of the last minutes again.
"""

import asyncio
import heapq
import itertools
import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from llorch_shared import streams, subjects
from llorch_shared.artifacts import Artifacts
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.object_share import ShareFull
from llorch_shared.states import FINAL
from llorch_shared.streaming.endings import terminal_frame
from llorch_shared.transcripts import is_whole, started_of, tag_of, trace_of, transcript_of
from llorch_shared.wire.artifacts import ArtifactKind
from llorch_shared.wire.run import RunRecord

log = logging.getLogger(__name__)

END_IS_TOLD_S: Final = 0.5
"""The terminal frame of what a scheduler ends follows its record."""
NODE_WRITES_WITHIN_S: Final = 10.0
"""All tries of a node. One that died is known to be gone by then."""
WAITING_MAX: Final = 5_000
"""Ends that wait for their transcript; a record without its request is less than a kilobyte."""
TRIES: Final = 6
RETRY_FIRST_S: Final = 0.5
LOOK_BACK: Final = 1_000
"""The task's own trace, written within the last seconds, is among so many of the newest artifacts."""
TURN_S: Final = 0.5


class _Incomplete(Exception):
    """The token log does not have all of the stream: not yet, or not any more."""


class _Waiting(NamedTuple):
    due: float
    number: int
    tries: int
    run: RunRecord


class TraceKeeper:
    """`saw` never waits. `keep` is the one task that asks the bus. `lives`: whether the life of the replica that ended
    a task goes on, so that its node writes the transcript."""

    def __init__(
        self,
        bus: Bus,
        artifacts: Artifacts,
        *,
        going: Callable[[], bool],
        lives: Callable[[RunRecord], bool],
    ) -> None:
        self._bus: Final = bus
        self._artifacts: Final = artifacts
        self._going: Final = going
        self._lives: Final = lives
        self._waiting: Final[list[_Waiting]] = []
        self._numbers: Final = itertools.count()
        self._some: Final = asyncio.Event()

    def saw(self, run: RunRecord) -> None:
        """A run record was stored, or found after a takeover. Only ends of tasks that asked for a trace matter."""
        if run.trace and run.state in FINAL:
            self._wait(run, NODE_WRITES_WITHIN_S if run.incarnation else END_IS_TOLD_S, tries=0)

    def _wait(self, run: RunRecord, delay_s: float, *, tries: int) -> None:
        if len(self._waiting) >= WAITING_MAX:
            log.warning("the trace of task %s is not kept: too many wait", run.task_id)
            return
        due = asyncio.get_running_loop().time() + delay_s
        heapq.heappush(self._waiting, _Waiting(due, next(self._numbers), tries, run))
        self._some.set()

    async def keep(self) -> None:
        """Until the term is over. Costs nothing while no task asks."""
        while self._going():
            await self._some.wait()
            while self._waiting and self._going():
                rest = self._waiting[0].due - asyncio.get_running_loop().time()
                if rest > 0:
                    await asyncio.sleep(min(rest, TURN_S))
                else:
                    await self._see_to(heapq.heappop(self._waiting))
            self._some.clear()

    async def _see_to(self, waiting: _Waiting) -> None:
        run, tries = waiting.run, waiting.tries + 1
        if run.incarnation and self._lives(run):
            return
        try:
            await self._write(run)
        except (ShareFull, ValueError) as error:
            log.warning("the trace of task %s is not kept: %s", run.task_id, error)
        except (BusError, _Incomplete) as error:
            if tries == TRIES:
                log.warning("the trace of task %s is not kept: %s", run.task_id, error)
            else:
                self._wait(run, RETRY_FIRST_S * 2**waiting.tries, tries=tries)
        except Exception:
            log.exception("the trace of task %s is not kept, for a reason that nobody foresaw", run.task_id)

    async def _write(self, run: RunRecord) -> None:
        """Raises _Incomplete, ShareFull, BusError; ValueError for what cannot be kept."""
        if await self._is_kept(run):
            return
        messages = await self._bus.replay(streams.TOK, subjects.tokens(run.lane, run.task_id))
        transcript = transcript_of([*(message.data for message in messages), terminal_frame(run)])
        if not is_whole(transcript, run.tokens_out):
            raise _Incomplete("the token log does not have all of its stream")
        started = started_of(transcript)
        trace = trace_of(
            run,
            transcript,
            session_id=run.session_id,
            engine=started.engine or "",
            engine_version=started.engine_version,
        )
        await self._artifacts.create(trace, run.tenant)

    async def _is_kept(self, run: RunRecord) -> bool:
        last_seq = (await self._bus.stream_state(streams.ARTIFACTS)).last_seq
        found = await self._artifacts.page(
            run.tenant,
            kind=ArtifactKind.TRACE,
            tag=tag_of(run.task_id),
            after=max(0, last_seq - LOOK_BACK),
            limit=1,
        )
        return bool(found.artifacts)
