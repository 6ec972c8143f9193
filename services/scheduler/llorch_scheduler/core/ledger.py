"""Which tasks we have, which of our writes belongs to which, and from where on their records stand."""

from typing import Final

from llorch_scheduler.core.job import GONE, Job


class Ledger:
    """`recorded` are the tasks whose record exists or may exist: what the floor is computed from."""

    __slots__ = ("_came_back", "_seen", "_ticketed", "_tickets", "jobs", "recorded")

    def __init__(self) -> None:
        self.jobs: Final[dict[str, Job]] = {}
        self.recorded: Final[dict[str, Job]] = {}
        self._ticketed: Final[dict[int, Job]] = {}
        self._tickets = 0
        self._came_back = 0
        self._seen = 0

    def see(self, seq: int) -> None:
        """Everything stored up to `seq` has been told: changes are republished in the order they were stored."""
        self._seen = seq if seq > self._seen else self._seen

    def floor(self) -> int:
        """No unfinished run has a lower sequence. O(held and returned tasks)."""
        return min((job.floor for job in self.recorded.values()), default=self._seen + 1)

    def next_order(self) -> tuple[int, int]:
        """Before everything new, behind what came back earlier."""
        self._came_back += 1
        return (0, self._came_back)

    def ticket(self, job: Job) -> int:
        """A number that the outcome of this job's next write will carry."""
        self._tickets += 1
        job.ticket = self._tickets
        self._ticketed[job.ticket] = job
        return job.ticket

    def answered(self, ticket: int) -> Job | None:
        """The job that waits for this outcome; None when it has moved on since."""
        job = self._ticketed.pop(ticket, None)
        if job is not None:
            job.ticket = 0
        return job

    def forget_ticket(self, job: Job) -> None:
        if job.ticket:
            self._ticketed.pop(job.ticket, None)
            job.ticket = 0

    def may_be_recorded(self, job: Job) -> None:
        """A first write is about to leave: its record, if it comes to be, stands above everything seen so far."""
        if job.floor == 0:
            job.floor = self._seen + 1
        self.recorded[job.record.task_id] = job

    def stands(self, job: Job, seq: int) -> None:
        """Its record is known to stand at `seq`. What was *seen* moves with `see` only: that comes in order."""
        job.run_seq = job.floor = seq if seq > job.run_seq else job.run_seq
        self.recorded[job.record.task_id] = job

    def drop(self, job: Job) -> None:
        """It has ended; the record remembers it."""
        self.forget_ticket(job)
        job.phase = GONE
        task_id = job.record.task_id
        self.recorded.pop(task_id, None)
        self.jobs.pop(task_id, None)
