"""Every subject of the system, and nothing else.

Who publishes, who consumes and what is promised stands beside each entry in `SUBJECTS`; contracts/asyncapi.yaml is
written from that table. A subject spelled anywhere else in the code is a mistake.
"""

from base64 import urlsafe_b64encode
from enum import StrEnum
from typing import Final
from zlib import crc32

import msgspec

from llorch_shared.identifiers import token

ADMISSION: Final = "llorch.adm.{pool}.{priority}.{tenant}"
RUN: Final = "llorch.run.{task}"
RUN_LIVE: Final = "llorch.live.run.{task}"
CANCEL: Final = "llorch.cxl.{task}"
CANCEL_SIGNAL: Final = "llorch.can.{task}"
PLACEMENT: Final = "llorch.plc.{pool}.{replica}"
TOKENS: Final = "llorch.tok.{lane}.{task}"
AUDIT: Final = "llorch.aud.{event}.{task}"
DEAD_LETTER: Final = "llorch.dead.{what}.{pool}"
READERS: Final = "llorch.rdr.ask.{task}"
READERS_ANSWER: Final = "llorch.rdr.yes.{lane}.{task}"
REGISTRY: Final = "$KV.REG.{key}"
REGISTRY_LIVE: Final = "llorch.reg.live.{key}"
SPEC: Final = "$KV.SPEC.{key}"
SPEC_LIVE: Final = "llorch.spec.live.{key}"
SESSIONS: Final = "$KV.SES.{key}"
SESSIONS_LIVE: Final = "llorch.ses.live.{key}"
OBJECT_ENTRY: Final = "$O.ART.M.{object}"
OBJECT_CHUNKS: Final = "$O.ART.C.{chunks}"
ARTIFACT: Final = "llorch.art.{tenant}.{kind}.{artifact}"
CATALOG: Final = "$KV.CAT.{key}"
CATALOG_LIVE: Final = "llorch.cat.live.{key}"
LOAD: Final = "llorch.load.{pool}"
LOCATE: Final = "llorch.sch.{shard}.locate"
APPOINT: Final = "llorch.sch.{shard}.appoint"
SESSION_SEEN: Final = "llorch.sch.{shard}.session"
PREEMPT: Final = "llorch.pre.{node}"
SCHEDULER_HERE: Final = "llorch.here.scheduler.{instance}"
NODE_HERE: Final = "llorch.here.node.{node}"
PROVISION_ENGINE: Final = "llorch.prov.{node}.engine.ensure"
PROVISION_MODEL: Final = "llorch.prov.{node}.model.ensure"
PROVISION_VERIFY: Final = "llorch.prov.{node}.model.verify"
PROVISION_STATUS: Final = "llorch.prov.{node}.status"
PROVISION_PROGRESS: Final = "llorch.prov.{node}.progress.{job}"

ALL_RUNS: Final = "llorch.run.*"
ALL_RUNS_LIVE: Final = "llorch.live.run.*"
ALL_RUNS_REPUBLISHED: Final = "llorch.live.run.{{wildcard(1)}}"
"""Where the server republishes a run, in its own notation."""
ALL_PLACEMENTS: Final = "llorch.plc.*.*"
ALL_TOKENS: Final = "llorch.tok.*.*"
ALL_AUDITS: Final = "llorch.aud.*.*"
ALL_DEAD_LETTERS: Final = "llorch.dead.*.*"
ALL_API: Final = "llorch.api.>"
ALL_CANCELS: Final = "llorch.cxl.*"
ALL_CANCEL_SIGNALS: Final = "llorch.can.*"
ALL_READERS: Final = "llorch.rdr.ask.*"
ALL_REGISTRY_LIVE: Final = "llorch.reg.live.>"
ALL_SPEC_LIVE: Final = "llorch.spec.live.>"
ALL_SESSIONS: Final = "$KV.SES.>"
ALL_SESSIONS_LIVE: Final = "llorch.ses.live.>"
ALL_LOADS: Final = "llorch.load.*"
ALL_OBJECT_ENTRIES: Final = "$O.ART.M.>"
ALL_OBJECT_CHUNKS: Final = "$O.ART.C.>"
ALL_CATALOG_LIVE: Final = "llorch.cat.live.>"
ALL_ARTIFACTS: Final = "llorch.art.*.*.*"

OBJECT_BUCKET: Final = "ART"

LANE_HEADER: Final = "Llorch-Lane"
CORRELATION_HEADER: Final = "X-Correlation-Id"

BUS_LANE: Final = "bus"
"""Lane of tasks that a bus client published straight to the admission stream without naming one."""

SHARDS: Final = 8
"""Parts of the pools that schedulers lease. Part of the contract: all processes of a system must agree on it."""


def shard_of(pool: str) -> int:
    """The shard a pool belongs to, the same on every machine."""
    return crc32(pool.encode()) % SHARDS


def admission(pool: str, priority: str, tenant: str) -> str:
    return f"llorch.adm.{token(pool)}.{token(priority)}.{token(tenant)}"


def admission_filter(pool: str, priority: str) -> str:
    return f"llorch.adm.{token(pool)}.{token(priority)}.*"


def run(task: str) -> str:
    return f"llorch.run.{token(task)}"


def cancel(task: str) -> str:
    return f"llorch.cxl.{token(task)}"


def cancel_signal(task: str) -> str:
    return f"llorch.can.{token(task)}"


def placement(pool: str, replica: str) -> str:
    return f"llorch.plc.{token(pool)}.{token(replica)}"


def tokens(lane: str, task: str) -> str:
    return f"llorch.tok.{token(lane)}.{token(task)}"


def tokens_of_lane(lane: str) -> str:
    return f"llorch.tok.{token(lane)}.*"


def tokens_of_task(task: str) -> str:
    return f"llorch.tok.*.{token(task)}"


def readers(task: str) -> str:
    return f"llorch.rdr.ask.{token(task)}"


def readers_answer(task: str, lane: str) -> str:
    return f"llorch.rdr.yes.{token(lane)}.{token(task)}"


def audit(event: str, task: str) -> str:
    return f"llorch.aud.{token(event)}.{token(task)}"


def audits_of_task(task: str) -> str:
    return f"llorch.aud.*.{token(task)}"


def audits(event: str = "", task: str = "") -> str:
    """Of one event, one task, both or all."""
    return f"llorch.aud.{token(event) if event else '*'}.{token(task) if task else '*'}"


def dead_letter(what: str, pool: str) -> str:
    return f"llorch.dead.{token(what)}.{token(pool)}"


def node_key(node: str) -> str:
    return f"node.{token(node)}"


def replica_key(node: str, replica: str) -> str:
    return f"replica.{token(node)}.{token(replica)}"


def pool_key(pool: str) -> str:
    return f"pool.{token(pool)}"


def drain_key(pool: str) -> str:
    return f"drain.{token(pool)}"


def reload_key(pool: str) -> str:
    return f"reload.{token(pool)}"


def tenant_key(tenant: str) -> str:
    return f"tenant.{token(tenant)}"


def registry(key: str) -> str:
    return f"$KV.REG.{key}"


def registry_live(key: str) -> str:
    return f"llorch.reg.live.{key}"


def registry_key(subject: str) -> str:
    """`$KV.REG.x` or `llorch.reg.live.$KV.REG.x` or `llorch.reg.live.x` -> `x`."""
    return subject.removeprefix("llorch.reg.live.").removeprefix("$KV.REG.")


def spec(key: str) -> str:
    return f"$KV.SPEC.{key}"


def spec_key(subject: str) -> str:
    return subject.removeprefix("llorch.spec.live.").removeprefix("$KV.SPEC.")


def object_name(digest: str) -> str:
    """The name of an object in its bucket: `sha256:<hex>` with a dash, since NATS clients take no colon."""
    return digest.replace(":", "-", 1)


def object_entry(digest: str) -> str:
    """As NATS clients spell the entry of an object: its name in URL-safe base64."""
    return f"$O.ART.M.{urlsafe_b64encode(object_name(digest).encode()).decode()}"


def object_chunks(nuid: str) -> str:
    return f"$O.ART.C.{nuid}"


def artifact(tenant: str, kind: str, digest: str) -> str:
    """The index entry of an artifact; `*` for a tenant or kind that is any."""
    return f"{artifacts(tenant, kind).removesuffix('*')}{digest.removeprefix('sha256:')}"


def artifacts(tenant: str, kind: str) -> str:
    parts = (part if part == "*" else token(part) for part in (tenant, kind))
    return f"llorch.art.{'.'.join(parts)}.*"


SESSION_POLICY_KEY: Final = "sessions"
"""Of the specification: what sessions may use."""


def session(tenant: str, session_id: str) -> str:
    return f"$KV.SES.session.{token(tenant)}.{token(session_id)}"


def session_of_any(session_id: str) -> str:
    """Of whatever tenant."""
    return f"$KV.SES.session.*.{token(session_id)}"


def model_key(model: str) -> str:
    """`*` stands for every model."""
    return f"model.{model if model == '*' else token(model)}"


def catalog(key: str) -> str:
    return f"$KV.CAT.{key}"


def catalog_key(subject: str) -> str:
    return subject.removeprefix("llorch.cat.live.").removeprefix("$KV.CAT.")


def load(pool: str) -> str:
    return f"llorch.load.{token(pool)}"


def lease_key(shard: int) -> str:
    return f"lease.scheduler.{shard}"


def floor_key(shard: int) -> str:
    return f"floor.run.{shard}"


def scheduler_key(instance: str) -> str:
    return f"scheduler.{token(instance)}"


def locate(shard: int) -> str:
    return f"llorch.sch.{shard}.locate"


def appoint(shard: int) -> str:
    return f"llorch.sch.{shard}.appoint"


def session_seen(shard: int) -> str:
    return f"llorch.sch.{shard}.session"


def preempt(node: str) -> str:
    return f"llorch.pre.{token(node)}"


def scheduler_here(instance: str) -> str:
    return f"llorch.here.scheduler.{token(instance)}"


def node_here(node: str) -> str:
    return f"llorch.here.node.{token(node)}"


def provision_engine(node: str) -> str:
    return f"llorch.prov.{token(node)}.engine.ensure"


def provision_model(node: str) -> str:
    return f"llorch.prov.{token(node)}.model.ensure"


def provision_verify(node: str) -> str:
    return f"llorch.prov.{token(node)}.model.verify"


def provision_status(node: str) -> str:
    return f"llorch.prov.{token(node)}.status"


def provision_progress(node: str, job: str) -> str:
    return f"llorch.prov.{token(node)}.progress.{token(job)}"


def provision_progress_of_node(node: str) -> str:
    return f"llorch.prov.{token(node)}.progress.*"


def api(twin: str) -> str:
    """Where an operation is asked for; `twin` as its row names it."""
    return ALL_API.removesuffix(">") + twin


def micro(verb: str, name: str, instance: str) -> tuple[str, str, str]:
    """Where NATS's own tools ask for services: all, of one name, one instance. `verb`: PING, INFO or STATS."""
    return f"$SRV.{verb}", f"$SRV.{verb}.{name}", f"$SRV.{verb}.{name}.{instance}"


def last_token(subject: str) -> str:
    """The task of a per-task subject."""
    return subject.rpartition(".")[2]


class Delivery(StrEnum):
    """What is promised to a message once its publish has returned."""

    WORK_QUEUE = "stored; delivered until acknowledged once; refused when full"
    STORED = "stored; readable until its age or size limit"
    LATEST = "stored; only the newest per subject; changed by compare-and-set"
    SIGNAL = "at most once; its truth is kept in a stream"
    REQUEST = "request and reply; the caller retries"


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the bus contract."""

    pattern: str
    title: str
    publishers: tuple[str, ...]
    consumers: tuple[str, ...]
    delivery: Delivery
    payload: str
    """Name of the wire type, or a media type for raw frames."""
    reply: str = ""


SUBJECTS: Final[tuple[Subject, ...]] = (
    Subject(
        pattern=ADMISSION,
        title="A task waits in the queue of its pool, priority and tenant; the publish ack is the admission",
        publishers=("gateway", "bus client"),
        consumers=("scheduler",),
        delivery=Delivery.WORK_QUEUE,
        payload="TaskRequest",
    ),
    Subject(
        pattern=RUN,
        title="The truth about one task since it was placed: idempotency guard, fence and answer to a task lookup",
        publishers=("scheduler", "poold"),
        consumers=("scheduler", "poold", "gateway"),
        delivery=Delivery.LATEST,
        payload="RunRecord",
    ),
    Subject(
        pattern=RUN_LIVE,
        title="Each stored change of a run, republished by the server with its sequence",
        publishers=("nats-server",),
        consumers=("scheduler", "poold"),
        delivery=Delivery.SIGNAL,
        payload="RunRecord",
    ),
    Subject(
        pattern=CANCEL,
        title="The durable wish to cancel a task",
        publishers=("gateway", "bus client"),
        consumers=("scheduler", "poold"),
        delivery=Delivery.STORED,
        payload="CancelRequest",
    ),
    Subject(
        pattern=CANCEL_SIGNAL,
        title="Wakes whoever holds the task: a cancel wish was stored",
        publishers=("gateway", "bus client"),
        consumers=("scheduler", "poold", "gateway"),
        delivery=Delivery.SIGNAL,
        payload="CancelRequest",
    ),
    Subject(
        pattern=PLACEMENT,
        title="A task placed on one replica",
        publishers=("scheduler",),
        consumers=("poold",),
        delivery=Delivery.WORK_QUEUE,
        payload="Placement",
    ),
    Subject(
        pattern=TOKENS,
        title="Server-sent event frames of one task, encoded once by the node",
        publishers=("poold", "scheduler"),
        consumers=("gateway", "bus client"),
        delivery=Delivery.STORED,
        payload="text/event-stream",
    ),
    Subject(
        pattern=READERS,
        title="Does anybody read this task? Asked before one without readers is cancelled; the payload names the asker",
        publishers=("gateway",),
        consumers=("gateway",),
        delivery=Delivery.SIGNAL,
        payload="text/plain",
    ),
    Subject(
        pattern=READERS_ANSWER,
        title="Yes, this gateway has a reader of that task",
        publishers=("gateway",),
        consumers=("gateway",),
        delivery=Delivery.SIGNAL,
        payload="Empty",
    ),
    Subject(
        pattern=AUDIT,
        title="What happened to a task, for auditors and projections",
        publishers=("gateway", "scheduler", "poold"),
        consumers=("auditor",),
        delivery=Delivery.STORED,
        payload="AuditRecord",
    ),
    Subject(
        pattern=DEAD_LETTER,
        title="A message of a queue that cannot be worked on, as it was; `orchctl dead` lists, replays and drops them",
        publishers=("scheduler", "poold"),
        consumers=("orchctl",),
        delivery=Delivery.STORED,
        payload="application/octet-stream",
    ),
    Subject(
        pattern=REGISTRY,
        title="Nodes, replicas, schedulers and leases; each key expires unless renewed",
        publishers=("poold", "scheduler"),
        consumers=("gateway", "scheduler", "poold"),
        delivery=Delivery.LATEST,
        payload="NodeRecord | ReplicaRecord | SchedulerRecord | LeaseRecord | RunFloor",
    ),
    Subject(
        pattern=REGISTRY_LIVE,
        title="Each stored change and each expiry of a registry key, republished by the server",
        publishers=("nats-server",),
        consumers=("gateway", "scheduler", "poold", "orchctl"),
        delivery=Delivery.SIGNAL,
        payload="NodeRecord | ReplicaRecord | SchedulerRecord | LeaseRecord | RunFloor",
    ),
    Subject(
        pattern=SPEC,
        title="Desired state: the pools, which of them rest or get another model, the tenants, what sessions may use",
        publishers=("orchctl", "gateway", "poold"),
        consumers=("gateway", "scheduler", "poold"),
        delivery=Delivery.LATEST,
        payload="PoolSpec | PoolDrain | PoolReload | Tenant | SessionsSpec",
    ),
    Subject(
        pattern=SPEC_LIVE,
        title="Each stored change of the desired state, republished by the server",
        publishers=("nats-server",),
        consumers=("gateway", "scheduler", "poold"),
        delivery=Delivery.SIGNAL,
        payload="PoolSpec | PoolDrain | PoolReload | Tenant | SessionsSpec",
    ),
    Subject(
        pattern=OBJECT_CHUNKS,
        title="A part of an object's bytes",
        publishers=("gateway", "poold", "bus client"),
        consumers=("gateway", "poold"),
        delivery=Delivery.STORED,
        payload="application/octet-stream",
    ),
    Subject(
        pattern=OBJECT_ENTRY,
        title="An object of the object store ART, as the NATS clients name it; its name is the digest of its bytes",
        publishers=("gateway", "poold", "bus client"),
        consumers=("gateway", "poold"),
        delivery=Delivery.LATEST,
        payload="ObjectEntry",
    ),
    Subject(
        pattern=ARTIFACT,
        title="Whose artifact this is and what it is about; the document itself is the object of that digest",
        publishers=("gateway", "poold"),
        consumers=("gateway",),
        delivery=Delivery.LATEST,
        payload="ArtifactRef",
    ),
    Subject(
        pattern=SESSIONS,
        title="Accounts of sessions: what they may use, have spent and hold for tasks under way",
        publishers=("gateway", "scheduler", "poold"),
        consumers=("gateway", "scheduler", "poold", "orchctl"),
        delivery=Delivery.LATEST,
        payload="SessionRecord",
    ),
    Subject(
        pattern=SESSIONS_LIVE,
        title="Each stored change of a session's account, republished by the server",
        publishers=("nats-server",),
        consumers=("gateway", "scheduler"),
        delivery=Delivery.SIGNAL,
        payload="SessionRecord",
    ),
    Subject(
        pattern=CATALOG,
        title="The catalog: what each model is made of, who vouches for it, and whether it may be used",
        publishers=("gateway", "provisioner"),
        consumers=("gateway",),
        delivery=Delivery.LATEST,
        payload="CatalogEntry",
    ),
    Subject(
        pattern=CATALOG_LIVE,
        title="Each stored change of the catalog, republished by the server",
        publishers=("nats-server",),
        consumers=("gateway",),
        delivery=Delivery.SIGNAL,
        payload="CatalogEntry",
    ),
    Subject(
        pattern=LOAD,
        title="Backlog and measured rates of one pool, from which waiting is told",
        publishers=("scheduler",),
        consumers=("gateway", "poold", "orchctl"),
        delivery=Delivery.SIGNAL,
        payload="PoolLoad",
    ),
    Subject(
        pattern=LOCATE,
        title="Where is this queued task? Answered for the pools of one shard",
        publishers=("gateway",),
        consumers=("scheduler",),
        delivery=Delivery.REQUEST,
        payload="TaskRef",
        reply="Located",
    ),
    Subject(
        pattern=APPOINT,
        title="May this task be admitted now, or when should it come back? Asked while places are promised",
        publishers=("gateway",),
        consumers=("scheduler",),
        delivery=Delivery.REQUEST,
        payload="AppointmentRequest",
        reply="Appointment",
    ),
    Subject(
        pattern=SESSION_SEEN,
        title="Where did this session run last? Answered, and on demand forgotten, for the pools of one shard",
        publishers=("gateway",),
        consumers=("scheduler",),
        delivery=Delivery.REQUEST,
        payload="SessionQuestion",
        reply="SessionSeen",
    ),
    Subject(
        pattern=PREEMPT,
        title="Stop a running task for more urgent work; it resumes later",
        publishers=("scheduler",),
        consumers=("poold",),
        delivery=Delivery.SIGNAL,
        payload="PreemptRequest",
    ),
    Subject(
        pattern=SCHEDULER_HERE,
        title="Are you there? When nobody listens here any more, several times in a row, this scheduler is gone",
        publishers=("scheduler",),
        consumers=("scheduler",),
        delivery=Delivery.REQUEST,
        payload="Empty",
        reply="Empty",
    ),
    Subject(
        pattern=NODE_HERE,
        title="Are you there? When nobody listens here any more, several times in a row, this node is gone",
        publishers=("scheduler",),
        consumers=("poold",),
        delivery=Delivery.REQUEST,
        payload="Empty",
        reply="Empty",
    ),
    Subject(
        pattern=PROVISION_ENGINE,
        title="Make an engine present on this node",
        publishers=("poold", "orchctl"),
        consumers=("provisioner",),
        delivery=Delivery.REQUEST,
        payload="EnsureEngine",
        reply="ProvisionPlan",
    ),
    Subject(
        pattern=PROVISION_MODEL,
        title="Make a model present on this node",
        publishers=("poold", "orchctl"),
        consumers=("provisioner",),
        delivery=Delivery.REQUEST,
        payload="EnsureModel",
        reply="ProvisionPlan",
    ),
    Subject(
        pattern=PROVISION_VERIFY,
        title="Compare a model on this node with the catalog, and write the outcome there",
        publishers=("gateway",),
        consumers=("provisioner",),
        delivery=Delivery.REQUEST,
        payload="VerifyModel",
        reply="VerifyAnswer",
    ),
    Subject(
        pattern=PROVISION_STATUS,
        title="What this node's provisioner has and is doing",
        publishers=("orchctl",),
        consumers=("provisioner",),
        delivery=Delivery.REQUEST,
        payload="TaskRef",
        reply="ProvisionerStatus",
    ),
    Subject(
        pattern=PROVISION_PROGRESS,
        title="Steps, bytes and the outcome of one provisioning job, repeated while it lasts",
        publishers=("provisioner",),
        consumers=("poold", "orchctl"),
        delivery=Delivery.SIGNAL,
        payload="ProvisionEvent",
    ),
)
"""Without the operations, whose rows are `http_api`: each that names a twin is served at `api(twin)`."""
