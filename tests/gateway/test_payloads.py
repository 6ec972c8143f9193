"""Large prompts: in the object store before their task is admitted, whose message refers to them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_shared.errors import ErrorCode, PolicyLabel
from llorch_shared.objects import Objects
from llorch_shared.settings import NatsSettings
from llorch_shared.wire.objects import ObjectRef
from llorch_shared.wire.task import INLINE_BYTES_MAX, REQUEST_DECODER, Payload
from support.client import task_request
from support.gateways import Cluster, cluster_of, pool_spec
from support.tokens import bearer, write_tokens

MIB = 1024 * 1024
LARGE = "x" * 2_000_000
CTX = 32_768


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with cluster_of(pool_spec(ctx=CTX)) as one:
        yield one


async def objects_held(cluster: Cluster) -> int:
    return (await cluster.bus.stream_state("OBJ_ART")).messages


@pytest.mark.parametrize("chat", [False, True])
async def test_a_large_prompt_is_an_object_and_its_task_is_small(cluster: Cluster, chat: bool) -> None:
    door = await cluster.gateway()
    content: dict[str, Any] = {"messages": ({"role": "user", "content": LARGE},)} if chat else {"prompt": LARGE}
    request = task_request(ctx=CTX, **{"prompt": None, **content})
    for _ in range(2):
        reply = await door.post("/v1/tasks", msgspec.json.encode(request))
        assert reply.status == 202, reply.body
    [message] = await cluster.admissions()
    assert message.headers["Llorch-Version"] == "4"
    stored = REQUEST_DECODER.decode(message.data)
    assert (stored.prompt, stored.messages) == (None, None)
    assert stored.payload_ref is not None
    data = await Objects(cluster.bus).get(stored.payload_ref.digest)
    assert msgspec.json.decode(data, type=Payload) == Payload(prompt=request.prompt, messages=request.messages)
    assert await objects_held(cluster) == 5, "four chunks and one entry, although it was sent twice"


async def test_what_fits_a_message_is_in_it(cluster: Cluster) -> None:
    door = await cluster.gateway()
    request = task_request(ctx=CTX, prompt="x" * (INLINE_BYTES_MAX - 1_000))
    assert (await door.post("/v1/tasks", msgspec.json.encode(request))).status == 202
    [message] = await cluster.admissions()
    assert REQUEST_DECODER.decode(message.data) == request
    assert await objects_held(cluster) == 0


async def test_a_refused_task_leaves_no_object(cluster: Cluster) -> None:
    door = await cluster.gateway()
    for changes in ({"ctx": 8_192}, {"ctx": CTX, "deadline_ms": 0}, {"ctx": CTX, "model_ref": "mock:nothing"}):
        reply = await door.post("/v1/tasks", msgspec.json.encode(task_request(prompt=LARGE, **changes)))
        assert reply.status == 400
    assert await objects_held(cluster) == 0


async def test_a_reference_of_the_clients_own_must_be_to_something(cluster: Cluster, tmp_path: Path) -> None:
    write_tokens(tmp_path / "tokens.toml", alice="blue")
    door = await cluster.gateway(tokens_file=str(tmp_path / "tokens.toml"), auth_optional=True)
    ref = await Objects(cluster.bus).put(msgspec.json.encode(Payload(prompt="put by the client")))
    fits = task_request(prompt=None, payload_ref=msgspec.to_builtins(ref))
    assert (await door.post("/v1/tasks", msgspec.json.encode(fits))).status == 202
    for wrong in (ObjectRef(digest=f"sha256:{'0' * 64}", bytes=5), msgspec.structs.replace(ref, bytes=5)):
        request = task_request(prompt=None, payload_ref=msgspec.to_builtins(wrong))
        reply = await door.post("/v1/tasks", msgspec.json.encode(request))
        assert (reply.status, reply.error.code) == (400, ErrorCode.INVALID_PARAMS)
        assert "payload_ref" in reply.error.message
    fresh = task_request(prompt=None, payload_ref=msgspec.to_builtins(ref))
    reply = await door.post("/v1/tasks", msgspec.json.encode(fresh), **bearer("alice-token"))
    assert (reply.status, reply.error.code) == (400, ErrorCode.INVALID_PARAMS)
    assert "send the content itself" in reply.error.message


async def test_a_tenant_that_has_its_share_is_told_so_and_the_others_go_on(tmp_path: Path) -> None:
    """A share of 16 MiB holds one artifact of 15 and no large prompt beside it."""
    write_tokens(tmp_path / "tokens.toml", alice="blue", bob="red")
    async with cluster_of(pool_spec(ctx=CTX)) as cluster:
        cluster.nats = NatsSettings(tenant_object_bytes_max=16 * MIB)
        door = await cluster.gateway(token="static", tokens_file=str(tmp_path / "tokens.toml"))
        alice, bob = bearer("alice-token"), bearer("bob-token")
        artifact = msgspec.json.encode({"kind": "other", "content": {"text": "x" * 15 * MIB}})
        assert (await door.post("/v1/artifacts", artifact, **alice)).status == 201
        large = [msgspec.json.encode(task_request(ctx=CTX, prompt=LARGE)) for _ in range(2)]
        refusals = [
            await door.post("/v1/tasks", large[0], **alice),
            await door.post("/v1/artifacts", artifact.replace(b"xx", b"yy", 1), **alice),
        ]
        for refused in refusals:
            assert (refused.status, refused.error.policy_label) == (429, PolicyLabel.OBJECT_QUOTA)
            assert refused.error.retriable
            assert int(refused.headers["retry-after"]) == 60
        assert (await door.post("/v1/artifacts", artifact, **alice)).status == 201, "it is there already"
        small = msgspec.json.encode(task_request(ctx=CTX))
        assert (await door.post("/v1/tasks", small, **alice)).status == 202
        assert (await door.post("/v1/tasks", large[1], **bob)).status == 202
