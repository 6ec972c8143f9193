"""What Anthropic's clients ask."""

from typing import Final

from llorch_shared.http_api.openai import COMPLETION
from llorch_shared.http_api.operation import EVENT_STREAM, Operation, Reply
from llorch_shared.wire.anthropic import AnthropicErrorBody, Message, MessagesRequest

ANTHROPIC: Final[tuple[Operation, ...]] = (
    Operation(
        path="/v1/messages",
        operation_id="createMessage",
        requirements=("FR-DP-001",),
        summary="A task as Anthropic's clients ask for it: a chat, whole or streamed",
        request=MessagesRequest,
        replies=(
            Reply(status=200, description="The answer, whole or as events (`stream`)", body=Message),
            Reply(status=200, description="", body=str, media_type=EVENT_STREAM),
        ),
        **{**COMPLETION, "error_body": AnthropicErrorBody},
    ),
)
