"""Artifacts over HTTP and on the bus: kept once, read back, and not shown to other tenants."""

from functools import reduce
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_shared import subjects
from llorch_shared.wire.artifacts import ArtifactList, ArtifactRef, StoredArtifact
from support.gateways import Cluster, Door
from support.tokens import bearer, write_tokens

ALICE, BOB, STATIC = bearer("alice-token"), bearer("bob-token"), bearer("static")
PLAN = {"kind": "plan", "content": {"steps": ["a"]}, "tags": ["task:1"], "metadata": {"by": "me"}}
DEEP: dict[str, Any] = reduce(lambda inner, _: {"a": inner}, range(200), {})


@pytest.fixture
async def door(cluster: Cluster, tmp_path: Path) -> Door:
    write_tokens(tmp_path / "tokens.toml", alice="blue", bob="red")
    return await cluster.gateway(token="static", tokens_file=str(tmp_path / "tokens.toml"))


def json(**changes: Any) -> bytes:
    return msgspec.json.encode({**PLAN, **changes})


async def test_an_artifact_is_kept_read_and_listed_by_its_tenant(door: Door) -> None:
    replies = [await door.post("/v1/artifacts", json(), **ALICE) for _ in range(2)]
    assert [reply.status for reply in replies] == [201, 201]
    ref = replies[0].json(ArtifactRef)
    assert replies[1].json(ArtifactRef) == ref
    assert ref.id == ref.digest
    whole = (await door.get(f"/v1/artifacts/{ref.id}", **ALICE)).json(StoredArtifact)
    assert (whole.content, whole.metadata, whole.tags) == (PLAN["content"], PLAN["metadata"], ("task:1",))
    for headers, count in ((ALICE, 1), (BOB, 0), (STATIC, 1)):
        page = (await door.get("/v1/artifacts?kind=plan&tag=task:1&limit=5", **headers)).json(ArtifactList)
        assert (len(page.artifacts), page.cursor) == (count, None)
    missing = f"sha256:{'0' * 64}"
    theirs, none = [await door.get(f"/v1/artifacts/{one}", **BOB) for one in (ref.id, missing)]
    assert theirs.status == none.status == 404
    assert theirs.body.replace(ref.id.encode(), b"") == none.body.replace(missing.encode(), b"")


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "poem"},
        {"content": "text"},
        {"colour": 1},
        {"tags": ["a b"]},
        {"tags": ["x"] * 33},
        {"parent": "sha256:1"},
        {"content": DEEP},
        {"metadata": DEEP},
        {"parent": f"sha256:{'0' * 64}"},
    ],
)
async def test_what_is_no_artifact_is_refused(door: Door, changes: dict[str, Any]) -> None:
    reply = await door.post("/v1/artifacts", json(**changes), **ALICE)
    assert reply.status == 400, reply.body


@pytest.mark.parametrize("query", ["kind=poem", "limit=0", "limit=201", "cursor=x", "tag=a%20b"])
async def test_a_list_is_asked_for_in_its_own_words(door: Door, query: str) -> None:
    assert (await door.get(f"/v1/artifacts?{query}", **ALICE)).status == 400


async def test_an_answer_that_no_message_holds_is_refused_on_the_bus(cluster: Cluster, door: Door) -> None:
    ref = (await door.post("/v1/artifacts", json(content={"text": "x" * 2**20}), **STATIC)).json(ArtifactRef)
    payload = msgspec.json.encode({"artifact_id": ref.id})
    answer = await cluster.bus.request(subjects.api("artifacts.get"), payload, timeout_s=15)
    assert answer.headers["Nats-Service-Error-Code"] == "413"


async def test_bus_clients_have_the_same_operations(cluster: Cluster, door: Door) -> None:
    async def ask(verb: str, **fields: Any) -> bytes:
        return (await cluster.bus.request(subjects.api(f"artifacts.{verb}"), msgspec.json.encode(fields))).data

    ref = msgspec.json.decode(await ask("create", **PLAN), type=ArtifactRef)
    assert msgspec.json.decode(await ask("get", artifact_id=ref.id), type=StoredArtifact).content == PLAN["content"]
    assert msgspec.json.decode(await ask("list", tag="task:1", limit=3), type=ArtifactList).artifacts == (ref,)
