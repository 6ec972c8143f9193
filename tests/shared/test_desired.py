"""Changes of the desired state: versions, wishes about pools, tenants, and what is audited."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from llorch_shared import streams
from llorch_shared.bus.memory import MemoryBus
from llorch_shared.bus.memory_server import MemoryServer
from llorch_shared.bus.port import Bus, WrongSequence
from llorch_shared.desired import orders, pools, tenants
from llorch_shared.desired.entries import Author
from llorch_shared.desired.orders import Underway
from llorch_shared.desired.pools import DRAINS, POOLS, RELOADS, Exists, HiddenValue, NotThere
from llorch_shared.desired.tenants import TENANTS
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.desired import ReloadState, Tenant
from llorch_shared.wire.provisioning_spec import ProvisioningSpec
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine

CHAT = PoolSpec(id="chat", engine=Engine.MOCK, model="mock:words", provisioning=ProvisioningSpec(env={"KEY": "abc"}))


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    made: Bus = MemoryBus(MemoryServer(), name="test")
    await made.ensure(streams.base())
    yield made
    await made.close()


@pytest.fixture
def audits() -> list[AuditRecord]:
    return []


@pytest.fixture
def by(audits: list[AuditRecord]) -> Author:
    async def record(one: AuditRecord) -> None:
        audits.append(one)

    return Author("gateway/g1", "token:abc123", record, channel="http", correlation_id="c-1")


async def test_a_pool_is_made_once(bus: Bus, by: Author, audits: list[AuditRecord]) -> None:
    made = await pools.create(bus, CHAT, by)
    assert await POOLS.read(bus, "chat") == pools.Entry(made.revision, CHAT)
    with pytest.raises(Exists):
        await pools.create(bus, CHAT, by)
    (record,) = audits
    assert (record.event, record.identity, record.channel) == (AuditEvent.POOL_CHANGED, "token:abc123", "http")
    assert record.detail["command"] == "create"
    assert "abc" not in str(record.detail["changes"])


async def test_a_pool_is_replaced_only_at_the_version_that_was_read(bus: Bus, by: Author) -> None:
    with pytest.raises(NotThere):
        await pools.replace(bus, CHAT, by, over=1)
    first = await pools.create(bus, CHAT, by)
    wider = msgspec.structs.replace(CHAT, slots=2)
    second = await pools.replace(bus, wider, by, over=first.revision)
    with pytest.raises(WrongSequence):
        await pools.replace(bus, CHAT, by, over=first.revision)
    same = await pools.replace(bus, wider, by, over=second.revision)
    assert (same.revision, same.changes) == (second.revision, [])


async def test_a_value_that_is_not_shown_stays_when_what_was_read_is_written(bus: Bus, by: Author) -> None:
    hidden = msgspec.structs.replace(CHAT, slots=2, provisioning=ProvisioningSpec(env={"KEY": "(hidden)"}))
    with pytest.raises(HiddenValue):
        await pools.create(bus, hidden, by)
    first = await pools.create(bus, CHAT, by)
    changed = await pools.replace(bus, hidden, by, over=first.revision)
    assert (changed.pool.slots, changed.pool.provisioning.env) == (2, {"KEY": "abc"})


async def test_a_pool_rests_until_it_is_undrained(bus: Bus, by: Author, audits: list[AuditRecord]) -> None:
    with pytest.raises(NotThere):
        await orders.drain(bus, "chat", by, deadline_ms=5)
    await pools.create(bus, CHAT, by)
    await orders.drain(bus, "chat", by, deadline_ms=5)
    wish = await orders.drain(bus, "chat", by, deadline_ms=7)
    assert (await DRAINS.read(bus, "chat")).value == wish
    with pytest.raises(Underway):
        await orders.reload(bus, "chat", by, new_model_ref="mock:other")
    assert await orders.undrain(bus, "chat", by)
    assert not await orders.undrain(bus, "chat", by)
    assert [each.detail["command"] for each in audits] == ["create", "drain", "drain", "undrain"]


async def test_one_reload_at_a_time(bus: Bus, by: Author) -> None:
    await pools.create(bus, CHAT, by)
    wish = await orders.reload(bus, "chat", by, new_model_ref="mock:other")
    assert (wish.state, wish.old_model_ref) == (ReloadState.UNDERWAY, "mock:words")
    with pytest.raises(Underway, match="is being reloaded to mock:other"):
        await orders.reload(bus, "chat", by, new_model_ref="mock:third")
    entry = await RELOADS.read(bus, "chat")
    await RELOADS.write(bus, "chat", msgspec.structs.replace(wish, state=ReloadState.FAILED), over=entry.seq)
    same = await orders.reload(bus, "chat", by, new_model_ref="mock:words")
    assert same.state is ReloadState.DONE, "it has the model"


async def test_what_came_while_the_pool_had_another_model_is_known_through_several_reloads(
    bus: Bus, by: Author
) -> None:
    await pools.create(bus, CHAT, by)
    wish = await orders.reload(bus, "chat", by, new_model_ref="mock:second")
    assert wish.had("mock:words", 10), "nothing has changed yet"
    done = msgspec.structs.replace(wish, state=ReloadState.DONE, ended_ms=1_000)
    await RELOADS.write(bus, "chat", done, over=(await RELOADS.read(bus, "chat")).seq)
    second = msgspec.structs.replace(CHAT, model="mock:second")
    await pools.replace(bus, second, by, over=(await POOLS.read(bus, "chat")).seq)
    failed = await orders.reload(bus, "chat", by, new_model_ref="mock:third")
    failed = msgspec.structs.replace(failed, state=ReloadState.FAILED, ended_ms=90_000)
    assert failed.had("mock:words", 1_000)
    assert not failed.had("mock:words", 60_000)
    assert not failed.had("mock:third", 60_000)
    assert failed.and_before() == failed.former


async def test_a_pool_that_is_made_again_is_not_born_resting(bus: Bus, by: Author) -> None:
    await pools.create(bus, CHAT, by)
    await orders.drain(bus, "chat", by, deadline_ms=5)
    assert await pools.remove(bus, "chat", by)
    assert not await pools.remove(bus, "chat", by)
    assert (await DRAINS.read(bus, "chat")).value is None
    await pools.create(bus, CHAT, by)


async def test_a_tenant_is_put_read_and_removed(bus: Bus, by: Author, audits: list[AuditRecord]) -> None:
    acme = Tenant(id="acme", weight=5, rps=2.5)
    first = await tenants.put(bus, acme, by, over=0)
    with pytest.raises(WrongSequence):
        await tenants.put(bus, Tenant(id="acme"), by, over=0)
    assert await tenants.put(bus, acme, by) == first, "nothing to write"
    await tenants.put(bus, Tenant(id="acme", weight=5, max_concurrent=3), by, over=first.seq)
    assert list(await TENANTS.all(bus)) == ["acme"]
    assert await tenants.remove(bus, "acme", by)
    assert not await tenants.remove(bus, "acme", by)
    assert await TENANTS.all(bus) == {}
    assert [each.event for each in audits] == [AuditEvent.TENANT_CHANGED] * 3
    assert audits[1].detail["changes"] == ["max_concurrent: None -> 3", "rps: 2.5 -> None"]
