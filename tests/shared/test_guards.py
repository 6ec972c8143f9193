"""Guards of a request alone: what it gives its workload, and how its output is bound."""

from functools import reduce
from typing import Any

import msgspec
import pytest

from llorch_shared.errors import OrchError
from llorch_shared.guards import NESTING_MAX, check_budget, check_content, check_pool, content_bytes, prompt_tokens_min
from llorch_shared.wire.spec import Pooling, PoolSpec
from llorch_shared.wire.task import (
    INPUTS_MAX,
    PROMPT_BYTES_MAX,
    SCHEMA_BYTES_MAX,
    ChatMessage,
    ChatRole,
    OutputMode,
    Sampling,
    TaskRequest,
    Tool,
    Workload,
)
from support.node_harness import task_request

DEEP: dict[str, Any] = reduce(lambda inner, _: {"anyOf": [inner]}, range(NESTING_MAX), {})
HI = ChatMessage(role=ChatRole.USER, content="Grüße")


def request(**changes: Any) -> TaskRequest:
    return msgspec.structs.replace(task_request(), **changes)


def test_the_bytes_of_a_chat_are_those_of_its_messages() -> None:
    chat = request(prompt=None, messages=(HI, HI))
    check_content(chat)
    assert content_bytes(chat) == 14
    assert prompt_tokens_min(chat) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": None}, "exactly one of prompt, messages and inputs"),
        ({"messages": (HI,)}, "exactly one of prompt, messages and inputs"),
        ({"prompt": None, "inputs": ("a",)}, "needs a prompt or messages"),
        ({"prompt": None, "messages": (HI,), "workload": Workload.EMBEDDING}, "needs inputs"),
        (
            {"prompt": "q", "inputs": ("a",), "workload": Workload.RERANK, "sampling": Sampling(top_k=1)},
            "takes no sampling",
        ),
        ({"response_schema": {"type": "object"}}, "goes with output_mode json"),
        (
            {"response_schema": {"description": "x" * SCHEMA_BYTES_MAX}, "output_mode": OutputMode.JSON},
            "bytes of response_schema",
        ),
        ({"response_schema": DEEP, "output_mode": OutputMode.JSON}, "nested more than"),
        ({"prompt": None, "messages": (HI,), "tools": (Tool(name="f", parameters=DEEP),)}, "nested more than"),
        (
            {"prompt": None, "messages": (ChatMessage(role=ChatRole.USER, content="x" * (PROMPT_BYTES_MAX + 1)),)},
            "bytes of prompt",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(OrchError, match=says):
        check_content(request(**changes))


EMBED: dict[str, Any] = {"workload": Workload.EMBEDDING, "prompt": None, "inputs": ("Käse", "b"), "max_tokens": 2}
RERANK: dict[str, Any] = {**EMBED, "workload": Workload.RERANK, "prompt": "query"}


def test_inputs_are_counted_together_and_fit_one_by_one() -> None:
    """A query is read with each document."""
    embedding = request(**EMBED)
    check_content(embedding)
    assert content_bytes(embedding) == 6
    rerank = request(**{**RERANK, "inputs": ("d" * 256, "e" * 300)})
    check_content(rerank)
    assert content_bytes(rerank) == 5 + 256 + 300
    assert prompt_tokens_min(rerank) == 3
    check_budget(request(**{**EMBED, "inputs": ("x" * 1280,) * 100, "max_tokens": 100, "ctx": 10}))
    with pytest.raises(OrchError, match="an input of at least 11 tokens does not fit ctx 10"):
        check_budget(request(**{**EMBED, "inputs": ("x" * 1281,), "ctx": 10}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({**EMBED, "inputs": ()}, "needs inputs"),
        ({**EMBED, "inputs": None}, "needs inputs"),
        ({**EMBED, "prompt": "too"}, "takes inputs and no prompt"),
        ({**RERANK, "prompt": None}, "takes a prompt, which is the query, and inputs"),
        ({**RERANK, "messages": (HI,)}, "takes a prompt, which is the query, and inputs"),
        ({**EMBED, "inputs": ("a", "")}, "takes no empty text"),
        ({**RERANK, "prompt": ""}, "takes no empty text"),
        ({**EMBED, "inputs": ("a", "b", "c")}, "max_tokens is 2 and there are 3 inputs"),
        ({**EMBED, "inputs": ("a",) * (INPUTS_MAX + 1), "max_tokens": 4_000}, "at most 2048 are taken"),
        ({**EMBED, "inputs": ("x" * PROMPT_BYTES_MAX, "y")}, "bytes of prompt"),
        ({**EMBED, "response_schema": {}}, "takes no response_schema"),
        ({**EMBED, "output_mode": OutputMode.JSON}, "takes no output_mode"),
    ],
)
def test_what_a_workload_with_inputs_does_not_take_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(OrchError, match=says):
        check_content(request(**changes))


def test_what_waits_is_served_by_the_model_that_the_pool_has_by_then() -> None:
    pool = PoolSpec(id="p", engine=request().engine, model="mock:other")
    check_pool(request(), pool, had_model=True)
    with pytest.raises(OrchError, match="does not serve model"):
        check_pool(request(), pool)


def test_a_pool_takes_the_workloads_that_it_serves() -> None:
    completions = PoolSpec(id="p", engine=request().engine, model=request().model_ref)
    embeddings = msgspec.structs.replace(completions, workloads=(Workload.EMBEDDING,), pooling=Pooling.MEAN)
    check_pool(request(), completions)
    check_pool(request(**EMBED), embeddings)
    for task, pool in ((request(), embeddings), (request(**EMBED), completions)):
        with pytest.raises(OrchError, match="does not serve the workload"):
            check_pool(task, pool)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"workloads": ["completion", "rerank"]}, "serves no other"),
        ({"workloads": []}, "length >= 1"),
        ({"pooling": "last"}, "pooling is of embeddings"),
        ({"workloads": ["embedding"], "pooling": "rank"}, "Invalid enum value"),
    ],
)
def test_workloads_that_no_engine_serves_together_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=says):
        msgspec.convert({"id": "p", "engine": "llamacpp", "model": "m", **fields}, PoolSpec)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 2.1},
        {"temperature": -0.1},
        {"top_p": 1.5},
        {"top_k": -1},
        {"min_p": 2},
        {"frequency_penalty": 3},
        {"presence_penalty": -3},
        {"stop": [""]},
        {"stop": ["x" * 257]},
        {"stop": ["x"] * 17},
        {"colour": 1},
    ],
)
def test_sampling_out_of_its_bounds_is_refused(sampling: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(sampling, Sampling)
