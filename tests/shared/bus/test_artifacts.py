"""Artifacts on both buses: one for the same document, seen by its tenant, found by kind and tag page by page."""

import asyncio
from typing import Any

import msgspec
import pytest

from llorch_shared import streams
from llorch_shared.artifacts import Artifacts, UnknownParent
from llorch_shared.bus.port import Bus
from llorch_shared.wire.artifacts import ARTIFACT_DECODER, Artifact, ArtifactKind, canonical


def plan(number: int = 0, **changes: Any) -> Artifact:
    fields = {"kind": "plan", "content": {"steps": [number], "a": 1}, "tags": ["x", f"n:{number % 2}"], **changes}
    return msgspec.convert(fields, Artifact)


@pytest.fixture
async def artifacts(bus: Bus) -> Artifacts:
    await bus.ensure(streams.base(token_bytes_max=16 * 1024 * 1024))
    return Artifacts(bus)


def test_the_id_does_not_depend_on_how_a_document_is_written() -> None:
    one = ARTIFACT_DECODER.decode(b'{"kind":"plan","content":{"b":{"y":1,"x":2},"a":1},"tags":[]}')
    other = ARTIFACT_DECODER.decode(b' {"content": {"a":1, "b": {"x":2,"y":1}}, "kind":"plan", "metadata":{}}')
    assert canonical(one) == canonical(other) == b'{"content":{"a":1,"b":{"x":2,"y":1}},"kind":"plan"}'


async def test_the_same_document_is_one_artifact_of_each_tenant(artifacts: Artifacts, bus: Bus, other: Bus) -> None:
    refs = await asyncio.gather(*(side.create(plan(), "blue") for side in (artifacts, Artifacts(other)) * 2))
    assert len({ref.id for ref in refs}) == 1
    first = await artifacts.create(plan(), "blue")
    assert (await bus.stream_state(streams.ARTIFACTS)).messages == 1
    found = await artifacts.get(first.id, "blue")
    assert found is not None
    assert (found.created_ms, found.content, found.tags) == (first.created_ms, plan().content, plan().tags)
    assert await artifacts.get(first.id, "red") is None
    assert await artifacts.get(first.id, None) == found
    await artifacts.create(plan(), "red")
    assert (await artifacts.page("red", limit=9)).artifacts[0].id == first.id
    assert len((await artifacts.page(None, limit=9)).artifacts) == 2


async def test_a_parent_must_be_there_and_the_tenants_own(artifacts: Artifacts) -> None:
    first = await artifacts.create(plan(), "blue")
    child = plan(1, parent=first.id)
    with pytest.raises(UnknownParent):
        await artifacts.create(child, "red")
    assert (await artifacts.create(child, "blue")).parent == first.id


async def test_a_list_is_read_in_pages_by_kind_and_tag(artifacts: Artifacts) -> None:
    ids = [(await artifacts.create(plan(number), "blue")).id for number in range(5)]
    await artifacts.create(plan(9, kind="diff"), "blue")
    seen: list[str] = []
    after = 0
    while True:
        page = await artifacts.page("blue", kind=ArtifactKind.PLAN, after=after, limit=2)
        assert len(page.artifacts) <= 2
        seen += [ref.id for ref in page.artifacts]
        if page.cursor is None:
            break
        after = int(page.cursor)
    assert seen == ids
    tagged = await artifacts.page("blue", tag="n:1", limit=9)
    assert [ref.id for ref in tagged.artifacts][:2] == [ids[1], ids[3]]
    assert len(tagged.artifacts) == 3
    assert (await artifacts.page("blue", tag="none", limit=9)).artifacts == ()
