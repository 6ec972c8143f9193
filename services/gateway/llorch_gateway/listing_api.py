"""Lists of tasks, as callers ask for them."""

from llorch_gateway.core.listing import parse_place, wanted_by
from llorch_gateway.listing import Listing
from llorch_gateway.operations import Answer, Ask, Handlers
from llorch_shared.wire.run import TaskList


def handlers(listing: Listing) -> Handlers:
    async def listed(ask: Ask) -> Answer:
        wanted = wanted_by(ask.given, bound_to=ask.call.tenant if ask.call.bound else "")
        if wanted is None:
            return Answer(TaskList())
        cursor = ask.given.get("cursor")
        return Answer(await listing.page(wanted, parse_place(cursor) if cursor else None))

    return {"listTasks": listed}
