"""What an attempt asks of its engine before its task is claimed."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from llorch_poold.attempt_request import AttemptRequest
from llorch_poold.node_context import CHAT_TEMPLATE
from llorch_shared.wire.task import ChatMessage, ChatRole, Workload


class Renderer:
    """An engine that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.stopped = asyncio.Event()

    async def render_chat(self, messages: Any, tools: Any = ()) -> str:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.set()
        raise AssertionError("unreachable: nothing sets the event")


def wanted(engine: Renderer, *, messages: Any, features: tuple[str, ...]) -> AttemptRequest:
    request = SimpleNamespace(workload=Workload.COMPLETION, messages=messages, tools=())
    core: Any = SimpleNamespace(run=SimpleNamespace(task_id="t", request=request))
    facts: Any = SimpleNamespace(features=features, pool_id="pool")
    other: Any = None
    one: Any = engine
    return AttemptRequest(other, one, facts, core=core, stream=other, conclude=other)


CHAT = (ChatMessage(role=ChatRole.USER, content="hi"),)


async def test_a_conversation_is_rendered_beside_the_claim_and_no_longer_than_the_attempt() -> None:
    engine = Renderer()
    request = wanted(engine, messages=CHAT, features=(CHAT_TEMPLATE,))
    request.begin()
    async with asyncio.timeout(15):
        await engine.asked.wait()
        request.close()
        await engine.stopped.wait()


@pytest.mark.parametrize(("messages", "features"), [(CHAT, ()), (None, (CHAT_TEMPLATE,))])
async def test_nothing_is_rendered_that_is_no_conversation_or_that_no_template_takes(
    messages: Any, features: tuple[str, ...]
) -> None:
    engine = Renderer()
    request = wanted(engine, messages=messages, features=features)
    request.begin()
    await asyncio.sleep(0)
    assert not engine.asked.is_set()
    request.close()
