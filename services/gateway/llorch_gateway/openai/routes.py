"""The routes of OpenAI's clients: completions, whole and streamed, embeddings and rankings, and the models that can be
named."""

import uuid
from typing import Final

import msgspec

from llorch_gateway.asgi import Counted, Receive, Scope, Send, reply_error
from llorch_gateway.call import Call
from llorch_gateway.openai.core import models
from llorch_gateway.openai.core.answer import Chunks, Whole
from llorch_gateway.openai.core.request import Asked, read
from llorch_gateway.openai.core.responses_answer import Events
from llorch_gateway.openai.core.responses_answer import Whole as WholeResponse
from llorch_gateway.openai.core.responses_request import AskedResponse
from llorch_gateway.openai.core.responses_request import read as read_response
from llorch_gateway.openai.door import Door
from llorch_gateway.openai.replies import (
    CHAT_PATH,
    MODELS_PATH,
    RESPONSES_PATH,
    RESULT_PATHS,
    TEXT_PATH,
    openai_error_reply,
)
from llorch_gateway.openai.results import ResultRoutes
from llorch_gateway.streams import Opened
from llorch_shared.errors import invalid
from llorch_shared.wall_clock import now_ms

_encode: Final = msgspec.json.Encoder().encode


class OpenAiRoutes:
    def __init__(self, door: Door) -> None:
        self._door: Final = door
        self._snapshot: Final = door.snapshot
        self._results: Final = ResultRoutes(door)

    async def __call__(self, scope: Scope, receive: Receive, send: Send, call: Call, answered: Counted) -> None:
        """Raises OrchError, BusError before the response has begun."""
        path = scope["path"]
        allowed = "POST" if path in (CHAT_PATH, TEXT_PATH, RESPONSES_PATH) or path in RESULT_PATHS else "GET"
        if scope["method"] != allowed:
            error = invalid(f"this path takes {allowed}", status=405)
            await reply_error(send, error, call.correlation_id, allow=allowed, told=openai_error_reply)
        elif allowed == "GET":
            await self._door.reply(send, call, [self._models(path)])
        elif path in RESULT_PATHS:
            with self._door.answers.for_one() as held:
                opened, parts = await answered(self._results(scope, receive, held, call))
                await self._door.reply(send, call, parts, opened)
        elif path == RESPONSES_PATH:
            response, opened = await answered(self._admit_response(scope, receive, call))
            created = now_ms() // 1000
            if response.asked.stream:
                await self._door.stream(Events(response, created=created), opened, receive, send, call)
            else:
                made = WholeResponse(response, created=created)
                with self._door.answers.for_one() as held:
                    await answered(self._door.collect(made, held, opened, receive, call))
                    await self._door.reply(send, call, [made.body()], opened)
        else:
            asked, opened = await answered(self._admit(scope, receive, call, chat=path == CHAT_PATH))
            created = now_ms() // 1000
            if asked.stream:
                await self._door.stream(Chunks(asked, created=created), opened, receive, send, call)
            else:
                whole = Whole(asked, created=created)
                with self._door.answers.for_one() as held:
                    await answered(self._door.collect(whole, held, opened, receive, call))
                    await self._door.reply(send, call, [whole.body()], opened)

    def _models(self, path: str) -> bytes:
        pools, replicas = self._snapshot.pools, self._snapshot.replicas
        name = path.removeprefix(MODELS_PATH).removeprefix("/")
        return _encode(models.one(name, pools, replicas) if name else models.listed(pools, replicas))

    async def _admit(self, scope: Scope, receive: Receive, call: Call, *, chat: bool) -> tuple[Asked, Opened]:
        """Raises OrchError, BusError."""
        body, headers = await self._door.read(scope, receive)
        asked = read(
            body,
            headers,
            chat=chat,
            new_id=str(uuid.uuid4()),
            pools=self._snapshot.pools,
            replicas=self._snapshot.replicas,
        )
        return asked, await self._door.admit(asked.task, call)

    async def _admit_response(self, scope: Scope, receive: Receive, call: Call) -> tuple[AskedResponse, Opened]:
        """Raises OrchError, BusError."""
        body, headers = await self._door.read(scope, receive)
        pools, replicas = self._snapshot.pools, self._snapshot.replicas
        response = read_response(body, headers, new_id=str(uuid.uuid4()), pools=pools, replicas=replicas)
        return response, await self._door.admit(response.asked.task, call)
