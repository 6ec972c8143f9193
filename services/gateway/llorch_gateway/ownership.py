"""Task ids that are somebody's already. The same id is the same task, so whoever is bound to his tenant must not be
admitted under another's: he would read what is not his own. Everybody else goes by without a question.
"""

from collections.abc import Awaitable, Callable

from llorch_gateway.call import Call
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus
from llorch_shared.errors import invalid
from llorch_shared.wire.task import TaskRequest

Owner = Callable[[str], Awaitable[str]]
"""The tenant of a task that exists, wherever it is."""


class Ownership:
    """`owner` is given by who can look tasks up, which is made after who admits them."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.owner: Owner | None = None

    async def check_before(self, request: TaskRequest, lately: str | None, call: Call) -> None:
        """`lately` is whose id it is if this process knows it. Raises OrchError, BusError."""
        if not call.bound:
            return
        if lately is not None:
            _check(request, lately, call)
            return
        record = await self._bus.last(streams.RUN, subjects.run(request.task_id))
        if record is not None and not record.deleted:
            await self.check_stored(request, call)

    async def check_stored(self, request: TaskRequest, call: Call) -> None:
        """For an id under which something is stored. Raises OrchError, BusError."""
        if call.bound and self.owner is not None:
            _check(request, await self.owner(request.task_id), call)


def _check(request: TaskRequest, tenant: str, call: Call) -> None:
    if not call.may_see(tenant):
        raise invalid("task_id: this id is in use; take a fresh UUID", engine=request.engine)
