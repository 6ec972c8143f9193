"""The bus as a contract: who publishes and consumes each subject, and what is promised to a message on it.

contracts/asyncapi.yaml is written from this table; the subjects themselves are spelled in subjects.py.
"""

from enum import StrEnum
from typing import Final

import msgspec

from llorch_shared import subjects


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
        pattern=subjects.ADMISSION,
        title="A task waits in the queue of its pool, priority and tenant; the publish ack is the admission. Where the "
        "tenant queued it out of an account of its own, it is stored under `TENANT_<tenant>`, that account",
        publishers=("gateway", "bus client", "orchctl"),
        consumers=("scheduler", "gateway"),
        delivery=Delivery.WORK_QUEUE,
        payload="TaskRequest",
    ),
    Subject(
        pattern=subjects.RUN,
        title="The truth about one task since it was placed: idempotency guard, fence and answer to a task lookup",
        publishers=("scheduler", "poold"),
        consumers=("scheduler", "poold", "gateway", "orchctl", "auditor"),
        delivery=Delivery.LATEST,
        payload="RunRecord",
    ),
    Subject(
        pattern=subjects.RUN_LIVE,
        title="Each stored change of a run, republished by the server with its sequence",
        publishers=("nats-server",),
        consumers=("scheduler",),
        delivery=Delivery.SIGNAL,
        payload="RunRecord",
    ),
    Subject(
        pattern=subjects.CANCEL,
        title="The durable wish to cancel a task",
        publishers=("gateway", "bus client"),
        consumers=("scheduler", "poold"),
        delivery=Delivery.STORED,
        payload="CancelRequest",
    ),
    Subject(
        pattern=subjects.CANCEL_SIGNAL,
        title="Wakes whoever holds the task: a cancel wish was stored",
        publishers=("gateway", "bus client"),
        consumers=("scheduler", "poold", "gateway"),
        delivery=Delivery.SIGNAL,
        payload="CancelRequest",
    ),
    Subject(
        pattern=subjects.PLACEMENT,
        title="A task placed on one replica",
        publishers=("scheduler",),
        consumers=("poold",),
        delivery=Delivery.WORK_QUEUE,
        payload="Placement",
    ),
    Subject(
        pattern=subjects.TOKENS,
        title="Server-sent event frames of one task, encoded once by the node",
        publishers=("poold", "scheduler"),
        consumers=("gateway", "bus client", "poold", "scheduler"),
        delivery=Delivery.STORED,
        payload="text/event-stream",
    ),
    Subject(
        pattern=subjects.READERS,
        title="Does anybody read this task? Asked before one without readers is cancelled; the payload names the asker",
        publishers=("gateway",),
        consumers=("gateway",),
        delivery=Delivery.SIGNAL,
        payload="text/plain",
    ),
    Subject(
        pattern=subjects.READERS_ANSWER,
        title="Yes, this gateway has a reader of that task",
        publishers=("gateway",),
        consumers=("gateway",),
        delivery=Delivery.SIGNAL,
        payload="Empty",
    ),
    Subject(
        pattern=subjects.AUDIT,
        title="What happened to a task, for auditors and projections",
        publishers=("gateway", "scheduler", "poold", "orchctl"),
        consumers=("auditor", "gateway", "scheduler", "poold", "orchctl"),
        delivery=Delivery.STORED,
        payload="AuditRecord",
    ),
    Subject(
        pattern=subjects.DEAD_LETTER,
        title="A message of a queue that cannot be worked on, as it was; `orchctl dead` lists, replays and drops them",
        publishers=("scheduler", "poold"),
        consumers=("orchctl",),
        delivery=Delivery.STORED,
        payload="application/octet-stream",
    ),
    Subject(
        pattern=subjects.REGISTRY,
        title="Nodes, replicas, schedulers and leases; each key expires unless renewed",
        publishers=("poold", "scheduler"),
        consumers=("gateway", "scheduler", "poold", "orchctl"),
        delivery=Delivery.LATEST,
        payload="NodeRecord | ReplicaRecord | SchedulerRecord | LeaseRecord | RunFloor",
    ),
    Subject(
        pattern=subjects.REGISTRY_LIVE,
        title="Each stored change and each expiry of a registry key, republished by the server",
        publishers=("nats-server",),
        consumers=("gateway", "scheduler"),
        delivery=Delivery.SIGNAL,
        payload="NodeRecord | ReplicaRecord | SchedulerRecord | LeaseRecord | RunFloor",
    ),
    Subject(
        pattern=subjects.SPEC,
        title="Desired state: the pools, which of them rest or get another model, the tenants, what sessions may use",
        publishers=("orchctl", "gateway", "scheduler", "poold"),
        consumers=("gateway", "scheduler", "poold", "orchctl"),
        delivery=Delivery.LATEST,
        payload="PoolSpec | PoolDrain | PoolReload | Tenant | SessionsSpec",
    ),
    Subject(
        pattern=subjects.SPEC_LIVE,
        title="Each stored change of the desired state, republished by the server",
        publishers=("nats-server",),
        consumers=("gateway", "scheduler", "poold"),
        delivery=Delivery.SIGNAL,
        payload="PoolSpec | PoolDrain | PoolReload | Tenant | SessionsSpec",
    ),
    Subject(
        pattern=subjects.OBJECT_CHUNKS,
        title="A part of an object's bytes",
        publishers=("gateway", "scheduler", "poold", "bus client"),
        consumers=("gateway", "scheduler", "poold"),
        delivery=Delivery.STORED,
        payload="application/octet-stream",
    ),
    Subject(
        pattern=subjects.OBJECT_ENTRY,
        title="An object of the object store ART, as the NATS clients name it; its name is the digest of its bytes",
        publishers=("gateway", "scheduler", "poold", "bus client"),
        consumers=("gateway", "scheduler", "poold"),
        delivery=Delivery.LATEST,
        payload="ObjectEntry",
    ),
    Subject(
        pattern=subjects.ARTIFACT,
        title="Whose artifact this is and what it is about; the document itself is the object of that digest",
        publishers=("gateway", "scheduler", "poold"),
        consumers=("gateway", "scheduler", "poold"),
        delivery=Delivery.LATEST,
        payload="ArtifactRef",
    ),
    Subject(
        pattern=subjects.SESSIONS,
        title="Accounts of sessions: what they may use, have spent and hold for tasks under way; deletions of others",
        publishers=("gateway", "scheduler", "poold"),
        consumers=("gateway", "scheduler", "poold", "orchctl", "auditor"),
        delivery=Delivery.LATEST,
        payload="SessionRecord | SessionEnded",
    ),
    Subject(
        pattern=subjects.SESSIONS_LIVE,
        title="Each stored change of a session's account, republished by the server",
        publishers=("nats-server",),
        consumers=("gateway", "scheduler"),
        delivery=Delivery.SIGNAL,
        payload="SessionRecord | SessionEnded",
    ),
    Subject(
        pattern=subjects.SESSION_ENDED,
        title="A session was deleted: what engines hold of it is erased",
        publishers=("gateway",),
        consumers=("poold",),
        delivery=Delivery.SIGNAL,
        payload="SessionEnded",
    ),
    Subject(
        pattern=subjects.CATALOG,
        title="The catalog: what each model is made of, who vouches for it, and whether it may be used",
        publishers=("gateway", "provisioner"),
        consumers=("gateway", "scheduler", "provisioner"),
        delivery=Delivery.LATEST,
        payload="CatalogEntry",
    ),
    Subject(
        pattern=subjects.CATALOG_LIVE,
        title="Each stored change of the catalog, republished by the server",
        publishers=("nats-server",),
        consumers=("gateway", "scheduler", "provisioner"),
        delivery=Delivery.SIGNAL,
        payload="CatalogEntry",
    ),
    Subject(
        pattern=subjects.LOAD,
        title="Backlog and measured rates of one pool, from which waiting is told",
        publishers=("scheduler",),
        consumers=("gateway", "poold", "orchctl"),
        delivery=Delivery.SIGNAL,
        payload="PoolLoad",
    ),
    Subject(
        pattern=subjects.LOCATE,
        title="Where is this queued task? Answered for the pools of one shard",
        publishers=("gateway", "orchctl", "auditor"),
        consumers=("scheduler",),
        delivery=Delivery.REQUEST,
        payload="TaskRef",
        reply="Located",
    ),
    Subject(
        pattern=subjects.APPOINT,
        title="May this task be admitted now, or when should it come back? Asked while places are promised",
        publishers=("gateway",),
        consumers=("scheduler",),
        delivery=Delivery.REQUEST,
        payload="AppointmentRequest",
        reply="Appointment",
    ),
    Subject(
        pattern=subjects.SESSION_SEEN,
        title="Where did this session run last? Answered, and on demand forgotten, for the pools of one shard",
        publishers=("gateway",),
        consumers=("scheduler",),
        delivery=Delivery.REQUEST,
        payload="SessionQuestion",
        reply="SessionSeen",
    ),
    Subject(
        pattern=subjects.PREEMPT,
        title="Stop a running task for more urgent work; it resumes later",
        publishers=("scheduler",),
        consumers=("poold",),
        delivery=Delivery.SIGNAL,
        payload="PreemptRequest",
    ),
    Subject(
        pattern=subjects.PLACEMENT_AHEAD,
        title="Run this: a task's first placement, whose claim makes its record; stored for it if nobody claims it",
        publishers=("scheduler",),
        consumers=("poold",),
        delivery=Delivery.SIGNAL,
        payload="Placement",
    ),
    Subject(
        pattern=subjects.SCHEDULER_HERE,
        title="Are you there? When nobody listens here any more, several times in a row, this scheduler is gone",
        publishers=("scheduler",),
        consumers=("scheduler",),
        delivery=Delivery.REQUEST,
        payload="Empty",
        reply="Empty",
    ),
    Subject(
        pattern=subjects.NODE_HERE,
        title="Are you there? When nobody listens here any more, several times in a row, this node is gone",
        publishers=("scheduler",),
        consumers=("poold",),
        delivery=Delivery.REQUEST,
        payload="Empty",
        reply="Empty",
    ),
    Subject(
        pattern=subjects.PROVISION_ENGINE,
        title="Make an engine present on this node",
        publishers=("poold", "orchctl"),
        consumers=("provisioner",),
        delivery=Delivery.REQUEST,
        payload="EnsureEngine",
        reply="ProvisionPlan",
    ),
    Subject(
        pattern=subjects.PROVISION_MODEL,
        title="Make a model present on this node",
        publishers=("poold", "orchctl"),
        consumers=("provisioner",),
        delivery=Delivery.REQUEST,
        payload="EnsureModel",
        reply="ProvisionPlan",
    ),
    Subject(
        pattern=subjects.PROVISION_VERIFY,
        title="Compare a model on this node with the catalog, and write the outcome there",
        publishers=("gateway",),
        consumers=("provisioner",),
        delivery=Delivery.REQUEST,
        payload="VerifyModel",
        reply="VerifyAnswer",
    ),
    Subject(
        pattern=subjects.PROVISION_STATUS,
        title="What this node's provisioner has and is doing",
        publishers=("orchctl",),
        consumers=("provisioner",),
        delivery=Delivery.REQUEST,
        payload="TaskRef",
        reply="ProvisionerStatus",
    ),
    Subject(
        pattern=subjects.PROVISION_PROGRESS,
        title="Steps, bytes and the outcome of one provisioning job, repeated while it lasts",
        publishers=("provisioner",),
        consumers=("poold", "orchctl"),
        delivery=Delivery.SIGNAL,
        payload="ProvisionEvent",
    ),
)
"""Without the operations, whose rows are `http_api`: each that names a twin is served at `api(twin)`."""
