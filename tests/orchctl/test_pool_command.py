"""`orchctl pool`: a policy looked at, changed and taken back, each time on the record."""

import json
from pathlib import Path

import msgspec
import pytest

from llorch_ctl import pools
from llorch_ctl.exits import Exit, Problem
from llorch_shared import streams, subjects
from llorch_shared.bus.memory import MemoryBus
from llorch_shared.bus.memory_server import MemoryServer
from llorch_shared.bus.port import Bus, Unanswered, WrongSequence
from llorch_shared.wire.audit import AUDIT_DECODER, AuditEvent
from llorch_shared.wire.policy import QueueSpec
from llorch_shared.wire.provisioning_spec import ProvisioningSpec
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine
from support.nats_server import NatsServer
from support.orchctl import Orchctl, on_bus

CHAT = PoolSpec(id="chat", engine=Engine.MOCK, model="m", provisioning=ProvisioningSpec(env={"TOKEN": "hunter2"}))

FILE = """
[[pools]]
id = "chat"
engine = "mock"
model = "m"
slots = 4

[pools.queue]
capacity = 10
full_policy = "drop-lru"
"""


@pytest.fixture
async def memory() -> Bus:
    bus: Bus = MemoryBus(MemoryServer(), name="orchctl")
    await bus.ensure(streams.base())
    return bus


def put(server: NatsServer) -> None:
    on_bus(server, lambda bus: pools.put(bus, CHAT, command="test"))


def stored(server: NatsServer) -> dict[str, PoolSpec]:
    return on_bus(server, pools.stored)


def audited(server: NatsServer) -> list[bytes]:
    async def read(bus: Bus) -> list[bytes]:
        subject = subjects.audit(AuditEvent.POOL_CHANGED, "chat")
        return [message.data for message in await bus.replay(streams.AUD, subject)]

    return on_bus(server, read)


@pytest.mark.nats
def test_a_policy_is_shown_set_applied_and_rolled_back(
    orchctl: Orchctl, nats_server: NatsServer, tmp_path: Path
) -> None:
    put(nats_server)
    code, out, _ = orchctl("pool", "show", "chat", "--json")
    assert code == Exit.OK
    assert json.loads(out)["keys"]["id"] == "chat"
    assert "queue.capacity" not in json.loads(out)["keys"]
    code, out, _ = orchctl("pool", "show", "chat", "--all", "--json")
    assert json.loads(out)["keys"]["admission.priorities.interactive.weight"] == 8
    assert json.loads(out)["keys"]["queue.capacity"] == 256
    assert "queue.capacity" not in json.loads(out)["set"]

    code, out, _ = orchctl("pool", "set", "chat", "queue.capacity=64", "provisioning.env.TOKEN=swordfish")
    assert (code, out) == (
        Exit.OK,
        "chat  queue.capacity: 256 -> 64\nchat  provisioning.env.TOKEN: (hidden) -> (hidden)\n",
    )
    code, out, _ = orchctl("pool", "set", "chat", "queue.capacity=64")
    assert (code, out) == (Exit.OK, "pool chat is so already\n")

    file = tmp_path / "pools.toml"
    file.write_text(FILE)
    code, out, _ = orchctl("pool", "apply", str(file), "--json")
    [made] = json.loads(out)["pools"]
    assert {"key": "queue.full_policy", "old": "reject", "new": "drop-lru"} in made["changes"]
    assert stored(nats_server)["chat"].slots == 4

    code, out, _ = orchctl("pool", "rollback", "chat", "--json")
    assert code == Exit.OK
    assert stored(nats_server)["chat"].queue == QueueSpec(capacity=64)
    orchctl("pool", "rollback", "chat")
    assert stored(nats_server)["chat"].slots == 4

    raw = audited(nats_server)
    records = [AUDIT_DECODER.decode(data) for data in raw]
    assert [record.event for record in records] == [AuditEvent.POOL_CHANGED] * 5
    assert {(record.actor, record.task_id, record.pool_id) for record in records} == {("orchctl", "chat", "chat")}
    assert all(record.identity for record in records)
    assert records[1].detail["changes"] == [
        "queue.capacity: 256 -> 64",
        "provisioning.env.TOKEN: (hidden) -> (hidden)",
    ]
    assert [str(record.detail["command"]).partition(" to ")[0] for record in records] == [
        "test",
        "pool set",
        "pool apply",
        "rollback",
        "rollback",
    ]
    assert b"hunter2" not in b"".join(raw)
    assert b"swordfish" not in b"".join(raw)


@pytest.mark.nats
def test_what_cannot_be_done_says_why(orchctl: Orchctl, nats_server: NatsServer, tmp_path: Path) -> None:
    put(nats_server)
    twice, empty, wrong = tmp_path / "twice.toml", tmp_path / "empty.toml", tmp_path / "wrong.toml"
    twice.write_text(FILE + FILE)
    empty.write_text("")
    wrong.write_text(FILE + "capacty = 3\n")
    for arguments, code, words in (
        (("show", "other"), Exit.USAGE, "no pool 'other'"),
        (("show", "NO WAY"), Exit.USAGE, "id of a pool"),
        (("set", "other", "slots=2"), Exit.USAGE, "no pool 'other'"),
        (("set", "chat", "queue.capacty=2"), Exit.USAGE, "did you mean 'queue.capacity'"),
        (("set", "chat"), Exit.USAGE, ""),
        (("apply", str(tmp_path / "none.toml")), Exit.USAGE, "cannot read"),
        (("apply", str(twice)), Exit.USAGE, "twice"),
        (("apply", str(empty)), Exit.USAGE, "has no [[pools]]"),
        (("apply", str(wrong)), Exit.USAGE, "capacty"),
        (("rollback", "other"), Exit.USAGE, "no pool 'other'"),
        (("rollback", "chat"), Exit.FAILED, "no other version"),
    ):
        given = orchctl("pool", *arguments)
        assert given[0] == code, given
        assert words in given[2]
    assert stored(nats_server) == {"chat": CHAT}
    assert len(audited(nats_server)) == 1


@pytest.mark.nats
def test_a_bus_without_a_system_is_told(orchctl: Orchctl) -> None:
    code, _, err = orchctl("pool", "show", "chat")
    assert code == Exit.UNREACHABLE
    assert "holds no llama-orch" in err


async def test_a_removed_pool_comes_back_by_a_rollback(memory: Bus) -> None:
    await pools.put(memory, CHAT, command="test")
    await pools.remove(memory, "chat")
    assert await pools.stored(memory) == {}
    assert (await pools.rollback(memory, "chat")).pool == CHAT
    assert await pools.stored(memory) == {"chat": CHAT}


async def test_a_rollback_skips_what_cannot_be_read_any_more(memory: Bus) -> None:
    await pools.put(memory, CHAT, command="test")
    subject = subjects.spec(subjects.pool_key("chat"))
    await memory.store(subject, b'{"id": "chat", "of an older release": 1}')
    await memory.store(subject, msgspec.json.encode(msgspec.structs.replace(CHAT, slots=2)))
    assert (await pools.rollback(memory, "chat")).pool == CHAT


async def test_a_rollback_never_takes_back_what_somebody_else_has_just_written(
    memory: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slots in (1, 2):
        await pools.put(memory, msgspec.structs.replace(CHAT, slots=slots), command="test")
    replay = MemoryBus.replay

    async def and_then_somebody_writes(self: MemoryBus, stream: str, subject: str) -> object:
        found = await replay(self, stream, subject)
        monkeypatch.undo()
        await pools.put(memory, msgspec.structs.replace(CHAT, slots=3), command="test")
        return found

    monkeypatch.setattr(MemoryBus, "replay", and_then_somebody_writes)
    with pytest.raises(WrongSequence):
        await pools.rollback(memory, "chat")
    assert (await pools.stored(memory))["chat"].slots == 3


async def test_a_change_that_cannot_be_put_on_record_is_told(memory: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    async def deaf(*_: object, **__: object) -> None:
        raise Unanswered("no answer")

    monkeypatch.setattr(MemoryBus, "store_batch", deaf)
    with pytest.raises(Problem, match="is changed, but the record of it is not stored"):
        await pools.put(memory, CHAT, command="test")


@pytest.mark.nats
def test_a_pool_is_drained_undrained_and_reloaded(orchctl: Orchctl, nats_server: NatsServer) -> None:
    put(nats_server)
    assert orchctl("pool", "drain", "chat", "--deadline-ms", "500")[0] == Exit.OK
    code, _, said = orchctl("pool", "reload", "chat", "other")
    assert (code, "is drained" in said) == (Exit.USAGE, True)
    code, out, _ = orchctl("pool", "undrain", "chat")
    assert (code, out) == (Exit.OK, "pool chat starts its engines\n")
    code, out, _ = orchctl("pool", "reload", "chat", "other")
    assert (code, out) == (Exit.OK, "pool chat: reload to other is underway\n")
    code, _, said = orchctl("pool", "reload", "chat", "third")
    assert (code, "is being reloaded to other" in said) == (Exit.USAGE, True)
    assert orchctl("pool", "undrain", "nobody")[0] == Exit.USAGE
    assert len(audited(nats_server)) == 4
