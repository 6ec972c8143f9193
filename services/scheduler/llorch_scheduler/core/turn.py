"""Whose turn it is inside a class: the flow with the least tag that has a task which could be placed, or the task that
must start first to be in time.

Flows over their quota are throttled on the way: each is looked at again only when something has changed for it, so the
looks are paid by starts and ends.
"""

from collections.abc import Callable

from llorch_scheduler.core.class_queue import ClassQueue
from llorch_scheduler.core.contest import IsOpen
from llorch_scheduler.core.flow import Flow
from llorch_scheduler.core.job import Job
from llorch_scheduler.core.line import Line, entry_of

Throttle = Callable[[Flow, int], None]
"""Takes a flow out of the contests until that time."""


def next_job(queue: ClassQueue, is_open: IsOpen, at_ms: int, throttle: Throttle) -> Job | None:
    while (line := _first_line(queue, is_open)) is not None:
        flow = line.flow
        job = line.head if flow.only is line and line.contest.shape is not None else None
        if job is None:
            job = _open_job(queue, flow, is_open)
        opens_ms = flow.use.opens_ms(job, at_ms) if flow.use.metered else 0
        if opens_ms == 0:
            return job
        throttle(flow, opens_ms)
    return None


def urgent_job(queue: ClassQueue, is_open: IsOpen, at_ms: int, within_ms: float, throttle: Throttle) -> Job | None:
    """The head that must start first to be in time, if it must start within this time and still can be in time."""
    while (job := _most_urgent(queue, is_open, at_ms, within_ms)) is not None:
        flow = queue.flows[job.record.tenant]
        opens_ms = flow.use.opens_ms(job, at_ms)
        if opens_ms == 0:
            return job
        throttle(flow, opens_ms)
    return None


def _first_line(queue: ClassQueue, is_open: IsOpen) -> Line | None:
    best: Line | None = None
    for contest in queue.contests.values():
        line = contest.top()
        if line is None or (best is not None and not _before(line.flow, best.flow)):
            continue
        if contest.shape is None:
            line = contest.top_open(line, is_open)
            if line is not None and (best is None or _before(line.flow, best.flow)):
                best = line
        elif is_open(contest.shape):
            best = line
    return best


def _open_job(queue: ClassQueue, flow: Flow, is_open: IsOpen) -> Job:
    """The first in line of those that could be placed; there is one."""
    heads = [job for line in flow.lines.values() if (job := line.contest.open_job(line, is_open)) is not None]
    return min([entry_of(job, edf=queue.edf) for job in heads])[4] if len(heads) > 1 else heads[0]


def _most_urgent(queue: ClassQueue, is_open: IsOpen, at_ms: int, within_ms: float) -> Job | None:
    best: Job | None = None
    for contest in queue.contests.values():
        job = contest.urgent(at_ms, within_ms)
        if job is not None and (best is None or _latest(job) < _latest(best)) and is_open(job.shape):
            best = job
    return best


def _before(one: Flow, other: Flow) -> bool:
    return one.tag < other.tag or (one.tag == other.tag and one.serial < other.serial)


def _latest(job: Job) -> tuple[float, tuple[int, int]]:
    return (job.due_ms - job.cost_ms, job.order)
