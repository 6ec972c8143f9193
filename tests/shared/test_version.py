"""Versions of messages: a newer one is told from garbage, and neither is half understood."""

from typing import Any

import msgspec
import pytest

from llorch_shared.guards import check_request
from llorch_shared.wire.objects import ObjectRef
from llorch_shared.wire.provisioning_spec import ProvisioningMode, ProvisioningSpec, SourceSpec
from llorch_shared.wire.spec import POOL_DECODER, Pooling, PoolSpec
from llorch_shared.wire.task import (
    REQUEST_DECODER,
    CalledFunction,
    ChatMessage,
    ChatRole,
    Engine,
    Failover,
    OutputMode,
    Sampling,
    TaskRequest,
    Tool,
    ToolCall,
    Workload,
)
from llorch_shared.wire.version import (
    VERSION_HEADER,
    VERSIONS,
    Kind,
    NewerVersion,
    Unreadable,
    check_version,
    decode,
    is_newer,
    spec_headers,
    version_headers,
)
from support.node_harness import task_request


@pytest.mark.parametrize("kind", Kind)
def test_plain_json_without_a_version_is_version_one(kind: Kind) -> None:
    check_version(kind, {})
    check_version(kind, {VERSION_HEADER: "1"})
    assert version_headers(kind) == {VERSION_HEADER: "1"}, "written with the oldest version that can say it"


def test_only_what_uses_a_new_field_is_of_the_new_version() -> None:
    old = task_request()
    assert b"failover" not in msgspec.json.encode(old), "an earlier release reads it"
    assert msgspec.convert({**msgspec.to_builtins(old), "failover": "resume"}, TaskRequest) == old
    for kind in (Kind.ADMISSION, Kind.PLACEMENT, Kind.RUN):
        assert version_headers(kind, old) == {VERSION_HEADER: "1"}
        for failover in (Failover.RESTART, Failover.FAIL):
            new = msgspec.structs.replace(old, failover=failover)
            headers = version_headers(kind, new)
            assert headers == {VERSION_HEADER: "2"}
            assert decode(kind, REQUEST_DECODER, msgspec.json.encode(new), headers) == new


def test_a_pool_of_completions_is_written_as_the_release_before_reads_it() -> None:
    pool = PoolSpec(id="p", engine=Engine.MOCK, model="m")
    assert spec_headers(pool) == {VERSION_HEADER: "1"}
    assert b"workloads" not in msgspec.json.encode(pool)
    assert b"pooling" not in msgspec.json.encode(pool)
    for new in ({"workloads": (Workload.EMBEDDING,)}, {"workloads": (Workload.EMBEDDING,), "pooling": Pooling.LAST}):
        changed = msgspec.structs.replace(pool, **new)
        headers = spec_headers(changed)
        assert headers == {VERSION_HEADER: "2"}
        assert decode(Kind.SPEC, POOL_DECODER, msgspec.json.encode(changed), headers) == changed


def test_a_pool_whose_engine_is_built_or_has_ports_of_its_own_is_of_version_three() -> None:
    for new in (
        {"mode": ProvisioningMode.SOURCE, "source": SourceSpec(repo="https://host/engine", ref="0f1e")},
        {"ports": (8100,)},
    ):
        pool = PoolSpec(id="p", engine=Engine.VLLM, model="m", provisioning=ProvisioningSpec(**new))
        headers = spec_headers(pool)
        assert headers == {VERSION_HEADER: "3"}
        assert decode(Kind.SPEC, POOL_DECODER, msgspec.json.encode(pool), headers) == pool


CALL = ToolCall(id="c", function=CalledFunction(name="f", arguments="{}"))
CHAT = (ChatMessage(role=ChatRole.SYSTEM, content="Be brief."), ChatMessage(role=ChatRole.USER, content="Hi"))


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": None, "messages": CHAT},
        {"sampling": Sampling(temperature=0.0, stop=("\n",)), "failover": Failover.FAIL},
        {"sampling": Sampling()},
        {"response_schema": {"type": "object"}, "output_mode": OutputMode.JSON},
    ],
    ids=["messages", "sampling", "empty sampling", "schema"],
)
def test_chats_sampling_and_schemas_are_of_version_three(changes: dict[str, Any]) -> None:
    request = msgspec.structs.replace(task_request(), **changes)
    check_request(request)
    for kind in (Kind.ADMISSION, Kind.PLACEMENT, Kind.RUN):
        headers = version_headers(kind, request)
        assert headers == {VERSION_HEADER: "3"}
        assert decode(kind, REQUEST_DECODER, msgspec.json.encode(request), headers) == request


def test_a_prompt_by_reference_is_of_version_four() -> None:
    ref = ObjectRef(digest=f"sha256:{'0' * 64}", bytes=1_000_000)
    request = msgspec.structs.replace(task_request(), prompt=None, payload_ref=ref)
    check_request(request)
    for kind in (Kind.ADMISSION, Kind.PLACEMENT, Kind.RUN):
        headers = version_headers(kind, request)
        assert headers == {VERSION_HEADER: "4"}
        assert decode(kind, REQUEST_DECODER, msgspec.json.encode(request), headers) == request


@pytest.mark.parametrize(
    "changes",
    [
        {"tools": (Tool(name="f"),)},
        {"messages": (*CHAT, ChatMessage(role=ChatRole.TOOL, content="9", tool_call_id="c"))},
        {"messages": (*CHAT, ChatMessage(role=ChatRole.ASSISTANT, content="", tool_calls=(CALL,)))},
        {"top_logprobs": 0},
    ],
    ids=["tools", "a tool's answer", "a call", "logprobs"],
)
def test_tools_and_logprobs_are_of_version_four(changes: dict[str, Any]) -> None:
    request = msgspec.structs.replace(task_request(), prompt=None, **{"messages": CHAT, **changes})
    check_request(request)
    for kind in (Kind.ADMISSION, Kind.PLACEMENT, Kind.RUN):
        headers = version_headers(kind, request)
        assert headers == {VERSION_HEADER: "4"}
        assert decode(kind, REQUEST_DECODER, msgspec.json.encode(request), headers) == request


def test_an_override_is_of_version_five() -> None:
    request = msgspec.structs.replace(task_request(), override=True)
    check_request(request)
    for kind in (Kind.ADMISSION, Kind.PLACEMENT, Kind.RUN):
        headers = version_headers(kind, request)
        assert headers == {VERSION_HEADER: "5"}
        assert VERSIONS[kind] == int(headers[VERSION_HEADER])
        assert decode(kind, REQUEST_DECODER, msgspec.json.encode(request), headers) == request


def test_a_newer_version_is_not_looked_at() -> None:
    headers = {VERSION_HEADER: str(VERSIONS[Kind.RUN] + 1)}
    with pytest.raises(NewerVersion, match="run of version 6"):
        decode(Kind.RUN, REQUEST_DECODER, b"not even json", headers)
    assert is_newer(Kind.RUN, headers)


def test_what_was_mended_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERSIONS, Kind.SPEC, 7)
    check_version(Kind.SPEC, {VERSION_HEADER: "7"})
    assert is_newer(Kind.RUN, {VERSION_HEADER: "7"}), "each kind has its own number"


@pytest.mark.parametrize("text", ["", "0", "-1", "two", "1.0", "²", "1" * 10])
def test_a_header_that_is_no_version_is_garbage_not_newer(text: str) -> None:
    with pytest.raises(Unreadable, match="not a version") as raised:
        check_version(Kind.ADMISSION, {VERSION_HEADER: text})
    assert not isinstance(raised.value, NewerVersion)
    assert not is_newer(Kind.ADMISSION, {VERSION_HEADER: text})


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b'{"task_id": "\xff"}', b"[]", b"{", b'{"x":' * 100_000, b"[" * 100_000, b"null"],
    ids=["nothing", "bytes", "not UTF-8", "array", "cut", "deep", "deep array", "null"],
)
def test_every_kind_of_garbage_is_one_error(data: bytes) -> None:
    class Open(msgspec.Struct):
        task_id: str = ""

    with pytest.raises(Unreadable):
        decode(Kind.ADMISSION, msgspec.json.Decoder(Open), data, {})
