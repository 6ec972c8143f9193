"""What is alive: nodes, replicas and leases, as keys that expire unless renewed; and the load the scheduler tells."""

from enum import StrEnum
from typing import Final

import msgspec

from llorch_shared.wire.desired import PoolDrain, PoolReload
from llorch_shared.wire.task import Engine, Name, Priority, Workload


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


class StandbyState(StrEnum):
    COMING = "coming"
    READY = "ready"
    """It has passed everything that makes a replica ready, and takes no tasks yet."""
    FAILED = "failed"


class Standby(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica that is to take over in a reload has to say."""

    reload_id: str
    state: StandbyState


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
    quant: str = ""
    compute_capability: str = ""
    determinism_class: str = ""
    """Replicas of one class give the same tokens for the same seed; empty while it is not known."""
    features: tuple[str, ...] = ()
    """What its self-test has shown, for example `interruptible_decode`."""
    takes_ahead: bool = False
    """Its node hears of first placements ahead of their run records."""
    kv_bytes_per_token: int = 0
    """For engines that take KV memory as tasks come; 0 when it was all taken at load."""
    perf_tokens_per_s: float = 0
    """Decode rate of one task as measured on this replica lately (ORCH-3972); 0 until one ended."""
    perf_first_token_ms: float = 0
    live: bool = False
    heartbeat_ms: int = 0
    restart_count: int = 0
    backoff_ms: int = 0
    last_error: str = ""
    refused: str = ""
    """The error code of what forbids it to run, `UNTRUSTED_ARTIFACT`, while it is failed for that. It begins by itself
    when it is permitted."""
    progress: str = ""
    """What it is busy with before it is ready, for people."""
    standby: Standby | None = None
    """It holds the new model of a reload; its state is never `ready` before the reload is decided."""


class SchedulerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`scheduler.<instance>`: a scheduler process that lives. The pools are shared among as many as there are."""

    instance: Name
    started_ms: int
    renewed_ms: int


class LeaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """`lease.scheduler.<shard>`: who decides for the pools of this shard, by compare-and-set."""

    holder: str
    epoch: int
    renewed_ms: int


class RunFloor(msgspec.Struct, frozen=True, kw_only=True):
    """`floor.run.<shard>`: no unfinished run of the shard's pools has a lower sequence, so a takeover reads only what
    lies above."""

    seq: int


class FlowLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What waits of one tenant in one class."""

    queued: int
    work_ms: float
    """Slot time it is expected to take, milliseconds."""
    weight: int = 1
    pace_ms: float = 0
    """Measured mean time between two starts of this flow while it waits; 0 when unknown."""
    used: float = 0
    """Part of max_tokens that its tasks generate, as measured; 0 when unknown."""
    throttled: bool = False
    """A quota of the tenant holds its tasks back now."""
    promised: bool = False
    """Places of this tenant's own bound are promised: ask the scheduler before admitting."""
    due_ms: tuple[int, ...] = ()
    """Deadlines of its tasks at evenly spaced places of its line, the first and the last included, milliseconds after
    `at_ms`; empty when it is not ordered by them."""


class ClassLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What waits in one class. `flows` are the longest; the others are short, and their sums are in the totals."""

    queued: int
    work_ms: float
    weight: int
    flows_weight: int
    """Sum of the weights of the tenants that wait."""
    flows: dict[str, FlowLoad] = {}
    """By tenant."""
    shed: str = ""
    """Why newcomers of this class are refused now; empty when they are not."""
    shed_for_ms: int = 0
    overtaken: float = 0
    """Of what a flow starts while a task of it waits: the part that was admitted later, as measured; see
    `llorch_shared.waiting`."""
    promised: bool = False
    """Places of this queue are promised: ask the scheduler before admitting (`sch.<shard>.appoint`)."""


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
    preemptible: int = 0
    """Running tasks of the lowest class that could be stopped now for an urgent one of a higher class."""
    service_ms: float
    """Measured mean time a task holds a slot (EWMA); 0 until the first task ended."""
    turn_ms: float = 0
    """Measured slot time between two starts while tasks wait; 0 until the first task ended."""
    used: float = 0
    """Part of max_tokens that tasks of this pool generate, as measured; 0 until the first task ended."""
    loading_ms: int = 0
    """With no ready replica: expected time until one is; 0 otherwise."""
    loading_slots: int = 0
    """Slots it will bring."""
    classes: dict[str, ClassLoad] = {}
    """By priority."""
    token_ms: float = 0
    """Measured slot time per generated token …"""
    overhead_ms: float = 0
    """… and per task besides; both 0 until the first task ended."""
    spread: tuple[float, ...] = ()
    """Measured distribution of real over predicted slot time, see `llorch_shared.on_time`."""
    wait_spread: tuple[float, ...] = ()
    """The same of real over predicted waits."""


class AppointmentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """May this task be admitted now? Asked when places are promised, or after the server refused."""

    task_id: str
    pool_id: Name
    priority: Priority
    tenant: Name
    refused: bool = False
    """The server has just refused it: the queue is full whatever the load report says."""
    tenant_refused: bool = False
    """The server has just refused it for its tenant's bound."""


class Appointment(msgspec.Struct, frozen=True, kw_only=True):
    admit: bool
    retry_after_ms: int = 0
    """When to come back; the place is kept for that moment if `promised`."""
    promised: bool = False
    tenant_bound: bool = False
    """It waits for a place of its tenant, not for one of the queue."""


class PoolRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pool_id: Name


class PoolHealth(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """GET /v1/pools/{id}/health (OC-CTRL-2001)."""

    live: bool
    ready: bool
    draining: bool
    metrics: dict[str, float]
    last_error: str | None = None
    """Why a replica broke last, or why the last reload failed."""
    reload: PoolReload | None = None
    """The last one that was asked for."""
    drain: PoolDrain | None = None
    """While the pool is drained."""
    replicas: tuple[ReplicaRecord, ...] = ()


class EngineCapability(msgspec.Struct, frozen=True, kw_only=True):
    engine: Engine
    ctx_max: int
    supported_workloads: tuple[Workload, ...]
    rate_limits: dict[str, float]
    """Starts per second by class, `interactive_rps` and `batch_rps`, of all pools; absent where one has no limit."""
    features: dict[str, bool]
    concurrency: int
    """Slots of all ready replicas."""
    pools: tuple["PoolCapability", ...]


class PoolCapability(msgspec.Struct, frozen=True, kw_only=True):
    pool_id: Name
    model_ref: str
    workloads: tuple[Workload, ...] = (Workload.COMPLETION,)
    ctx_max: int
    slots_total: int
    slots_free: int
    engine_version: str
    model_digest: str
    sampler_profile_version: str
    device: str
    ready: bool
    max_tokens_out: int
    features: tuple[str, ...] = ()
    """What its engines have shown, for example `interruptible_decode`."""
    rate_limits: dict[str, float] = {}
    """As of the engine."""
    drained: bool = False
    """It takes no tasks until somebody undrains it."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/capabilities (ORCH-3095, OC-CTRL-2060)."""

    api_version: str
    engines: tuple[EngineCapability, ...]


NODE_DECODER: Final = msgspec.json.Decoder(NodeRecord)
REPLICA_DECODER: Final = msgspec.json.Decoder(ReplicaRecord)
SCHEDULER_DECODER: Final = msgspec.json.Decoder(SchedulerRecord)
LEASE_DECODER: Final = msgspec.json.Decoder(LeaseRecord)
FLOOR_DECODER: Final = msgspec.json.Decoder(RunFloor)
LOAD_DECODER: Final = msgspec.json.Decoder(PoolLoad)
APPOINTMENT_REQUEST_DECODER: Final = msgspec.json.Decoder(AppointmentRequest)
APPOINTMENT_DECODER: Final = msgspec.json.Decoder(Appointment)
