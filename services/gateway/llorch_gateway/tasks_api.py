"""Operations on tasks, as callers ask them. Submission over HTTP and streams have routes of their own."""

from llorch_gateway.admissions import Admissions
from llorch_gateway.core.sessions import budget_headers
from llorch_gateway.operations import Answer, Ask, Handlers
from llorch_gateway.tasks import Tasks


def handlers(tasks: Tasks, admissions: Admissions) -> Handlers:
    async def submit(ask: Ask) -> Answer:
        accepted = await admissions.submit(ask.raw, ask.call)
        return Answer(accepted, 202, tuple(budget_headers(accepted)))

    async def get(ask: Ask) -> Answer:
        return Answer(await tasks.get(ask.given["id"].lower(), ask.call))

    async def cancel(ask: Ask) -> Answer:
        ended, view = await tasks.cancel(ask.given["id"].lower(), ask.call)
        return Answer(view, 204 if ended else 202)

    return {"submitTask": submit, "getTask": get, "cancelTask": cancel, "deleteTask": cancel}
