"""Jobs of one flow and one shape in the order they are served: a sorted list in blocks, with their sum.

Who came back from a replica is first, as it came back; then earliest deadline, then admission. With order `fifo` the
deadline does not count. A job's order, deadline, cost and shape stay as they are while it is in a line.

Costs: `head` O(1); `add`, `remove` O(log n) comparisons and moving the pointers of one block of at most 2 · BLOCK;
`before` O(n / BLOCK). No tombstones: about 110 bytes per job, one tuple of five and one list cell.
"""

from bisect import bisect_left, insort
from math import inf
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from llorch_scheduler.core.job import Job

if TYPE_CHECKING:
    from llorch_scheduler.core.contest import Contest
    from llorch_scheduler.core.flow import Flow

BLOCK: Final = 256
CAME_BACK: Final = -1

Entry = tuple[int, tuple[int, int], str, float, Job]
"""(rank, order, task id, cost, job): rank is the deadline, or CAME_BACK, or 0 where only the order counts."""
Place = tuple[int, tuple[int, int], str]
"""The part of an entry that says where it stands."""

_last: Final = itemgetter(-1)


def entry_of(job: Job, *, edf: bool) -> Entry:
    rank = CAME_BACK if job.order[0] == 0 else job.due_ms if edf else 0
    cost_ms = job.cost_ms
    return (rank, job.order, job.record.task_id, cost_ms if cost_ms > 1.0 else 1.0, job)


def place_of(job: Job, *, edf: bool) -> Place:
    return entry_of(job, edf=edf)[:3]


class JobList:
    """Sorted entries. `head` is the first job, None when there is none."""

    __slots__ = ("_first", "_more", "head", "size", "work_ms")

    def __init__(self) -> None:
        self._first: list[Entry] = []
        self._more: list[list[Entry]] | None = None
        """Blocks after the first; None until the first was full."""
        self.head: Job | None = None
        self.size = 0
        self.work_ms = 0.0

    def __len__(self) -> int:
        return self.size

    @property
    def tail(self) -> Job | None:
        """The last job."""
        block = self._more[-1] if self._more else self._first
        return block[-1][4] if block else None

    def first(self, count: int) -> list[Job]:
        """Up to `count` jobs from the front, at most a block of them."""
        return [entry[4] for entry in self._first[:count]]

    def spaced(self, count: int) -> list[Job]:
        """Up to `count` jobs at evenly spaced places, the first and the last included. O(blocks + count)."""
        last = self.size - 1
        if last < count:
            return self.jobs()
        found: list[Job] = []
        begins = 0
        for block in (self._first, *(self._more or ())):
            while len(found) < count and (place := len(found) * last // (count - 1)) < begins + len(block):
                found.append(block[place - begins][4])
            begins += len(block)
        return found

    def jobs(self) -> list[Job]:
        return [entry[4] for block in (self._first, *(self._more or ())) for entry in block]

    def add(self, entry: Entry) -> None:
        self.size += 1
        self.work_ms += entry[3]
        block = self._first
        at = self._block_of(entry[:3]) if self._more else -1
        if at >= 0:
            assert self._more is not None
            block = self._more[at]
        if not block or block[-1] < entry:
            block.append(entry)
        else:
            insort(block, entry)
        if block[0][4] is entry[4] and at < 0:
            self.head = entry[4]
        if len(block) > 2 * BLOCK:
            self._split(block, at)

    def remove(self, job: Job, *, edf: bool) -> float:
        """Take a job out, and tell its cost; 0 when it is not here."""
        block = self._first
        if self.head is job:
            cost_ms = block.pop(0)[3]
        else:
            where = place_of(job, edf=edf)
            at = self._block_of(where) if self._more else -1
            if at >= 0:
                assert self._more is not None
                block = self._more[at]
            place = bisect_left(block, where)
            if place == len(block) or block[place][4] is not job:
                return 0.0
            cost_ms = block.pop(place)[3]
            if at >= 0:
                self._shrunk(at)
        if not self._first and self._more:
            self._first = self._more.pop(0)
        self.size -= 1
        self.work_ms = self.work_ms - cost_ms if self.size else 0.0
        self.head = self._first[0][4] if self._first else None
        return cost_ms

    def before(self, where: Place) -> int:
        """How many jobs are served before this place, which need not be taken."""
        at = self._block_of(where) if self._more else -1
        if at < 0:
            return bisect_left(self._first, where)
        assert self._more is not None
        return len(self._first) + sum(map(len, self._more[:at])) + bisect_left(self._more[at], where)

    def rebuild(self, *, edf: bool) -> None:
        """The same jobs in another order."""
        entries = sorted(entry_of(job, edf=edf) for job in self.jobs())
        self._first, self._more = [], None
        self.size, self.work_ms = 0, 0.0
        for entry in entries:
            self.add(entry)

    def _block_of(self, where: Place) -> int:
        """Index in `_more`; -1 is the first block."""
        assert self._more is not None
        if where <= self._first[-1][:3]:
            return -1
        return min(bisect_left(self._more, where, key=_last), len(self._more) - 1)

    def _split(self, block: list[Entry], at: int) -> None:
        if self._more is None:
            self._more = []
        self._more.insert(at + 1, block[BLOCK:])
        del block[BLOCK:]

    def _shrunk(self, at: int) -> None:
        """Blocks that discards have thinned are joined, so their number follows what is left."""
        assert self._more is not None
        more = self._more
        if not more[at]:
            del more[at]
        elif len(more[at]) < BLOCK // 4:
            for left in (at, at - 1):
                if 0 <= left < len(more) - 1 and len(more[left]) + len(more[left + 1]) <= BLOCK:
                    more[left].extend(more.pop(left + 1))
                    break


class Line(JobList):
    """The jobs of one flow that stand in one contest. `stamp` is the tag under which they do; None when they do not.
    `latest_ms` is no later than their head may start to be in time; infinite when it cannot be any more."""

    __slots__ = ("contest", "flow", "latest_ms", "serial", "stamp")

    def __init__(self, flow: "Flow", contest: "Contest", serial: int) -> None:
        super().__init__()
        self.flow: Final = flow
        self.contest: Final = contest
        self.serial: Final = serial
        self.stamp: float | None = None
        self.latest_ms = inf
