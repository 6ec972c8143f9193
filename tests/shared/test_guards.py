"""Guards of a request alone: what it gives its workload, and how its output is bound."""

from typing import Any

import msgspec
import pytest

from llorch_shared.errors import OrchError
from llorch_shared.guards import check_content, content_bytes, prompt_tokens_min
from llorch_shared.wire.task import (
    PROMPT_BYTES_MAX,
    SCHEMA_BYTES_MAX,
    ChatMessage,
    ChatRole,
    OutputMode,
    Sampling,
    TaskRequest,
    Workload,
)
from support.node_harness import task_request

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
            {"prompt": None, "inputs": ("a",), "workload": Workload.RERANK, "sampling": Sampling(top_k=1)},
            "takes no sampling",
        ),
        ({"response_schema": {"type": "object"}}, "goes with output_mode json"),
        (
            {"response_schema": {"description": "x" * SCHEMA_BYTES_MAX}, "output_mode": OutputMode.JSON},
            "bytes of response_schema",
        ),
        (
            {"prompt": None, "messages": (ChatMessage(role=ChatRole.USER, content="x" * (PROMPT_BYTES_MAX + 1)),)},
            "bytes of prompt",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(OrchError, match=says):
        check_content(request(**changes))


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
