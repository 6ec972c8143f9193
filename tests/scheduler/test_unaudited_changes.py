"""Who changes what is wanted is killed between the change and its audit record."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from llorch_ctl import session_policy
from llorch_gateway.core.catalog import moved
from llorch_scheduler import unaudited_changes
from llorch_scheduler.unaudited_changes import UnauditedChanges
from llorch_shared import audit_chain, change_note, streams, subjects
from llorch_shared.audit import Audit
from llorch_shared.bus import nats
from llorch_shared.bus.memory import MemoryBus
from llorch_shared.bus.memory_server import MemoryServer
from llorch_shared.bus.port import Bus
from llorch_shared.catalog import Catalog
from llorch_shared.desired import orders, pools, tenants
from llorch_shared.desired.entries import Author, Entry
from llorch_shared.desired.tenants import TENANTS
from llorch_shared.settings import NatsSettings
from llorch_shared.wall_clock import now_ms
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent, AuditRecord
from llorch_shared.wire.catalog import CatalogEntry, ModelState, StateChange
from llorch_shared.wire.desired import Tenant
from llorch_shared.wire.provisioning_spec import ProvisioningSpec
from llorch_shared.wire.session import SessionPolicy, SessionsSpec
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine
from support.nats_server import NatsServer

CHAT = PoolSpec(id="chat", engine=Engine.MOCK, model="mock:words")
MODEL = msgspec.convert(
    {
        "id": "m",
        "digest": f"sha256:{'a' * 64}",
        "source_url": "mock:words",
        "tags": [],
        "manifests": [],
        "signatures": [],
        "sbom": None,
        "trust_policy": {},
        "state": "Active",
        "warnings": [],
        "created_ms": 1,
        "changed_ms": 1,
    },
    CatalogEntry,
)


class KilledError(Exception):
    """The process is gone at this point."""


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    made: Bus = MemoryBus(MemoryServer(), name="test")
    await made.ensure(streams.base())
    yield made
    await made.close()


async def killed(_: AuditRecord) -> None:
    raise KilledError


def gateway(record: Callable[[AuditRecord], Awaitable[None]]) -> Author:
    return Author("gateway/g1", "token:abc123", record, channel="http", correlation_id="c-1")


async def kept(_: AuditRecord) -> None:
    """Somewhere else."""


DYING, LIVING = gateway(killed), gateway(kept)


async def change_state(bus: Bus, by: Author) -> None:
    note = by.note(AuditEvent.CATALOG_CHANGED, "m", {"change": "state", "state": "Deprecated"})
    change = StateChange(state=ModelState.DEPRECATED)
    kept = await Catalog(bus).change("m", lambda entry: moved(entry, change, 9), note)
    assert kept is not None
    await by.record(change_note.stored(note, streams.CATALOG, kept.seq))


CHANGES: dict[str, tuple[Callable[[Bus, Author], Awaitable[Any]], str, str]] = {
    "create": (lambda bus, by: pools.create(bus, CHAT, by), "pool_changed", "chat"),
    "drain": (lambda bus, by: orders.drain(bus, "chat", by, deadline_ms=5), "pool_changed", "chat"),
    "undrain": (lambda bus, by: orders.undrain(bus, "chat", by), "pool_changed", "chat"),
    "reload": (lambda bus, by: orders.reload(bus, "chat", by, new_model_ref="mock:b"), "pool_changed", "chat"),
    "remove": (lambda bus, by: pools.remove(bus, "chat", by), "pool_changed", "chat"),
    "put": (lambda bus, by: tenants.put(bus, Tenant(id="blue", weight=3), by), "tenant_changed", "blue"),
    "state": (change_state, "catalog_changed", "m"),
}


async def audits(bus: Bus) -> list[AuditRecord]:
    found = await bus.replay(streams.AUD, subjects.ALL_AUDITS)
    return [one for m in found if (one := AUDIT_DECODER.decode(m.data)).event is not AuditEvent.WRITER_CLOSED]


async def look(bus: Bus, *, grace_s: float = -1) -> int:
    """A scheduler that has just come into office. Times are whole milliseconds: without a grace all is old enough."""
    audit = Audit(bus, actor="scheduler/s1", gather_s=0)
    audit.start()
    found = await UnauditedChanges(bus, audit, actor="scheduler/s1", now_ms=now_ms, grace_s=grace_s).look()
    await audit.close()
    return found


async def test_what_a_killed_gateway_changed_is_on_the_record_later_as_it_would_have_said_it_itself(bus: Bus) -> None:
    await Catalog(bus).create(MODEL)
    for command, (change, event, subject_id) in CHANGES.items():
        with pytest.raises(KilledError):
            await change(bus, DYING)
        assert await look(bus) == 1, command
        said = (await audits(bus))[-1]
        assert (str(said.event), said.task_id, said.actor) == (event, subject_id, "gateway/g1")
        assert (said.identity, said.channel, said.correlation_id) == ("token:abc123", "http", "c-1")
        assert said.detail.get("command", said.detail.get("change")) == command
        assert said.detail["repaired"] is True
        assert said.writer.startswith("scheduler/s1/")
        assert await look(bus) == 0, "once, whoever looks"


async def set_state(bus: Bus, state: ModelState, by: Author) -> CatalogEntry:
    """As a gateway does it, which is killed behind the first write."""
    change = StateChange(state=state, deadline_ms=600_000)
    note = by.note(AuditEvent.CATALOG_CHANGED, "m", {"change": "state", "state": str(state), "deadline_ms": 600_000})
    kept = await Catalog(bus).change("m", lambda entry: moved(entry, change, now_ms()), note)
    assert kept is not None
    return kept.entry


async def drained(bus: Bus) -> dict[str, str]:
    """By whom, by pool."""
    return {pool: drain.identity for pool, (drain, _) in (await pools.DRAINS.all(bus)).items()}


async def test_pools_follow_their_model_although_who_retired_it_was_killed(bus: Bus) -> None:
    await Catalog(bus).create(MODEL)
    for pool_id, model in (("chat", "mock:words"), ("other", "mock:b"), ("mine", "mock:words")):
        await pools.create(bus, msgspec.structs.replace(CHAT, id=pool_id, model=model), LIVING)
    await orders.drain(bus, "mine", LIVING, deadline_ms=5)
    await look(bus)

    await set_state(bus, ModelState.RETIRED, DYING)
    assert await look(bus) == 1
    assert await drained(bus) == {"mine": "token:abc123", "chat": "catalog:m"}
    drain = (await pools.DRAINS.read(bus, "chat")).value
    assert drain is not None
    assert 0 < drain.deadline_ms <= 600_000
    said = await audits(bus)
    assert [(one.task_id, one.identity, one.actor) for one in said[-2:]] == [
        ("chat", "catalog:m", "scheduler/s1"),
        ("m", "token:abc123", "gateway/g1"),
    ]
    assert await look(bus) == 0

    await set_state(bus, ModelState.ACTIVE, DYING)
    assert await look(bus) == 1
    assert await drained(bus) == {"mine": "token:abc123"}


async def test_pools_do_not_follow_a_state_that_the_model_has_no_more(bus: Bus) -> None:
    await Catalog(bus).create(MODEL)
    await pools.create(bus, CHAT, LIVING)
    await set_state(bus, ModelState.RETIRED, DYING)
    await set_state(bus, ModelState.ACTIVE, DYING)
    await look(bus)
    assert await drained(bus) == {}
    await set_state(bus, ModelState.RETIRED, DYING)
    other = msgspec.structs.replace(MODEL, id="m2")
    await Catalog(bus).create(other)
    await look(bus)
    assert await drained(bus) == {}, "another version of it is in use"


async def test_a_pool_that_has_just_got_another_model_does_not_follow_its_old_one(bus: Bus) -> None:
    await Catalog(bus).create(MODEL)
    await pools.create(bus, CHAT, LIVING)
    audit = Audit(bus, actor="scheduler/s1", gather_s=0)
    audit.start()
    at_ms = [now_ms() + 1]
    office = UnauditedChanges(bus, audit, actor="scheduler/s1", now_ms=lambda: at_ms[0], grace_s=0)
    await office.look()
    await set_state(bus, ModelState.RETIRED, DYING)
    at_ms[0] = now_ms()
    while now_ms() == at_ms[0]:
        await asyncio.sleep(0.001)
    other = msgspec.structs.replace(CHAT, model="mock:b")
    await pools.change(bus, "chat", lambda _: other, LIVING, command="change")
    assert await office.look() == 1, "the change of the model is old enough, that of the pool is not"
    await audit.close()
    assert await drained(bus) == {}


async def test_the_policy_of_sessions_is_on_the_record_when_orchctl_was_killed(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(_: AuditRecord) -> list[tuple[str, bytes]]:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(audit_chain, "alone", dies)
        with pytest.raises(KilledError):
            await session_policy.apply(bus, SessionsSpec(default=SessionPolicy(turns_max=3)))
    assert await look(bus) == 1
    (said,) = await audits(bus)
    assert (said.event, said.actor) == (AuditEvent.SESSION_POLICY_CHANGED, "orchctl")
    assert await session_policy.apply(bus, SessionsSpec())
    assert await look(bus) == 0


async def test_who_lives_is_not_said_again_and_who_may_still_say_it_is_waited_for(bus: Bus) -> None:
    audit = Audit(bus, actor="gateway/g1", gather_s=0)
    audit.start()
    living = gateway(audit.record)
    made = await pools.create(bus, CHAT, living)
    await tenants.put(bus, Tenant(id="blue", weight=3), living)
    await audit.close()
    assert await look(bus) == 0
    assert (await audits(bus))[0].detail["stored"] == f"{streams.SPEC}/{made.revision}"
    with pytest.raises(KilledError):
        await tenants.put(bus, Tenant(id="blue", weight=4), DYING)
    assert await look(bus, grace_s=60) == 0
    assert await look(bus) == 1


async def test_one_in_office_looks_only_at_what_is_new(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = Audit(bus, actor="scheduler/s1", gather_s=0)
    audit.start()
    office = UnauditedChanges(bus, audit, actor="scheduler/s1", now_ms=now_ms, grace_s=-1)
    with pytest.raises(KilledError):
        await pools.create(bus, CHAT, DYING)
    await bus.store(subjects.spec("tenant.odd"), b"{}", headers={change_note.CHANGE_HEADER: "no record"})
    assert [await office.look() for _ in range(2)] == [1, 0]
    read: list[Any] = []
    monkeypatch.setattr(unaudited_changes.change_note, "read", lambda message, _: read.append(message.seq))
    with pytest.raises(KilledError):
        await orders.drain(bus, "chat", DYING, deadline_ms=1)
    await office.look()
    assert len(read) == 1
    await audit.close()


@pytest.mark.parametrize(
    "forged",
    [
        "[",
        '{"event":"pool_changed","x":' + "[" * 10_000,
        '{"event":"pool_changed","task_id":"a.*","at_ms":1,"actor":"x"}',
        '{"event":"pool_changed","task_id":"a","at_ms":1,"actor":"%s"}' % ("x" * 20_000),
    ],
    ids=["cut", "deep", "no name", "long"],
)
async def test_a_note_that_nobody_can_read_keeps_none_of_the_others_from_the_record(bus: Bus, forged: str) -> None:
    await bus.store(subjects.spec("pool.forged"), b"{}", headers={change_note.CHANGE_HEADER: forged})
    with pytest.raises(KilledError):
        await tenants.put(bus, Tenant(id="blue"), DYING)
    assert await look(bus) == 1
    assert [said.task_id for said in await audits(bus)] == ["blue"]


def version(ctx: int) -> bytes:
    pool = PoolSpec(id="p9", engine=Engine.MOCK, model="mock:words", ctx=ctx)
    return msgspec.json.encode(msgspec.structs.replace(pool, provisioning=ProvisioningSpec(env={"TOKEN": str(ctx)})))


KEY = subjects.spec(subjects.pool_key("p9"))
SECRET = "provisioning.env.TOKEN: (hidden) -> (hidden)"


async def said_of_p9(bus: Bus) -> list[tuple[Any, Any]]:
    """What is on record, and of which version."""
    found = await bus.replay(streams.AUD, subjects.audit(AuditEvent.POOL_CHANGED, "p9"))
    records = [AUDIT_DECODER.decode(message.data) for message in found if message.data != b"not a record"]
    assert not any("repaired" in record.detail for record in records)
    return [(record.detail["changes"], record.detail["stored"]) for record in records]


async def test_what_changes_without_a_note_is_told_key_by_key_once_and_at_once(bus: Bus) -> None:
    seqs = [(await bus.store(KEY, version(ctx))).seq for ctx in (1024, 2048, 2048, 4096)]
    await bus.store(KEY, b"not a pool")
    await bus.store(subjects.audit(AuditEvent.POOL_CHANGED, "p9"), b"not a record")
    assert await look(bus, grace_s=60) == 3
    assert await look(bus, grace_s=60) == 0
    seqs.append((await bus.store(KEY, b"", headers={"KV-Operation": "DEL"})).seq)
    assert await look(bus, grace_s=60) == 1
    (created, *others), versions = zip(*await said_of_p9(bus), strict=True)
    assert "ctx: none -> 1024" in created
    assert others == [["ctx: 1024 -> 2048", SECRET], ["ctx: 2048 -> 4096", SECRET], ["removed"]]
    assert versions == tuple(f"{streams.SPEC}/{seqs[number]}" for number in (0, 1, 3, 4))


async def test_what_a_killed_scheduler_did_not_store_is_told_by_the_next(bus: Bus) -> None:
    class Dying:
        async def record(self, record: AuditRecord) -> None:
            """It is gathered, and stored nowhere."""

    await bus.store(KEY, version(1024))
    dying = UnauditedChanges(bus, Dying(), actor="scheduler/s0", now_ms=now_ms)
    assert (await dying.look(), await dying.look()) == (1, 0)
    assert not await said_of_p9(bus)
    assert await look(bus, grace_s=60) == 1
    assert len(await said_of_p9(bus)) == 1


async def test_of_the_oldest_version_that_is_kept_nothing_is_told_where_others_have_gone(bus: Bus) -> None:
    for number in range(streams.VERSIONS + 1):
        await bus.store(KEY, version(1024 + number))
    assert await look(bus) == streams.VERSIONS - 1
    assert (await said_of_p9(bus))[0][0] == ["ctx: 1025 -> 1026", SECRET]


async def test_a_change_that_its_maker_may_still_tell_holds_up_no_other_when_it_is_told(bus: Bus) -> None:
    audit = Audit(bus, actor="gateway/g1", gather_s=0)
    audit.start()
    await pools.create(bus, CHAT, gateway(audit.record))
    await audit.close()
    await bus.store(KEY, version(1024))
    assert await look(bus, grace_s=60) == 1
    assert len(await said_of_p9(bus)) == 1


async def test_a_change_that_its_maker_told_is_not_told_as_a_difference_too(bus: Bus) -> None:
    audit = Audit(bus, actor="gateway/g1", gather_s=0)
    audit.start()
    living = gateway(audit.record)
    await pools.create(bus, CHAT, living)
    await pools.change(bus, "chat", lambda _: msgspec.structs.replace(CHAT, ctx=1024), living, command="set")
    await audit.close()
    assert await look(bus) == 0
    await bus.store(subjects.spec(subjects.pool_key("chat")), msgspec.json.encode(CHAT))
    assert await look(bus) == 1
    assert (await audits(bus))[-1].detail["changes"] == [f"ctx: 1024 -> {CHAT.ctx}"]


def test_a_change_that_is_long_says_so_in_its_note() -> None:
    record = DYING.note(AuditEvent.POOL_CHANGED, "chat", {"command": "put", "changes": ["ä" * 9000]})
    note = change_note.headers(record)[change_note.CHANGE_HEADER]
    assert note.isascii()
    assert AUDIT_DECODER.decode(note).detail == {"command": "put", "changes": [change_note.CUT]}


KILLED_BETWEEN = """
import asyncio, os, signal, sys
from llorch_shared.bus.nats import connect
from llorch_shared.desired import tenants
from llorch_shared.desired.entries import Author
from llorch_shared.settings import NatsSettings
from llorch_shared.wire.desired import Tenant

async def die(record):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    bus = await connect(NatsSettings(url=sys.argv[1]), name="gateway")
    await tenants.put(bus, Tenant(id="blue", weight=3), Author("gateway/g1", "token:ümlaut", die, channel="nats"))

asyncio.run(main())
"""


@pytest.mark.nats
async def test_a_process_that_is_killed_between_the_two_writes_is_made_up_for(nats_server: NatsServer) -> None:
    bus = await nats.connect(NatsSettings(url=nats_server.url), name="test")
    await bus.ensure(streams.base())
    dying = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED_BETWEEN, nats_server.url)
    assert await dying.wait() == -signal.SIGKILL
    assert await TENANTS.read(bus, "blue") == Entry(1, Tenant(id="blue", weight=3))
    assert await audits(bus) == []
    assert await look(bus) == 1
    (said,) = await audits(bus)
    assert (said.identity, said.channel, said.detail["command"]) == ("token:ümlaut", "nats", "put")
    assert said.detail["stored"] == f"{streams.SPEC}/1"
    assert await look(bus) == 0

    await Catalog(bus).create(MODEL)
    await pools.create(bus, CHAT, LIVING)
    await set_state(bus, ModelState.RETIRED, DYING)
    await orders.drain(bus, "chat", LIVING, deadline_ms=5)
    await orders.undrain(bus, "chat", LIVING)
    await look(bus)
    assert await drained(bus) == {}, "somebody wants it to serve, and said so later"
    await bus.close()
