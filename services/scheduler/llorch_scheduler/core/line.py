"""Jobs of one flow and one shape in the order they are served: a sorted list in blocks, with sums.

Who came back from a replica is first, as it came back; then earliest deadline, then admission. With order `fifo` the
deadline does not count. A job's place, cost and shape stay as they are while it is in a line.

Costs: `head` O(1); `add`, `remove` O(log n) comparisons and a copy of one block of at most 2 · BLOCK entries; `before`
O(n / BLOCK) additions. About 110 bytes per job (one tuple of five, one list cell); no tombstones.
"""

from bisect import bisect_left, insort
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from llorch_scheduler.core.job import Job

if TYPE_CHECKING:
    from llorch_scheduler.core.flow import Flow

BLOCK: Final = 256
CAME_BACK: Final = -1

Entry = tuple[int, tuple[int, int], str, float, Job]
"""(rank, order, task id, cost, job): rank is the deadline, or CAME_BACK, or 0 where only the order counts."""
Place = tuple[int, tuple[int, int], str]
"""The part of an entry that says where it stands."""

_last: Final = itemgetter(-1)
_cost: Final = itemgetter(3)


def entry_of(job: Job, *, edf: bool) -> Entry:
    rank = CAME_BACK if job.order[0] == 0 else job.due_ms if edf else 0
    return (rank, job.order, job.task_id, max(1.0, job.cost_ms), job)


class Line:
    """`stamp` is the tag under which the line stands in its contest; None when it does not."""

    __slots__ = ("_blocks", "_costs", "flow", "key", "serial", "size", "stamp", "work_ms")

    def __init__(self, flow: "Flow | None" = None, key: object = None, serial: int = 0) -> None:
        self.flow: Final = flow
        self.key: Final = key
        self.serial: Final = serial
        self.stamp: float | None = None
        self._blocks: list[list[Entry]] = [[]]
        self._costs: list[float] = [0.0]
        self.size = 0
        self.work_ms = 0.0

    def __len__(self) -> int:
        return self.size

    @property
    def head(self) -> Job:
        """The first job. Raises IndexError when there is none."""
        return self._blocks[0][0][4]

    @property
    def tail(self) -> Job:
        """The last job. Raises IndexError when there is none."""
        return self._blocks[-1][-1][4]

    def first(self, count: int) -> list[Job]:
        """Up to `count` jobs from the front, at most a block of them."""
        return [entry[4] for entry in self._blocks[0][:count]]

    def jobs(self) -> list[Job]:
        return [entry[4] for block in self._blocks for entry in block]

    def add(self, entry: Entry) -> None:
        at = self._block_of(entry[:3])
        block = self._blocks[at]
        insort(block, entry)
        self._costs[at] += entry[3]
        self.size += 1
        self.work_ms += entry[3]
        if len(block) > 2 * BLOCK:
            self._blocks.insert(at + 1, block[BLOCK:])
            del block[BLOCK:]
            self._costs[at] = sum(map(_cost, block))
            self._costs.insert(at + 1, sum(map(_cost, self._blocks[at + 1])))

    def remove(self, entry: Entry) -> bool:
        """Take out the job of an equal entry; false when it is not here."""
        where = entry[:3]
        at = self._block_of(where)
        block = self._blocks[at]
        place = bisect_left(block, where)
        if place == len(block) or block[place][4] is not entry[4]:
            return False
        cost = block[place][3]
        del block[place]
        self._costs[at] -= cost
        self.size -= 1
        self.work_ms -= cost
        if not block:
            self._drop(at)
        elif len(block) < BLOCK // 4 and len(self._blocks) > 1:
            self._merge(at)
        return True

    def before(self, where: Place) -> tuple[int, float]:
        """How many jobs are served before this place (which need not be taken), and their slot time."""
        at = self._block_of(where)
        block = self._blocks[at]
        place = bisect_left(block, where)
        if place == len(block) and at == len(self._blocks) - 1:
            return self.size, self.work_ms
        jobs = sum(map(len, self._blocks[:at])) + place
        return jobs, sum(self._costs[:at]) + sum(map(_cost, block[:place]))

    def _block_of(self, where: Place) -> int:
        if len(self._blocks) == 1:
            return 0
        return min(bisect_left(self._blocks, where, key=_last), len(self._blocks) - 1)

    def _drop(self, at: int) -> None:
        """Sums start from zero with every emptied block: rounding does not pile up."""
        if len(self._blocks) > 1:
            del self._blocks[at], self._costs[at]
        else:
            self._costs[0] = 0.0
            self.work_ms = 0.0

    def _merge(self, at: int) -> None:
        left = at if at + 1 < len(self._blocks) else at - 1
        if len(self._blocks[left]) + len(self._blocks[left + 1]) <= BLOCK:
            self._blocks[left].extend(self._blocks.pop(left + 1))
            del self._costs[left + 1]
            self._costs[left] = sum(map(_cost, self._blocks[left]))

    def rebuild(self, *, edf: bool) -> None:
        """The same jobs in another order."""
        jobs, self._blocks, self._costs = self.jobs(), [[]], [0.0]
        self.size, self.work_ms = 0, 0.0
        for entry in sorted(entry_of(job, edf=edf) for job in jobs):
            self.add(entry)
