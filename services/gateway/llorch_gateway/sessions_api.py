"""Operations on sessions."""

from llorch_gateway.operations import Answer, Ask, Handlers
from llorch_gateway.sessions import Sessions
from llorch_shared.wire.session import SessionRequest


def handlers(sessions: Sessions) -> Handlers:
    async def put(ask: Ask) -> Answer:
        return Answer(await sessions.put(ask.given["id"].lower(), ask.body(SessionRequest), ask.call))

    async def get(ask: Ask) -> Answer:
        return Answer(await sessions.get(ask.given["id"].lower(), ask.call))

    async def delete(ask: Ask) -> Answer:
        await sessions.close(ask.given["id"].lower(), ask.call)
        return Answer(status=204)

    return {"putSession": put, "getSession": get, "deleteSession": delete}
