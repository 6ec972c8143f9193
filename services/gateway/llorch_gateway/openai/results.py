"""POST /v1/embeddings and /v1/rerank: a task that is admitted and read in one request, and answered whole."""

import uuid
from collections.abc import Sequence
from typing import Final

from llorch_gateway.answer_room import Held
from llorch_gateway.asgi import Receive, Scope
from llorch_gateway.call import Call
from llorch_gateway.openai.core.results import Results, Scores, Vectors, read_embedding, read_rerank
from llorch_gateway.openai.door import Door
from llorch_gateway.openai.replies import RERANK_PATH
from llorch_gateway.streams import Opened


class ResultRoutes:
    def __init__(self, door: Door) -> None:
        self._door: Final = door

    async def __call__(self, scope: Scope, receive: Receive, held: Held, call: Call) -> tuple[Opened, Sequence[bytes]]:
        """The answer in its parts, and what it was read from. Raises OrchError, BusError."""
        ranks = scope["path"] == RERANK_PATH
        body, headers = await self._door.read(scope, receive)
        snapshot, new_id = self._door.snapshot, str(uuid.uuid4())
        read = read_rerank if ranks else read_embedding
        asked = read(body, headers, new_id=new_id, pools=snapshot.pools, replicas=snapshot.replicas)
        opened = await self._door.admit(asked.task, call)
        answer: Results = Scores(asked) if ranks else Vectors(asked)
        await self._door.collect(answer, held, opened, receive, call)
        return opened, answer.parts()
