"""The official clients `openai` and `anthropic`, unmodified, against the whole system with mock engines."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any, Final

import anthropic
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from llorch_poold.mock_text import Turn, chatml, digest, text_of
from llorch_shared.wire.task import TaskState
from support.client import Refusal
from support.system import System, mock_pool

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

TOKEN: Final = "sk-of-the-openai-test"
FAST: Final = mock_pool(replicas=1, slots=8, rate=0)
SLOW: Final = mock_pool("slow", replicas=1, slots=1, rate=20, model="mock:slow", capacity=1)
CHAT: Final[list[ChatCompletionMessageParam]] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Say something."}]},
]
PROMPT: Final = chatml([Turn("system", "Be brief."), Turn("user", "Say something.")])
OFFER: Final[Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
LONG: Final[Any] = {
    "model": SLOW.model,
    "messages": CHAT,
    "max_tokens": 2000,
    "extra_body": {"llorch": {"deadline_ms": 24 * 3_600_000}},
}
"""However slow the machine: deadlines are not the matter here."""


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    settings = {"gateway": {"auth_optional": False, "cancel_grace_ms": 50}}
    folder = tmp_path_factory.mktemp("openai")
    async with System(folder, pools=[FAST, SLOW], token=TOKEN, settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
async def client(system: System) -> AsyncIterator[openai.AsyncOpenAI]:
    base_url = f"{system.url()}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key=TOKEN, max_retries=0, timeout=60) as opened:
        yield opened


def task_of(answer_id: str) -> str:
    return answer_id.partition("-")[2]


async def known(system: System, task_id: str) -> bool:
    try:
        return bool(await system.client().get(task_id))
    except Refusal:
        return False


async def ended(system: System, task_id: str) -> TaskState:
    async def final() -> bool:
        return (await system.client().get(task_id)).state not in (TaskState.QUEUED, TaskState.PLACED, TaskState.RUNNING)

    await system.until(final, f"the end of {task_id}", 30)
    return (await system.client().get(task_id)).state


async def test_a_chat_is_answered_whole_and_as_a_stream(client: openai.AsyncOpenAI) -> None:
    wish: Any = {"model": FAST.model, "messages": CHAT, "max_completion_tokens": 40, "seed": 3}
    whole = await client.chat.completions.create(**wish)
    (choice,) = whole.choices
    assert choice.message.content == text_of(PROMPT, 3, 40)
    assert (choice.finish_reason, choice.message.role) == ("length", "assistant")
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(PROMPT.split()), 40)
    streamed = await client.chat.completions.create(**wish, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in streamed]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == choice.message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage
    text = await client.completions.create(model=FAST.id, prompt="Say something.", max_tokens=9, seed=3, stop=" w5")
    assert (text.choices[0].text, text.choices[0].finish_reason) == (text_of("Say something.", 3, 5), "stop")


async def test_a_tool_is_called_and_its_answer_goes_on_with_the_chat(client: openai.AsyncOpenAI) -> None:
    ask: Any = {"role": "user", "content": "The weather in Paris? [call]"}
    wish: Any = {"model": FAST.model, "tools": [OFFER], "max_tokens": 30, "seed": 3}
    whole = await client.chat.completions.create(**wish, messages=[ask])
    (choice,) = whole.choices
    (call,) = choice.message.tool_calls or ()
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    word = digest(chatml([Turn("user", ask["content"])], [OFFER]), 3)
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": word})
    async with client.chat.completions.stream(**wish, messages=[ask]) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    assert [each.model_dump(include={"id", "function"}) for each in final.choices[0].message.tool_calls or ()] == [
        {**call.model_dump(include={"id"}), "function": {**call.function.model_dump(), "parsed_arguments": None}}
    ]
    turns = [ask, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    after = await client.chat.completions.create(**wish, messages=turns)
    assert after.choices[0].finish_reason == "length"
    assert after.choices[0].message.content


async def test_log_probabilities_are_told_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    wish: Any = {"model": FAST.model, "messages": CHAT, "max_tokens": 5, "seed": 3}
    whole = await client.chat.completions.create(**wish, logprobs=True, top_logprobs=2)
    assert whole.choices[0].logprobs is not None
    told = whole.choices[0].logprobs.content or []
    assert "".join(token.token for token in told) == whole.choices[0].message.content
    assert [[top.logprob for top in token.top_logprobs] for token in told] == [[0.0, -0.5]] * 5
    chunks = await client.chat.completions.create(**wish, logprobs=True, top_logprobs=2, stream=True)
    weights = [each.logprobs for each in [c.choices[0] async for c in chunks] if each.logprobs is not None]
    assert [token for each in weights for token in each.content or ()] == told
    text = await client.completions.create(model=FAST.id, prompt="Say.", max_tokens=3, logprobs=1)
    assert text.choices[0].logprobs is not None
    assert "".join(text.choices[0].logprobs.tokens or ()) == text.choices[0].text


async def test_log_probabilities_go_with_tools_and_in_responses(client: openai.AsyncOpenAI) -> None:
    """Allowed tools among them: only one that may be called is offered."""
    other: Any = {"type": "function", "function": {**OFFER["function"], "name": "other"}}
    allowed: Any = [{"type": "function", "function": {"name": "get_weather"}}]
    wish: Any = {"model": FAST.model, "tools": [other, OFFER], "max_tokens": 30, "seed": 3}
    wish |= {"logprobs": True, "top_logprobs": 2}
    for mode, ask in (("auto", "Say something."), ("required", "The weather?")):
        choice: Any = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}
        same: Any = {"extra_headers": {"X-Llorch-Task-Id": str(uuid.uuid4())}}
        asked: Any = {"messages": [{"role": "user", "content": ask}], "tool_choice": choice, **same}
        (whole,) = (await client.chat.completions.create(**wish, **asked)).choices
        streamed = await client.chat.completions.create(**wish, **asked, stream=True)
        pieces = [each.logprobs for each in [chunk.choices[0] async for chunk in streamed] if each.logprobs]
        assert whole.logprobs is not None
        told = whole.logprobs.content or []
        assert "".join(token.token for token in told) == (whole.message.content or "")
        assert [token for each in pieces for token in each.content or ()] == told
        assert [call.function.name for call in whole.message.tool_calls or () if call.type == "function"] == (
            ["get_weather"] if mode == "required" else []
        )
        assert len(told) == (0 if mode == "required" else 30)
    with pytest.raises(openai.BadRequestError, match="custom") as refused:
        await client.chat.completions.create(
            model=FAST.model, messages=CHAT, tools=[{"type": "custom", "custom": {"name": "free"}}]
        )
    assert refused.value.param == "tools[0].type"


async def test_the_synchronous_client_reads_the_same(system: System) -> None:
    def ask() -> tuple[str, str]:
        with openai.OpenAI(base_url=f"{system.url()}/v1", api_key=TOKEN, max_retries=0, timeout=60) as sync:
            wish: Any = {"model": FAST.model, "messages": CHAT, "max_tokens": 12, "seed": 4, "stop": " w5"}
            with sync.chat.completions.stream(**wish) as stream:
                final = stream.get_final_completion()
            return final.choices[0].message.content or "", sync.models.list().data[0].id

    assert await asyncio.to_thread(ask) == (text_of(PROMPT, 4, 5), "mock:slow")


async def test_models_are_listed_and_found_by_both_names(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["mock:slow", "mock:words"]
    for name in (FAST.model, FAST.id):
        assert (await client.models.retrieve(name)).id == FAST.model


async def test_errors_are_the_clients_own_kinds(system: System, client: openai.AsyncOpenAI) -> None:
    wish: Any = {"model": FAST.model, "messages": CHAT}
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(**{**wish, "model": "gpt-4"})
    assert (unknown.value.param, unknown.value.code) == ("model", "INVALID_PARAMS")
    with pytest.raises(openai.BadRequestError, match="logit_bias is not served") as bias:
        await client.chat.completions.create(**wish, logit_bias={"1": 1})
    assert bias.value.param == "logit_bias"
    with pytest.raises(openai.BadRequestError, match="do not fit"):
        await client.chat.completions.create(**wish, max_tokens=40_000)
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="the prompt has 9000 tokens"):
            await client.completions.create(model=FAST.model, prompt="a " * 9000, stream=stream)
    with pytest.raises(openai.AuthenticationError) as stranger:
        await client.with_options(api_key="sk-of-nobody").models.list()
    assert stranger.value.code == "BAD_TOKEN"
    assert stranger.value.request_id


async def test_a_full_queue_is_a_rate_limit_and_who_hangs_up_cancels(
    system: System, client: openai.AsyncOpenAI
) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    running = await client.chat.completions.create(**LONG, stream=True, extra_headers={"X-Llorch-Task-Id": first})
    assert task_of((await anext(running)).id) == first
    waits = client.chat.completions.create(**LONG, extra_headers={"X-Llorch-Task-Id": second})
    waiting = asyncio.ensure_future(waits)
    await system.until(lambda: known(system, second), "the second task to be in the queue", 30)
    with pytest.raises(openai.RateLimitError) as full:
        await client.chat.completions.create(**LONG)
    assert full.value.code == "ADMISSION_REJECT"
    assert int(full.value.response.headers["retry-after"]) >= 1
    assert int(full.value.response.headers["retry-after-ms"]) >= 1
    waiting.cancel()
    await asyncio.wait({waiting})
    await running.close()
    assert [await ended(system, each) for each in (first, second)] == [TaskState.CANCELLED] * 2
    assert await system.busy_slots(SLOW.model) == 0


async def test_one_task_id_is_one_answer(client: openai.AsyncOpenAI) -> None:
    wish: Any = {"model": FAST.model, "messages": CHAT, "max_tokens": 12, "extra_body": {"llorch": {}}}
    wish["extra_body"]["llorch"] = {"task_id": str(uuid.uuid4()), "priority": "batch"}
    answers = [await client.chat.completions.create(**wish) for _ in range(2)]
    assert answers[0].choices == answers[1].choices
    assert answers[0].id == answers[1].id


async def test_an_answer_that_breaks_off_is_an_error_in_the_stream(system: System, client: openai.AsyncOpenAI) -> None:
    await system.fault(SLOW.model, {"kind": "reset", "after": 3, "times": 1})
    running = await client.chat.completions.create(**LONG, stream=True, extra_headers={"X-Llorch-Failover": "fail"})
    texts: list[str] = []

    async def read() -> None:
        async for chunk in running:
            texts.extend(choice.delta.content for choice in chunk.choices if choice.delta.content)

    with pytest.raises(openai.APIError) as broken:
        await read()
    assert broken.value.code == "WORKER_RESET"
    assert "".join(texts).split()[1:] == ["w1", "w2"]


async def test_an_answer_goes_on_when_its_engine_is_lost(system: System, client: openai.AsyncOpenAI) -> None:
    await system.fault(SLOW.model, {"kind": "reset", "after": 3, "times": 1})
    whole = await client.chat.completions.create(**{**LONG, "max_tokens": 6}, seed=5)
    begun = text_of(PROMPT, 5, 3)
    assert whole.choices[0].message.content == begun + text_of(PROMPT + begun, 5, 3)
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(PROMPT.split()), 6)


async def test_two_clients_at_once_read_each_its_own(client: openai.AsyncOpenAI) -> None:
    async def one(seed: int) -> str:
        wish: Any = {"model": FAST.model, "messages": CHAT, "max_tokens": 50, "seed": seed, "stream": True}
        chunks = [chunk async for chunk in await client.chat.completions.create(**wish)]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    assert await asyncio.gather(one(1), one(2)) == [text_of(PROMPT, 1, 50), text_of(PROMPT, 2, 50)]


async def test_responses_are_made_whole_and_streamed(client: openai.AsyncOpenAI) -> None:
    wish: Any = {"model": FAST.model, "instructions": "Be brief.", "input": "Say something.", "max_output_tokens": 40}
    same: Any = {"extra_headers": {"X-Llorch-Task-Id": str(uuid.uuid4())}}
    whole = await client.responses.create(**wish, **same)
    assert len(whole.output_text.split()) == 40
    assert whole.incomplete_details is not None
    assert whole.usage is not None
    assert (whole.status, whole.usage.input_tokens, whole.usage.output_tokens) == (
        "incomplete",
        len(PROMPT.split()),
        40,
    )
    stream = await client.responses.create(**wish, **same, stream=True)
    got = [event async for event in stream]
    assert "".join(event.delta for event in got if event.type == "response.output_text.delta") == whole.output_text
    assert got[-1].type == "response.incomplete"
    assert got[-1].response.output == whole.output, "it is the same task"
    async with client.responses.stream(**wish, **same) as helper:
        async for _ in helper:
            pass
    weighed: Any = {**wish, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    same["extra_headers"] = {"X-Llorch-Task-Id": str(uuid.uuid4())}
    whole = await client.responses.create(**weighed, **same)
    (message,) = whole.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert "".join(token.token for token in part.logprobs or ()) == part.text
    assert all(
        len(token.top_logprobs) == 2 and token.bytes == list(token.token.encode()) for token in part.logprobs or ()
    )
    got = [event async for event in await client.responses.create(**weighed, **same, stream=True)]
    told = [each for event in got if event.type == "response.output_text.delta" for each in event.logprobs]
    assert [token.logprob for token in told] == [token.logprob for token in part.logprobs or ()]
    assert [each.logprobs for each in got if each.type == "response.output_text.done"] != [[]]
    assert got[-1].type == "response.incomplete"
    assert got[-1].response.output == whole.output
    with pytest.raises(openai.BadRequestError, match="previous_response_id is not served"):
        await client.responses.create(**wish, previous_response_id=whole.id)


async def test_a_response_calls_a_tool_and_goes_on(client: openai.AsyncOpenAI) -> None:
    tool: Any = {"type": "function", "strict": True, **OFFER["function"]}
    ask: Any = {"role": "user", "content": "The weather in Paris?"}
    wish: Any = {"model": FAST.model, "tools": [tool], "max_output_tokens": 30}
    called = await client.responses.create(**wish, input=[ask], tool_choice="required")
    (call,) = called.output
    assert call.type == "function_call"
    assert (called.status, call.name, list(json.loads(call.arguments))) == ("completed", "get_weather", ["city"])
    async with client.responses.stream(**wish, input=[ask], tool_choice="required") as stream:
        final = await stream.get_final_response()
    (again,) = final.output
    assert again.type == "function_call"
    assert list(json.loads(again.arguments)) == ["city"]
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    after = await client.responses.create(**wish, input=[ask, call, result])
    assert after.output_text


WEATHER: Final[Any] = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": OFFER["function"]["parameters"],
}


@pytest.fixture(scope="module")
async def claude(system: System) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=system.url(), api_key=TOKEN, max_retries=0, timeout=60) as opened:
        yield opened


async def test_anthropics_client_gets_messages_whole_and_streamed(claude: anthropic.AsyncAnthropic) -> None:
    turn: Any = {"role": "user", "content": [{"type": "text", "text": "Say something."}]}
    wish: Any = {"model": FAST.model, "system": "Be brief.", "messages": [turn], "max_tokens": 40}
    same: Any = {"extra_headers": {"X-Llorch-Task-Id": str(uuid.uuid4())}}
    whole = await claude.messages.create(**wish, **same)
    (block,) = whole.content
    assert block.type == "text"
    assert len(block.text.split()) == 40
    assert whole.stop_reason == "max_tokens"
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (len(PROMPT.split()), 40)
    async with claude.messages.stream(**wish, **same) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert (text, final.stop_reason) == (block.text, "max_tokens"), "it is the same task"
    assert (final.usage.input_tokens, final.usage.output_tokens) == (len(PROMPT.split()), 40)
    stopped = await claude.messages.create(**wish, stop_sequences=[" w5"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " w5")


async def test_anthropics_client_calls_tools_and_goes_on(claude: anthropic.AsyncAnthropic) -> None:
    ask: Any = {"role": "user", "content": "The weather in Paris?"}
    wish: Any = {"model": FAST.model, "tools": [WEATHER], "max_tokens": 30}
    called = await claude.messages.create(**wish, messages=[ask], tool_choice={"type": "any"})
    (use,) = called.content
    assert use.type == "tool_use"
    assert (called.stop_reason, use.name, list(use.input)) == ("tool_use", "get_weather", ["city"])
    async with claude.messages.stream(**wish, messages=[ask], tool_choice={"type": "tool", "name": use.name}) as stream:
        final = await stream.get_final_message()
    (again,) = final.content
    assert again.type == "tool_use"
    assert (final.stop_reason, again.name, list(again.input)) == ("tool_use", "get_weather", ["city"])
    result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    turns: Any = [ask, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    after = await claude.messages.create(**wish, messages=turns)
    assert after.content[0].type == "text"


async def test_errors_are_the_kinds_of_anthropics_client(claude: anthropic.AsyncAnthropic) -> None:
    wish: Any = {"model": FAST.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
    with pytest.raises(anthropic.NotFoundError) as unknown:
        await claude.messages.create(**{**wish, "model": "claude"})
    assert unknown.value.request_id
    body: Any = unknown.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "not_found_error")
    turns: Any = [{"role": "user", "content": "a " * 9000}]
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError, match="the prompt has"):
            await claude.messages.create(**{**wish, "messages": turns}, stream=stream)
    with pytest.raises(anthropic.AuthenticationError):
        await claude.with_options(api_key="sk-of-nobody").messages.create(**wish)
