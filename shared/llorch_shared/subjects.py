"""Every subject of the system, and nothing else.

Who publishes, who consumes and what is promised stands in subject_table.py. A subject spelled anywhere else in the code
is a mistake.
"""

from base64 import urlsafe_b64encode
from typing import Final, NamedTuple
from zlib import crc32

from llorch_shared.identifiers import is_name, token

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
SESSION_ENDED: Final = "llorch.ses.ended"
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
PLACEMENT_AHEAD: Final = "llorch.ahead.{node}"
SCHEDULER_HERE: Final = "llorch.here.scheduler.{instance}"
NODE_HERE: Final = "llorch.here.node.{node}"
PROVISION_ENGINE: Final = "llorch.prov.{node}.engine.ensure"
PROVISION_MODEL: Final = "llorch.prov.{node}.model.ensure"
PROVISION_VERIFY: Final = "llorch.prov.{node}.model.verify"
PROVISION_STATUS: Final = "llorch.prov.{node}.status"
PROVISION_PROGRESS: Final = "llorch.prov.{node}.progress.{job}"

ALL_ADMISSIONS: Final = "llorch.adm.*.*.*"
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
ALL_SESSIONS: Final = "$KV.SES.session.>"
ALL_SESSIONS_LIVE: Final = "llorch.ses.live.session.>"
ALL_SESSIONS_REPUBLISHED: Final = "llorch.ses.live.>"
ALL_LOADS: Final = "llorch.load.*"
ALL_OBJECT_ENTRIES: Final = "$O.ART.M.>"
ALL_OBJECT_CHUNKS: Final = "$O.ART.C.>"
ALL_CATALOG_LIVE: Final = "llorch.cat.live.>"
ALL_ARTIFACTS: Final = "llorch.art.*.*.*"

OBJECT_BUCKET: Final = "ART"

LANE_HEADER: Final = "Llorch-Lane"
CORRELATION_HEADER: Final = "X-Correlation-Id"

BUS_LANE: Final = "bus"
"""Lane of what no gateway relays, where a tenant has none of its own."""
_BUS_LANE_OF: Final = "bus-"

ACCOUNT_OF_TENANT: Final = "TENANT_"
"""Begins the name of a tenant's account on the bus. Names have no capitals, so no tenant's is taken for one."""

SHARDS: Final = 8
"""Parts of the pools that schedulers lease. Part of the contract: all processes of a system must agree on it."""


def shard_of(pool: str) -> int:
    """The shard a pool belongs to, the same on every machine."""
    return crc32(pool.encode()) % SHARDS


def admission(pool: str, priority: str, tenant: str) -> str:
    return f"llorch.adm.{token(pool)}.{token(priority)}.{token(tenant)}"


def admissions_of(tenant: str) -> str:
    """Of one tenant, in every pool and class."""
    return f"llorch.adm.*.*.{token(tenant)}"


def own_admission(pool: str, priority: str, tenant: str) -> str:
    """Where a task is stored that a tenant queued itself: the last word is its account instead of its name. The server
    puts it there when it takes the task over out of that account (`bus_users`), so nobody there can be without it."""
    return f"llorch.adm.{token(pool)}.{token(priority)}.{ACCOUNT_OF_TENANT}{token(tenant)}"


def own_admissions_of(tenant: str) -> str:
    return f"llorch.adm.*.*.{ACCOUNT_OF_TENANT}{token(tenant)}"


class Queued(NamedTuple):
    """`tenant` is as the subject has it, a name or not. `itself`: it did not ask a service to queue the task."""

    tenant: str
    itself: bool


def queued_by(admission: str) -> Queued:
    """Whose task waits on this subject, and who put it there."""
    last = last_token(admission)
    tenant = last.removeprefix(ACCOUNT_OF_TENANT)
    return Queued(tenant, tenant != last)


def admission_filter(pool: str, priority: str) -> str:
    return f"llorch.adm.{token(pool)}.{token(priority)}.*"


def run(task: str) -> str:
    return f"llorch.run.{token(task)}"


def bus_lane(tenant: str) -> str:
    """Lane of a tenant's tasks that no gateway relays: what its user on the bus may hear. A tenant whose name leaves no
    room for it shares one with others, and has no such user."""
    lane = _BUS_LANE_OF + tenant
    return lane if is_name(lane) else BUS_LANE


def is_bus_lane(lane: str) -> bool:
    return lane == BUS_LANE or lane.startswith(_BUS_LANE_OF)


def cancel(task: str) -> str:
    return f"llorch.cxl.{token(task)}"


def cancel_signal(task: str) -> str:
    return f"llorch.can.{token(task)}"


def placement(pool: str, replica: str) -> str:
    return f"llorch.plc.{token(pool)}.{token(replica)}"


def tokens(lane: str, task: str) -> str:
    return f"llorch.tok.{token(lane)}.{token(task)}"


def token_probe(node: str) -> str:
    """Where a node looks whether the token log stores what it publishes: the lane of no gateway."""
    return tokens("node", node)


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


def objects_of(tenant: str) -> str:
    """The chunks of every object that is counted to the tenant."""
    return f"$O.ART.C.{token(tenant)}.*"


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


def session_deleted(tenant: str, session_id: str) -> str:
    """A session without an account was deleted; kept while an engine may hold text of it."""
    return f"$KV.SES.deleted.{token(tenant)}.{token(session_id)}"


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


def placement_ahead(node: str) -> str:
    return f"llorch.ahead.{token(node)}"


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
