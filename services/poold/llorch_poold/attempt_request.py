"""What one attempt asks of its engine: the task's request made whole, fit for this engine, within its session's budget,
and going on behind what earlier attempts sent.

Not here: the call itself and what comes back (`engine_call.py`).
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from llorch_poold.adapters.port import EngineFailure, RequestRejected
from llorch_poold.backlog import BacklogUnread
from llorch_poold.core.budget import within
from llorch_poold.core.failover import Anew, Complete, GoOn, Refuse
from llorch_poold.core.results import tokens_read
from llorch_poold.core.task import Failed, Finished, Lost, Outcome, TaskCore, error_body
from llorch_poold.node_context import CHAT_TEMPLATE, TOOLS, NodeContext, ReplicaFacts
from llorch_poold.payload import PayloadUnusable, whole
from llorch_poold.token_stream import TokenStream
from llorch_shared.bus.port import BusError
from llorch_shared.errors import ErrorCode
from llorch_shared.wire.task import ChatMessage, TaskRequest, Tool, Workload

BUDGET: Final = "budget"
"""Why a text ends that its session cannot pay for."""

Conclude = Callable[[Outcome], bool]
"""Ends the attempt; false when it has an outcome already."""


class PromptReader(Protocol):
    """An engine, asked about prompts."""

    async def prompt_tokens(self, prompt: str) -> int:
        """Raises EngineBroke."""

    async def render_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> str:
        """Raises RequestRejected, EngineBroke."""


class AttemptRequest:
    """Of one attempt; concludes it where nothing is to be asked."""

    def __init__(
        self,
        node: NodeContext,
        engine: PromptReader,
        facts: ReplicaFacts,
        *,
        core: TaskCore,
        stream: TokenStream,
        conclude: Conclude,
    ) -> None:
        self._node: Final = node
        self._engine: Final = engine
        self._facts: Final = facts
        self._core: Final = core
        self._stream: Final = stream
        self._conclude: Final = conclude
        request = core.run.request
        self.by_input: Final = request is not None and request.workload is not Workload.COMPLETION
        """Every token is the result of one input, and the inputs' tokens are counted as they are read."""
        self.goes_on = False
        """The engine is given what was sent behind the prompt: its count of the prompt is not the task's."""
        self.read_before = 0
        """Tokens of the inputs whose results earlier attempts sent."""
        self.capped = False
        """The session's budget permits fewer tokens than the task asks for."""
        self._rendering: asyncio.Task[str] | None = None

    def begin(self) -> None:
        """Have a conversation rendered while the task is being claimed: that takes no slot and changes nothing, and
        costs a round trip to the engine. `close` in any case."""
        request = self._core.run.request
        if request is not None and request.messages is not None and self._unfit(request) is None:
            self._rendering = asyncio.create_task(
                self._render(request.messages, request.tools), name=f"render {self._core.run.task_id}"
            )
            self._rendering.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _render(self, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> str:
        await asyncio.sleep(0)  # the claim is sent first
        return await self._engine.render_chat(messages, tools)

    def close(self) -> None:
        if self._rendering is not None:
            self._rendering.cancel()

    async def prepare(self) -> TaskRequest | None:
        """None when the attempt has been concluded instead."""
        request = self._core.run.request
        if request is None:
            self._fail(ErrorCode.INTERNAL, "the run record carries no request")
            return None
        if request.sampler_profile_version != self._facts.sampler_profile_version:
            self._fail(
                ErrorCode.INVALID_PARAMS,
                f"sampler profile {request.sampler_profile_version} is not the pool's, which is "
                f"{self._facts.sampler_profile_version}",
            )
            return None
        try:
            request = await whole(self._node.bus, request)
        except PayloadUnusable as error:
            self._fail(error.code, str(error), error.detail)
            return None
        except BusError as error:
            self._conclude(Lost(f"its prompt cannot be read: {error}"))
            return None
        if (unfit := self._unfit(request)) is not None:
            self._fail(ErrorCode.INVALID_PARAMS, unfit)
            return None
        try:
            request = await self._resumed(await self._rendered(request))
        except RequestRejected as error:
            self._fail(ErrorCode.INVALID_PARAMS, str(error))
            return None
        except (BacklogUnread, EngineFailure) as error:
            self._conclude(Lost(str(error)))
            return None
        permitted = within(request, self._core.run.session, self._core.first, self._core.run.decode_ms)
        if permitted is None:
            self._conclude(Finished(BUDGET, self._core.tokens_in, 0))
            return None
        self.capped = permitted is not request
        return permitted

    def _unfit(self, request: TaskRequest) -> str | None:
        """Why the engine cannot take it at all."""
        if request.messages is not None and CHAT_TEMPLATE not in self._facts.features:
            return f"the engine of pool {self._facts.pool_id} has no chat template for this model; send a prompt"
        if request.tools and TOOLS not in self._facts.features:
            return f"the chat template of pool {self._facts.pool_id}'s model takes no tools; send none"
        return None

    async def _rendered(self, request: TaskRequest) -> TaskRequest:
        """With the engine's own prompt instead of messages: a later attempt goes on behind it as behind any other.
        Beside tools the messages stay, for the engine is asked as a chat. Raises EngineFailure."""
        if request.messages is None:
            return request
        if self._rendering is not None:
            prompt = await self._rendering
        else:
            prompt = await self._engine.render_chat(request.messages, request.tools)
        return msgspec.structs.replace(request, prompt=prompt, messages=request.messages if request.tools else None)

    async def _resumed(self, request: TaskRequest) -> TaskRequest:
        """What is left to be asked; concludes where that is nothing. Raises BacklogUnread, EngineFailure."""
        decided = await self._stream.open(request)
        self._core.charged(self._stream.backlog.lost_ms)
        match decided:
            case Refuse():
                self._fail(ErrorCode.WORKER_RESET, decided.message, decided.detail)
            case Anew():
                self._core.starts_at(decided.first, decided.first)
            case GoOn() | Complete() if self.by_input:
                self._core.starts_at(self._stream.backlog.count)
                self._core.tokens_in = self.read_before = tokens_read(self._stream.backlog.texts)
            case GoOn() | Complete():
                self.goes_on = True
                restarted_at = decided.restarted_at if isinstance(decided, Complete) else None
                self._core.starts_at(self._stream.backlog.count, restarted_at)
                self._core.tokens_in = await self._engine.prompt_tokens(request.prompt or "")
        if isinstance(decided, Complete):
            self._conclude(Finished("stop" if self.by_input else "length", self._core.tokens_in, 0))
        return decided.request if isinstance(decided, GoOn) else request

    def _fail(self, code: ErrorCode, message: str, detail: str | None = None) -> None:
        self._conclude(failed(self._facts, code, message, detail))


def failed(facts: ReplicaFacts, code: ErrorCode, message: str, detail: str | None = None) -> Failed:
    return Failed(error_body(code, message, engine=facts.engine, pool_id=facts.pool_id, detail=detail))
