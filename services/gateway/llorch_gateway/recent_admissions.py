"""Tasks that this process put into a queue lately: their streams and lookups need no question to anybody."""

from collections import OrderedDict
from typing import Final, NamedTuple

import msgspec

from llorch_gateway.core.prospect import prospect_of
from llorch_gateway.snapshot import Snapshot
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.run import Located

RECENT_MAX: Final = 16_384


class _Admitted(NamedTuple):
    located: Located
    seq: int
    due_ms: int


class RecentAdmissions:
    """The last `RECENT_MAX`."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot: Final = snapshot
        self._tasks: Final[OrderedDict[str, _Admitted]] = OrderedDict()

    def __contains__(self, task: str) -> bool:
        return task in self._tasks

    def located(self, task: str) -> Located | None:
        """Its position is told anew from the latest load."""
        known = self._tasks.get(task)
        if known is None or known.located.priority is None:
            return None
        located = known.located
        load = self._snapshot.loads.get(located.pool_id)
        due_in_ms = known.due_ms - now_ms()
        prospect = prospect_of(load, known.located.priority, located.tenant, seq=known.seq, due_in_ms=due_in_ms)
        return msgspec.structs.replace(located, queue_position=prospect.position, predicted_start_ms=prospect.start_ms)

    def tenant_of(self, task: str) -> str | None:
        known = self._tasks.get(task)
        return None if known is None else known.located.tenant

    def seq_of(self, task: str) -> int | None:
        """In the stream of its queue."""
        known = self._tasks.get(task)
        return None if known is None else known.seq

    def remember(self, task: str, located: Located, *, seq: int, due_ms: int) -> None:
        if len(self._tasks) >= RECENT_MAX:
            self._tasks.popitem(last=False)
        self._tasks[task] = _Admitted(located, seq, due_ms)
