"""Wire types: old and new services read each other, and the outside is held to the letter."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llorch_shared.contracts.schemas import wire_types
from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.wire import audit, provision, registry, run, task
from llorch_shared.wire.frames import Started
from llorch_shared.wire.spec import POOL_DECODER, PoolSpec
from llorch_shared.wire.task import Engine, Priority, TaskRequest, TaskState
from support.client import task_request

WRITTEN_BY_THE_OUTSIDE = {
    "AllowedChoice",
    "AllowedToolChoice",
    "AllowedTools",
    "Artifact",
    "CalledFunction",
    "CatalogModel",
    "ChatCompletionRequest",
    "ChatMessage",
    "ChatTurn",
    "DrainRequest",
    "EmbeddingRequest",
    "Empty",
    "Extensions",
    "FunctionChoice",
    "FunctionTool",
    "InputItem",
    "JsonSchemaFormat",
    "Manifest",
    "MessageTool",
    "MessageToolChoice",
    "MessageTurn",
    "MessagesRequest",
    "ModelSpec",
    "NamedFunction",
    "NamedTool",
    "ObjectRef",
    "OfferedFunction",
    "OfferedTool",
    "OutputConfig",
    "OutputFormat",
    "PackageSpec",
    "Payload",
    "PlacementOverrides",
    "PoolRef",
    "PoolSpec",
    "ProvisioningSpec",
    "QueueSpec",
    "ReloadRequest",
    "RerankRequest",
    "ResponseFormat",
    "ResponsesRequest",
    "ResultWish",
    "Sampling",
    "Sbom",
    "SessionPolicy",
    "SessionRequest",
    "SessionsSpec",
    "Signature",
    "StateChange",
    "StreamOptions",
    "TaskRef",
    "TaskRequest",
    "Tenant",
    "TextBlock",
    "TextCompletionRequest",
    "TextFormat",
    "TextSettings",
    "Thinking",
    "TimeoutSpec",
    "Tool",
    "ToolCall",
    "ToolResultBlock",
    "ToolUseBlock",
    "TrustPolicy",
    "Wish",
}
RECORD = run.RunRecord(
    task_id="6f1d3c1e-64a0-4e1a-9f53-0b8f3f0f6a01",
    state=TaskState.PLACED,
    pool_id="p",
    lane="gw-1",
    correlation_id="c",
    tenant="default",
    priority=Priority.BATCH,
    admitted_ms=1,
    request=task_request(),
)


@pytest.mark.parametrize(("name", "kind"), wire_types().items())
def test_a_type_is_strict_exactly_when_the_outside_writes_it(name: str, kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.forbid_unknown_fields is (name in WRITTEN_BY_THE_OUTSIDE)


@pytest.mark.parametrize(("name", "kind"), wire_types().items())
def test_a_type_cannot_be_changed_once_made(name: str, kind: type[msgspec.Struct]) -> None:
    assert kind.__struct_config__.frozen, name


def test_a_record_of_a_newer_service_is_read_by_an_older_one() -> None:
    newer = {**json.loads(msgspec.json.encode(RECORD)), "shard": 7, "later": {"deep": [1]}}
    assert run.RUN_DECODER.decode(json.dumps(newer).encode()) == RECORD


def test_a_record_of_an_older_service_is_read_by_a_newer_one() -> None:
    """The fields a record had at first are enough; every later one has a default."""
    first = {
        "task_id": RECORD.task_id,
        "state": "running",
        "pool_id": "p",
        "lane": "gw-1",
        "correlation_id": "c",
        "tenant": "default",
        "priority": "batch",
        "admitted_ms": 1,
    }
    assert run.RUN_DECODER.decode(json.dumps(first).encode()).attempt == 1


@pytest.mark.parametrize(
    ("decoder", "value"),
    [
        (run.RUN_DECODER, RECORD),
        (run.PLACEMENT_DECODER, run.Placement(run=RECORD, run_seq=9)),
        (run.CANCEL_DECODER, run.CancelRequest(task_id=RECORD.task_id, reason="disconnect")),
        (run.LOCATED_DECODER, run.Located(found=False)),
        (task.REQUEST_DECODER, task_request(prompt="é\n\u2028", seed=7, kv_hint="cold")),
        (audit.AUDIT_DECODER, audit.AuditRecord(event=audit.AuditEvent.DONE, task_id="t", at_ms=1, actor="poold/1")),
        (registry.SCHEDULER_DECODER, registry.SchedulerRecord(instance="s", started_ms=2, renewed_ms=3)),
        (registry.LEASE_DECODER, registry.LeaseRecord(holder="s", epoch=2, renewed_ms=3)),
        (registry.FLOOR_DECODER, registry.RunFloor(seq=4)),
        (POOL_DECODER, PoolSpec(id="p", engine=Engine.MOCK, model="m", devices=(0, 2))),
    ],
)
def test_what_is_written_is_read_back_equal(decoder: "msgspec.json.Decoder[Any]", value: msgspec.Struct) -> None:
    assert decoder.decode(msgspec.json.encode(value)) == value


def test_an_outcome_of_provisioning_says_by_its_tag_what_it_is() -> None:
    engine = provision.PreparedEngine(engine=Engine.MOCK, mode="external", entry=("a",), engine_version="1")
    model = provision.ResolvedModel(model_ref="m", model_id="m", local_path="/m", size_bytes=1, digest="sha256:0")
    for result in (engine, model):
        event = provision.ProvisionEvent(job="j", node_id="n", target="t", done=True, result=result)
        assert provision.EVENT_DECODER.decode(msgspec.json.encode(event)).result == result


def test_an_internal_failure_travels_whole_in_the_record() -> None:
    failed = msgspec.structs.replace(
        RECORD, state=TaskState.FAILED, request=None, error=ErrorBody(code=ErrorCode.DECODE_TIMEOUT, message="m")
    )
    assert run.RUN_DECODER.decode(msgspec.json.encode(failed)) == failed
    assert b"request" not in msgspec.json.encode(failed)


VALID = msgspec.to_builtins(task_request())


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"task_id": "1"}, "$.task_id"),
        ({"task_id": VALID["task_id"] + "\n"}, "$.task_id"),
        ({"session_id": None}, "$.session_id"),
        ({"workload": "poetry"}, "$.workload"),
        ({"model_ref": ""}, "$.model_ref"),
        ({"model_ref": "m" * 513}, "$.model_ref"),
        ({"engine": "abacus"}, "$.engine"),
        ({"ctx": 0}, "$.ctx"),
        ({"ctx": -1}, "$.ctx"),
        ({"ctx": 32_769}, "$.ctx"),
        ({"ctx": 1.5}, "$.ctx"),
        ({"ctx": "8"}, "$.ctx"),
        ({"ctx": True}, "$.ctx"),
        ({"priority": "urgent"}, "$.priority"),
        ({"max_tokens": 0}, "$.max_tokens"),
        ({"max_tokens": 50_001}, "$.max_tokens"),
        ({"deadline_ms": 2**60}, "$.deadline_ms"),
        ({"seed": -1}, "$.seed"),
        ({"seed": 2**32 - 1}, "$.seed"),
        ({"determinism": "maybe"}, "$.determinism"),
        ({"sampler_profile_version": "v 1"}, "$.sampler_profile_version"),
        ({"prompt": 7}, "$.prompt"),
        ({"inputs": "a"}, "$.inputs"),
        ({"inputs": [1]}, "$.inputs[0]"),
        ({"placement": {"mode": "pin", "pin_pool_id": "a.b"}}, "$.placement.pin_pool_id"),
        ({"placement": {"where": "here"}}, "$.placement"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_request_is_refused_by_the_name_of_its_field(change: dict[str, Any], where: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        task.REQUEST_DECODER.decode(json.dumps({**VALID, **change}).encode())
    assert where in str(caught.value)


@pytest.mark.parametrize("name", [name for name in VALID if name not in ("prompt",)])
def test_a_request_without_a_required_field_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=name):
        task.REQUEST_DECODER.decode(json.dumps({key: value for key, value in VALID.items() if key != name}).encode())


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"task_id":"\xff"}', b'"' + b"a" * 9, b"[" * 2000]
)
def test_what_is_no_json_object_is_refused(payload: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError, RecursionError)):
        task.REQUEST_DECODER.decode(payload)


@given(prompt=st.text(max_size=200), seed=st.integers(0, 2**32 - 2) | st.none(), ctx=st.integers(1, 32_768))
def test_any_valid_request_survives_the_bus(prompt: str, seed: int | None, ctx: int) -> None:
    request = task_request(prompt=prompt, seed=seed, ctx=ctx)
    assert task.REQUEST_DECODER.decode(msgspec.json.encode(request)) == request
    assert b"\n" not in msgspec.json.encode(request)


def test_defaults_are_those_of_the_requirements() -> None:
    request = task.REQUEST_DECODER.decode(json.dumps(VALID).encode())
    assert (request.determinism, request.sampler_profile_version, request.output_mode) == ("strict", "v1", "text")
    assert request.placement is None
    assert task.PlacementOverrides().allow_fallback


def test_the_engines_of_the_requirements_come_first() -> None:
    assert [engine.value for engine in Engine][:4] == ["llamacpp", "vllm", "tgi", "triton"]


def test_an_accepted_task_writes_every_field() -> None:
    accepted = task.TaskAccepted(task_id="t", queue_position=0, predicted_start_ms=0, correlation_id="c")
    assert json.loads(msgspec.json.encode(accepted)) == {
        "task_id": "t",
        "queue_position": 0,
        "predicted_start_ms": 0,
        "backoff_ms": 0,
        "correlation_id": "c",
    }


def test_started_keeps_a_seed_of_zero() -> None:
    started = Started(queue_position=0, predicted_start_ms=0, seed=0)
    assert json.loads(msgspec.json.encode(started))["seed"] == 0


def test_the_largest_request_fits_one_bus_message() -> None:
    request = task_request(prompt="p" * task.INLINE_BYTES_MAX, model_ref="m" * 512)
    assert len(msgspec.json.encode(request)) < 1024 * 1024 - 4096
    assert isinstance(request, TaskRequest)
