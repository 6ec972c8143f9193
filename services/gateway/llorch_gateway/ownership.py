"""Task ids that are somebody's already. The same id is the same task, so whoever is bound to his tenant must not be
admitted under another's: he would read what is not his own. Everybody else goes by without a question.
"""

from collections.abc import Awaitable, Callable

from llorch_gateway.call import Call
from llorch_shared.errors import id_in_use
from llorch_shared.wire.task import TaskRequest

Owner = Callable[[str], Awaitable[str]]
"""The tenant of a task that exists, wherever it is."""
OwnerIfAny = Callable[[str], Awaitable[str | None]]
"""The same of one that may exist: empty for one that does not; None when somebody who may know does not answer."""


class Ownership:
    """`owner` and `owner_if_any` are given by who can look tasks up, which is made after who admits them."""

    def __init__(self) -> None:
        self.owner: Owner | None = None
        self.owner_if_any: OwnerIfAny | None = None

    async def check_before(self, request: TaskRequest, lately: str | None, call: Call) -> bool:
        """`lately` is whose id it is if this process knows it. Whoever waits in a queue has no record yet, so those who
        pull the queues are asked. False when one of them is silent: the task has its place, but whose the id is has to
        be asked again before anything is shown of it. Raises OrchError, BusError."""
        if not call.bound or self.owner_if_any is None:
            return True
        tenant = lately if lately is not None else await self.owner_if_any(request.task_id)
        if tenant:
            _check(request, tenant, call)
        return tenant is not None

    async def check_stored(self, request: TaskRequest, call: Call) -> None:
        """For an id under which something is stored. Raises OrchError, BusError."""
        if call.bound and self.owner is not None:
            _check(request, await self.owner(request.task_id), call)


def _check(request: TaskRequest, tenant: str, call: Call) -> None:
    if not call.may_see(tenant):
        raise id_in_use(request.engine)
