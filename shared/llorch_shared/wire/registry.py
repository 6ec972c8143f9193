"""What is alive: nodes, replicas and leases, as keys that expire unless renewed; and the load the scheduler tells."""

from enum import StrEnum
from typing import Final

import msgspec

from llorch_shared.wire.task import Engine, Name, Workload


class Gpu(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    index: int
    uuid: str
    name: str
    vram_total_mb: int
    vram_free_mb: int
    utilization_percent: int = 0
    compute_capability: str = ""
    fault: str = ""
    """Why it cannot be used: an Xid, an ECC error, lost; empty when healthy."""


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`node.<node>`"""

    node_id: Name
    incarnation: str
    started_ms: int
    version: str
    gpus: tuple[Gpu, ...] = ()
    gpu_driver: str = ""
    gpu_problem: str = ""
    """Why there is no usable GPU; empty when there is one."""
    profile: str = "gpu"
    metrics_addr: str = ""


class ReplicaState(StrEnum):
    PROVISIONING = "provisioning"
    STARTING = "starting"
    TESTING = "testing"
    READY = "ready"
    DRAINING = "draining"
    BACKOFF = "backoff"
    FAILED = "failed"


class ReplicaRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`replica.<node>.<replica>`: one engine process, one model, one device mask (ORCH-3001, 3501)."""

    replica_id: Name
    pool_id: Name
    node_id: Name
    incarnation: str
    """New with every engine process. Tasks of an earlier incarnation are no longer held by anybody."""
    state: ReplicaState
    engine: Engine
    engine_version: str = ""
    model_ref: str = ""
    model_digest: str = ""
    sampler_profile_version: str = "v1"
    device: str = ""
    """`cpu` in the marked carve-out, else the device mask, for example `cuda:0`."""
    slots_total: int = 0
    active: tuple[str, ...] = ()
    """Tasks this incarnation holds."""
    ctx_max: int = 0
    free_vram_mb: int = 0
    workloads: tuple[Workload, ...] = (Workload.COMPLETION,)
    live: bool = False
    heartbeat_ms: int = 0
    restart_count: int = 0
    backoff_ms: int = 0
    last_error: str = ""
    progress: str = ""
    """What it is busy with before it is ready, for people."""


class LeaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`lease.<role>`: who is active, by compare-and-set."""

    holder: str
    epoch: int
    renewed_ms: int


class RunFloor(msgspec.Struct, frozen=True, kw_only=True):
    """`floor.run`: no unfinished run has a lower sequence, so a takeover reads only what lies above."""

    seq: int


class PoolLoad(msgspec.Struct, frozen=True, kw_only=True):
    """`load.<pool>`: the backlog as the scheduler sees it, told at most every 100 ms and at least every second."""

    pool_id: Name
    at_ms: int
    snapshot_version: int
    queued: dict[str, int]
    """Tasks waiting, by priority."""
    queue_seq: dict[str, int]
    """Highest sequence of the admission stream that `queued` accounts for, by priority."""
    running: int
    slots_total: int
    slots_free: int
    replicas_ready: int
    service_ms: float
    """Measured mean time a task holds a slot (EWMA); 0 until the first task ended."""


class PoolRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pool_id: Name


class PoolHealth(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """GET /v1/pools/{id}/health (OC-CTRL-2001)."""

    live: bool
    ready: bool
    draining: bool
    metrics: dict[str, float]
    last_error: str | None = None
    replicas: tuple[ReplicaRecord, ...] = ()


class EngineCapability(msgspec.Struct, frozen=True, kw_only=True):
    engine: Engine
    ctx_max: int
    supported_workloads: tuple[Workload, ...]
    rate_limits: dict[str, int]
    features: dict[str, bool]
    concurrency: int
    """Slots of all ready replicas."""
    pools: tuple["PoolCapability", ...]


class PoolCapability(msgspec.Struct, frozen=True, kw_only=True):
    pool_id: Name
    model_ref: str
    ctx_max: int
    slots_total: int
    slots_free: int
    engine_version: str
    model_digest: str
    sampler_profile_version: str
    device: str
    ready: bool
    max_tokens_out: int


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/capabilities (ORCH-3095, OC-CTRL-2060)."""

    api_version: str
    engines: tuple[EngineCapability, ...]


NODE_DECODER: Final = msgspec.json.Decoder(NodeRecord)
REPLICA_DECODER: Final = msgspec.json.Decoder(ReplicaRecord)
LEASE_DECODER: Final = msgspec.json.Decoder(LeaseRecord)
FLOOR_DECODER: Final = msgspec.json.Decoder(RunFloor)
LOAD_DECODER: Final = msgspec.json.Decoder(PoolLoad)
