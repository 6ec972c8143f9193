"""What the parts of one node share: the bus and what is built on it, and the facts of a replica's present life."""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from llorch_poold.core.fence import Fence
from llorch_poold.core.pace import Pace
from llorch_poold.core.retention import FrameRetention
from llorch_poold.node_metrics import ReplicaMetrics
from llorch_poold.outlet import TokenOutlet
from llorch_poold.pool_loads import PoolLoads
from llorch_poold.run_store import RunStore
from llorch_poold.token_log import TokenLog
from llorch_shared.audit import Audit
from llorch_shared.bus.port import Bus
from llorch_shared.metrics import Metrics
from llorch_shared.session_store import SessionStore
from llorch_shared.settings import PooldSettings
from llorch_shared.shared_walks import SharedWalks
from llorch_shared.wire.objects import OBJECT_SHARE_BYTES
from llorch_shared.wire.task import Engine

INTERRUPTIBLE_DECODE: Final = "interruptible_decode"
"""The feature of an engine that can be stopped within a generation and repeats itself (ORCH-3086)."""

CHAT_TEMPLATE: Final = "chat_template"
"""The feature of an engine that makes prompts of conversations by its model's own template."""

TOOLS: Final = "tools"
"""The feature of an engine whose model's template takes tools, and which reads the calls that the model makes."""


@dataclass(frozen=True, slots=True)
class NodeContext:
    """One per process."""

    node_id: str
    bus: Bus
    runs: RunStore
    fence: Fence
    outlet: TokenOutlet
    retention: FrameRetention
    audit: Audit
    sessions: SessionStore
    loads: PoolLoads
    token_log: TokenLog
    backlogs: SharedWalks
    """Of streams that earlier attempts began elsewhere."""
    metrics: Metrics
    settings: PooldSettings
    share_bytes: int = OBJECT_SHARE_BYTES
    """Of each tenant in the object store, where traces are kept."""
    settling: set[asyncio.Task[None]] = field(default_factory=set)
    """Tasks whose end was being stored when their replica went. The record may stand already, its answer under way:
    they go on until they have said so."""


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """One life of one engine process, as its tasks' readers are told about it."""

    replica_id: str
    pool_id: str
    incarnation: str
    engine: Engine
    engine_version: str
    model_digest: str
    sampler_profile_version: str
    device: str
    determinism_class: str
    features: tuple[str, ...]
    """What this life has shown, as `ReplicaRecord.features`."""
    metrics: ReplicaMetrics
    pace: Pace
    """Measured here, told in the replica's record."""
