"""Provisioning jobs: one per wish however often it is asked, and what each tells about itself.

        ask ──▶ WAITING ──▶ RUNNING ──▶ DONE
                                └─────▶ FAILED

A job belongs to the provisioner, not to whoever asked: nobody needs to stay for it to end. The book is bounded; ended
jobs are forgotten oldest first.
"""

import hashlib
from enum import StrEnum
from typing import Final

import msgspec

from llorch_shared.wire.provision import (
    EnsureEngine,
    EnsureModel,
    PlanStep,
    PreparedEngine,
    ProvisionEvent,
    ResolvedModel,
)

WAITING_MAX: Final = 64
ENDED_KEPT_MAX: Final = 128
FAILURE_REPEATED_MS: Final = 2_000
"""A wish that failed this recently gets the same answer again: asking in a loop must not fetch in a loop."""


class JobState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class JobMove(StrEnum):
    STARTED = "started"
    FINISHED = "finished"
    BROKE = "broke"


MOVES: Final[dict[JobState, dict[JobMove, JobState]]] = {
    JobState.WAITING: {JobMove.STARTED: JobState.RUNNING, JobMove.BROKE: JobState.FAILED},
    JobState.RUNNING: {JobMove.FINISHED: JobState.DONE, JobMove.BROKE: JobState.FAILED},
}
"""A missing move is the error; DONE and FAILED are final."""


class Answer(StrEnum):
    """What to do with a wish."""

    RUN = "run"
    JOIN = "join"
    """It is under way: follow that job."""
    REPEAT = "repeat"
    """It failed a moment ago: tell that again."""
    BUSY = "busy"


class Job:
    """One wish being fulfilled. `step` counts from 1; 0 means that it waits for its turn."""

    def __init__(self, job_id: str, node_id: str, target: str, steps: tuple[PlanStep, ...], now_ms: int) -> None:
        self.id: Final = job_id
        self.steps: Final = steps
        self.state = JobState.WAITING
        self.changed_ms = now_ms
        self._node: Final = node_id
        self._target: Final = target
        self._step = 0
        self._bytes_done = 0
        self._bytes_total = 0
        self._error = ""
        self._hint = ""
        self._code = ""
        self._result: PreparedEngine | ResolvedModel | None = None

    @property
    def ended(self) -> bool:
        return self.state not in MOVES

    def start(self, now_ms: int) -> None:
        self._move(JobMove.STARTED, now_ms)

    def begin(self, kind: str, now_ms: int) -> PlanStep:
        """Go on to the next step of that kind. Raises ValueError when the plan has none: work must follow its plan."""
        for index in range(self._step, len(self.steps)):
            if self.steps[index].kind == kind:
                self._step = index + 1
                self._bytes_done = self._bytes_total = 0
                self.changed_ms = now_ms
                return self.steps[index]
        raise ValueError(f"job {self.id} has no step {kind!r} after step {self._step}")

    def advance(self, done: int, total: int) -> None:
        """Bytes of the present step."""
        self._bytes_done, self._bytes_total = done, total

    def finish(self, result: PreparedEngine | ResolvedModel, now_ms: int) -> None:
        self._move(JobMove.FINISHED, now_ms)
        self._step = len(self.steps)
        self._result = result

    def fail(self, error: str, hint: str, now_ms: int, *, code: str = "") -> None:
        self._move(JobMove.BROKE, now_ms)
        self._error, self._hint, self._code = error, hint, code

    def event(self, now_ms: int) -> ProvisionEvent:
        """The job as it stands."""
        step = self.steps[self._step - 1] if self._step else PlanStep(kind="wait", detail="waiting for its turn")
        return ProvisionEvent(
            job=self.id,
            node_id=self._node,
            target=self._target,
            step=self._step,
            steps=len(self.steps),
            kind=step.kind,
            detail=step.detail,
            bytes_done=self._bytes_done,
            bytes_total=self._bytes_total,
            done=self.ended,
            error=self._error,
            hint=self._hint,
            code=self._code,
            result=self._result,
            at_ms=now_ms,
        )

    def _move(self, move: JobMove, now_ms: int) -> None:
        moves = MOVES.get(self.state, {})
        if move not in moves:
            raise ValueError(f"job {self.id} is {self.state}: {move} is not a move")
        self.state = moves[move]
        self.changed_ms = now_ms


class JobBook:
    """Every job that is under way, and the latest that ended."""

    def __init__(self, *, waiting_max: int = WAITING_MAX, ended_kept_max: int = ENDED_KEPT_MAX) -> None:
        self._jobs: dict[str, Job] = {}
        self._waiting_max: Final = waiting_max
        self._ended_kept_max: Final = ended_kept_max

    def answer(self, job_id: str, now_ms: int) -> Answer:
        """Whether this wish starts a job, joins one, or gets its last answer again."""
        job = self._jobs.get(job_id)
        if job is not None and not job.ended:
            return Answer.JOIN
        if job is not None and job.state is JobState.FAILED and now_ms - job.changed_ms < FAILURE_REPEATED_MS:
            return Answer.REPEAT
        if sum(not job.ended for job in self._jobs.values()) >= self._waiting_max:
            return Answer.BUSY
        return Answer.RUN

    def add(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        self._jobs[job.id] = job
        ended = [known.id for known in self._jobs.values() if known.ended]
        for job_id in ended[: max(0, len(ended) - self._ended_kept_max)]:
            del self._jobs[job_id]

    def __getitem__(self, job_id: str) -> Job:
        return self._jobs[job_id]

    def events(self, now_ms: int) -> tuple[ProvisionEvent, ...]:
        """All jobs, oldest first."""
        return tuple(job.event(now_ms) for job in self._jobs.values())


def job_id(request: EnsureEngine | EnsureModel) -> str:
    """Equal wishes have equal ids; the id is a Name and fits a subject token."""
    kind = "engine" if isinstance(request, EnsureEngine) else "model"
    body = msgspec.json.encode(request, order="sorted")
    return f"{kind}-{hashlib.sha256(body).hexdigest()[:16]}"
