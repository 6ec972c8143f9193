"""The route of Anthropic's clients."""

import uuid
from typing import Final

from llorch_gateway.anthropic.core.answer import Events, Whole
from llorch_gateway.anthropic.core.request import read
from llorch_gateway.anthropic.replies import anthropic_error_reply
from llorch_gateway.asgi import Counted, Receive, Scope, Send, reply_error
from llorch_gateway.call import Call
from llorch_gateway.openai.core.request import Asked
from llorch_gateway.openai.door import Door
from llorch_gateway.streams import Opened
from llorch_shared.errors import invalid


class AnthropicRoutes:
    def __init__(self, door: Door) -> None:
        self._door: Final = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send, call: Call, answered: Counted) -> None:
        """Raises OrchError, BusError before the response has begun."""
        correlation = call.correlation_id
        if scope["method"] != "POST":
            error = invalid("this path takes POST", status=405)
            await reply_error(send, error, correlation, allow="POST", told=anthropic_error_reply)
            return
        asked, opened = await answered(self._admit(scope, receive, call))
        if asked.stream:
            await self._door.stream(Events(asked, correlation), opened, receive, send, call)
        else:
            whole = Whole(asked)
            with self._door.answers.for_one() as held:
                await answered(self._door.collect(whole, held, opened, receive, call))
                await self._door.reply(send, call, [whole.body()], opened)

    async def _admit(self, scope: Scope, receive: Receive, call: Call) -> tuple[Asked, Opened]:
        """Raises OrchError, BusError."""
        body, headers = await self._door.read(scope, receive)
        snapshot = self._door.snapshot
        asked = read(body, headers, new_id=str(uuid.uuid4()), pools=snapshot.pools, replicas=snapshot.replicas)
        return asked, await self._door.admit(asked.task, call)
