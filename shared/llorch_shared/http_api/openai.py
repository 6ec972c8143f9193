"""What OpenAI's clients ask."""

from typing import Annotated, Any, Final

from msgspec import Meta

from llorch_shared.errors import ErrorCode
from llorch_shared.http_api.operation import BODY_ERRORS, EVENT_STREAM, Operation, Parameter, Plane, Reply, usual
from llorch_shared.wire.openai import (
    ChatCompletion,
    ChatCompletionRequest,
    Model,
    ModelList,
    OpenAiErrorBody,
    OpenAiFailover,
    TextCompletion,
    TextCompletionRequest,
)
from llorch_shared.wire.openai_responses import ResponseObject, ResponsesRequest
from llorch_shared.wire.openai_results import EmbeddingList, EmbeddingRequest, Ranking, RerankRequest
from llorch_shared.wire.task import Priority, TaskId

_OPENAI: Final[dict[str, Any]] = {"plane": Plane.DATA, "error_body": OpenAiErrorBody}
COMPLETION: Final[dict[str, Any]] = {
    **_OPENAI,
    "method": "POST",
    "parameters": (
        Parameter(name="X-Llorch-Priority", where="header", type=Priority, description="Class of the queue"),
        Parameter(
            name="X-Llorch-Deadline-Ms",
            where="header",
            type=Annotated[int, Meta(ge=1, le=2**53)],
            description="From admission to the last token; absent: 600,000",
        ),
        Parameter(name="X-Llorch-Session", where="header", type=TaskId, description="session_id of the task"),
        Parameter(name="X-Llorch-Failover", where="header", type=OpenAiFailover, description="When the engine is lost"),
        Parameter(
            name="X-Llorch-Task-Id",
            where="header",
            type=TaskId,
            description="The same id again is the same task and gives the same answer",
        ),
    ),
    "errors": (
        *usual(
            ErrorCode.INVALID_PARAMS,
            ErrorCode.DEADLINE_UNMET,
            ErrorCode.CANCELLED,
            ErrorCode.ADMISSION_REJECT,
            ErrorCode.QUEUE_FULL_DROP_LRU,
            ErrorCode.DECODE_TIMEOUT,
            ErrorCode.WORKER_RESET,
            ErrorCode.POOL_UNREADY,
            ErrorCode.POOL_UNAVAILABLE,
            ErrorCode.REPLICA_EXHAUSTED,
        ),
        (404, ErrorCode.INVALID_PARAMS),
        *BODY_ERRORS,
    ),
}
"""A request of an OpenAI client. What goes wrong once its stream has begun is the stream's last event."""

OPENAI: Final[tuple[Operation, ...]] = (
    Operation(
        path="/v1/chat/completions",
        operation_id="createChatCompletion",
        requirements=("FR-DP-001",),
        summary="A task as OpenAI's clients ask for it: a chat, whole or streamed",
        request=ChatCompletionRequest,
        replies=(
            Reply(status=200, description="The answer, whole or in chunks (`stream`)", body=ChatCompletion),
            Reply(status=200, description="", body=str, media_type=EVENT_STREAM),
        ),
        **COMPLETION,
    ),
    Operation(
        path="/v1/completions",
        operation_id="createCompletion",
        requirements=("FR-DP-001",),
        summary="A task as OpenAI's clients ask for it: a prompt, whole or streamed",
        request=TextCompletionRequest,
        replies=(
            Reply(status=200, description="The answer, whole or in chunks (`stream`)", body=TextCompletion),
            Reply(status=200, description="", body=str, media_type=EVENT_STREAM),
        ),
        **COMPLETION,
    ),
    Operation(
        path="/v1/responses",
        operation_id="createResponse",
        requirements=("FR-DP-001",),
        summary="A task as OpenAI's Responses API asks for it, whole or streamed. Nothing is stored",
        request=ResponsesRequest,
        replies=(
            Reply(status=200, description="The answer, whole or as events (`stream`)", body=ResponseObject),
            Reply(status=200, description="", body=str, media_type=EVENT_STREAM),
        ),
        **COMPLETION,
    ),
    Operation(
        path="/v1/embeddings",
        operation_id="createEmbedding",
        requirements=("FR-DP-001",),
        summary="An embedding task as OpenAI's clients ask for it",
        request=EmbeddingRequest,
        replies=(Reply(status=200, description="One vector for each text", body=EmbeddingList),),
        **COMPLETION,
    ),
    Operation(
        path="/v1/rerank",
        operation_id="createRanking",
        requirements=("FR-DP-001",),
        summary="A rerank task as clients of Jina, Cohere and vLLM ask for it",
        request=RerankRequest,
        replies=(Reply(status=200, description="The documents by their relevance", body=Ranking),),
        **COMPLETION,
    ),
    Operation(
        method="GET",
        path="/v1/models",
        operation_id="listModels",
        requirements=("ORCH-3095",),
        summary="Models that pools serve, as OpenAI's clients list them",
        replies=(Reply(status=200, description="One entry for each model", body=ModelList),),
        **_OPENAI,
    ),
    Operation(
        method="GET",
        path="/v1/models/{id}",
        operation_id="getModel",
        requirements=("ORCH-3095",),
        summary="One model, by a pool's model reference or a pool's id",
        parameters=(
            Parameter(
                name="id",
                where="path",
                type=Annotated[str, Meta(min_length=1, max_length=512)],
                description="May hold slashes",
                required=True,
            ),
        ),
        replies=(Reply(status=200, description="The model", body=Model),),
        errors=((404, ErrorCode.INVALID_PARAMS),),
        **_OPENAI,
    ),
)
