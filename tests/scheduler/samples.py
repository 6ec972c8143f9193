"""A pool, a task and a replica with the fields that tests do not care about filled in."""

from typing import Any

from llorch_shared.wire.registry import ReplicaRecord, ReplicaState
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority, TaskRequest, Workload

MODEL = "mock:words"


def spec(pool_id: str = "p1") -> PoolSpec:
    return PoolSpec(id=pool_id, engine=Engine.MOCK, model=MODEL, ctx=4096)


def task_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def request(number: int, **fields: Any) -> TaskRequest:
    values: dict[str, Any] = {
        "task_id": task_id(number),
        "session_id": task_id(number),
        "workload": Workload.COMPLETION,
        "model_ref": MODEL,
        "engine": Engine.MOCK,
        "ctx": 512,
        "priority": Priority.INTERACTIVE,
        "max_tokens": 16,
        "deadline_ms": 3_600_000,
        "prompt": "one two three",
    }
    return TaskRequest(**{**values, **fields})


def replica_record(replica_id: str, *, pool: str = "p1", slots: int = 1, **fields: Any) -> ReplicaRecord:
    values: dict[str, Any] = {
        "replica_id": replica_id,
        "pool_id": pool,
        "node_id": "node-1",
        "incarnation": "i1",
        "state": ReplicaState.READY,
        "engine": Engine.MOCK,
        "model_ref": MODEL,
        "slots_total": slots,
        "ctx_max": 4096,
        "live": True,
    }
    return ReplicaRecord(**{**values, **fields})
