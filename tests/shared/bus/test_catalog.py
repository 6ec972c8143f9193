"""The catalog bucket on both buses: of two who change an entry both count, and a forgotten id can be used again."""

import asyncio

import msgspec
import pytest

from llorch_shared import streams
from llorch_shared.bus.port import Bus
from llorch_shared.catalog import Catalog, Taken
from llorch_shared.wire.catalog import CatalogEntry, ModelState, TrustPolicy

ENTRY = CatalogEntry(
    id="m",
    digest=f"sha256:{'a' * 64}",
    source_url="file:/m",
    tags=(),
    manifests=(),
    signatures=(),
    sbom=None,
    trust_policy=TrustPolicy(),
    state=ModelState.ACTIVE,
    warnings=(),
    created_ms=1,
    changed_ms=1,
)


async def test_entries_are_made_once_changed_by_all_and_forgotten(bus: Bus, other: Bus) -> None:
    await bus.ensure(streams.base(token_bytes_max=16 * 1024 * 1024))
    sides = (Catalog(bus), Catalog(other))
    made = await asyncio.gather(*(side.create(ENTRY) for side in sides), return_exceptions=True)
    assert [isinstance(one, Taken) for one in made].count(True) == 1

    def tagged(entry: CatalogEntry) -> CatalogEntry:
        return msgspec.structs.replace(entry, tags=(*entry.tags, "x"))

    await asyncio.gather(*(side.change("m", tagged) for side in sides))
    kept = await sides[0].get("m")
    assert kept is not None
    assert kept.entry.tags == ("x", "x")
    assert await sides[1].all() == [kept]
    assert await sides[0].change("none", tagged) is None
    assert [await side.delete("m") for side in sides] == [kept.seq + 1, 0]
    assert (await sides[0].all(), await sides[1].get("m")) == ([], None)
    with pytest.raises(Taken):
        await asyncio.gather(*(side.create(ENTRY) for side in sides))
