"""What `orchctl simulate --audit-stream` reads of a live system, and what the simulator makes of the file."""

import json
from pathlib import Path

import msgspec
import pytest

from llorch_ctl import pools, recording
from llorch_shared import streams, subjects
from llorch_shared.bus.memory import MemoryBus
from llorch_shared.bus.memory_server import MemoryServer
from llorch_shared.bus.port import Bus
from llorch_shared.wire.audit import AuditEvent, AuditRecord
from llorch_shared.wire.provisioning_spec import ProvisioningSpec
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine
from support.nats_server import NatsServer
from support.orchctl import Orchctl, on_bus

CHAT = PoolSpec(
    id="chat", engine=Engine.MOCK, model="m", slots=2, provisioning=ProvisioningSpec(env={"TOKEN": "hunter2"})
)
TASK = "00000000-0000-4000-8000-{:012x}"


async def tell(bus: Bus, event: AuditEvent, task: int, at_ms: int, **fields: object) -> None:
    record = AuditRecord(
        event=event,
        task_id=TASK.format(task),
        at_ms=at_ms,
        actor="test",
        tenant="t",
        pool_id="chat",
        **fields,  # type: ignore[arg-type]
    )
    await bus.store(subjects.audit(event, record.task_id), msgspec.json.encode(record))


async def tell_task(bus: Bus, task: int, at_ms: int) -> None:
    told = {"priority": "batch", "max_tokens": 9, "deadline_ms": 60_000, "session_id": TASK.format(1)}
    await tell(bus, AuditEvent.ADMITTED, task, at_ms, detail=told)
    await tell(bus, AuditEvent.RUNNING, task, at_ms + 10, replica_id="chat-n-0")
    await tell(bus, AuditEvent.DONE, task, at_ms + 510, replica_id="chat-n-0")


@pytest.fixture
async def bus() -> Bus:
    made: Bus = MemoryBus(MemoryServer(), name="orchctl")
    await made.ensure(streams.base())
    return made


async def test_pools_come_first_without_their_secrets_then_what_happened_since(bus: Bus, tmp_path: Path) -> None:
    await pools.put(bus, CHAT, command="test")
    for task in range(1, 6):
        await tell_task(bus, task, 10_000 * task)
    found = await recording.record(bus, tmp_path / "hour", from_ms=30_000)
    lines = [json.loads(line) for line in (tmp_path / "hour").read_bytes().splitlines()]
    assert not found.cut
    assert lines[0]["pool"]["id"] == "chat"
    assert "hunter2" not in (tmp_path / "hour").read_text()
    tasks = [line["task_id"] for line in lines[1:] if line["event"] == "admitted"]
    assert tasks == [TASK.format(task) for task in (3, 4, 5)]


async def test_a_long_stream_is_read_in_pieces_in_its_order(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "PIECE", 4)
    for task in range(1, 8):
        await tell_task(bus, task, 1_000 * task)
    found = await recording.record(bus, tmp_path / "hour", from_ms=0)
    lines = [json.loads(line) for line in (tmp_path / "hour").read_bytes().splitlines()]
    assert found.records == len(lines) == 21
    assert [line["at_ms"] for line in lines if line["event"] == "admitted"] == [1_000 * task for task in range(1, 8)]


async def test_more_than_is_kept_is_said_to_be_cut(bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "PIECE", 3)
    monkeypatch.setattr(recording, "RECORDS_MAX", 6)
    for task in range(1, 8):
        await tell_task(bus, task, 1_000 * task)
    assert await recording.record(bus, tmp_path / "hour", from_ms=0) == recording.Recorded(records=6, cut=True)


@pytest.mark.nats
def test_the_stream_of_a_running_system_is_replayed_and_kept(
    nats_server: NatsServer, orchctl: Orchctl, tmp_path: Path
) -> None:
    async def fill(bus: Bus) -> None:
        await pools.put(bus, CHAT, command="test")
        for task in range(1, 4):
            await tell_task(bus, task, 4_102_444_800_000 + 100 * task)

    on_bus(nats_server, fill)
    kept, policy = tmp_path / "hour.jsonl", tmp_path / "other.toml"
    policy.write_text('[[pools]]\nid = "chat"\nslots = 1\n[pools.queue]\ncapacity = 1\n')
    code, out, err = orchctl("simulate", "--audit-stream", "--export", str(kept), "--policy", str(policy))
    assert code == 0, err
    rows = [word for line in out.splitlines() for word in line.split() if word in ("recorded", "present", "other")]
    assert rows[1:4] == ["recorded", "present", "other"], out
    assert "3 recorded tasks" in out
    code, out, err = orchctl("simulate", "--audit", str(kept), "--json", "-")
    assert code == 0, err
    assert json.loads(out)["reproduction"]["tasks"] == 3
