"""Desired state: a pool as an operator writes it. The same Struct is read from the config file and kept in the spec
bucket (REQUIREMENTS section 3). Unknown keys are refused."""

from enum import StrEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llorch_shared import url_credentials
from llorch_shared.wire.policy import (
    AdmissionSpec,
    AffinitySpec,
    BreakerSpec,
    CanarySpec,
    DeadlineSpec,
    PreemptionSpec,
    QueueSpec,
    WaitingSpec,
)
from llorch_shared.wire.provisioning_spec import ProvisioningSpec
from llorch_shared.wire.task import CTX_MAX, Engine, Name, Workload


class Pooling(StrEnum):
    """How the vectors of a text's tokens become the one of the text."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "last"
    """Of the last token: what models that generate are trained for. Only here may an input be read in parts, so that
    engines on a CPU keep their small batches."""


class TimeoutSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    wall_ms: Annotated[int, Meta(ge=1)] = 600_000
    """Longest time one attempt may hold a slot."""
    idle_ms: Annotated[int, Meta(ge=1)] = 60_000
    """Longest silence of the engine during one attempt. Reading a part of a long prompt is not silence where the engine
    tells of it, as llama-server does after every batch."""


class PoolSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Replicas that serve one model with one engine."""

    id: Name
    engine: Engine
    model: Annotated[str, Meta(min_length=1, max_length=512)]
    """model_ref that tasks name: `file:`, `pypi:package/file-in-wheel`, … """
    devices: tuple[Annotated[int, Meta(ge=0)], ...] | Literal["cpu", "all"] = "all"
    """GPU indices of one replica's device mask. `cpu` is refused unless the profile is `ci` (ORCH-1102)."""
    nodes: tuple[Name, ...] = ()
    """Nodes that serve it; empty means every node."""
    replicas: Annotated[int, Meta(ge=0, le=64)] = 1
    """Replicas per node."""
    slots: Annotated[int, Meta(ge=1, le=4096)] = 1
    """Tasks one replica decodes at once."""
    quant: str | None = None
    ctx: Annotated[int, Meta(ge=1, le=CTX_MAX)] = 8192
    preload: Literal[True] = True
    """Engines load at start, before the first task (ORCH-3002)."""
    sampler_profile_version: Name = "v1"
    workloads: Annotated[tuple[Workload, ...], Meta(min_length=1)] | UnsetType = UNSET
    """What its engines are started for; absent: `completion` alone. `rerank` needs a model that was made for it, and a
    pool of its own. Since version 2 of specifications, as `pooling`; written only where they say something."""
    pooling: Pooling | UnsetType = UNSET
    """Of embeddings; absent: as the model file says."""
    require_same_engine_version: bool = True
    """Tasks go to replicas of one engine version, model digest and sampler profile, but for a canary (ORCH-3046)."""
    queue: QueueSpec = QueueSpec()
    admission: AdmissionSpec = AdmissionSpec()
    deadlines: DeadlineSpec = DeadlineSpec()
    preemption: PreemptionSpec = PreemptionSpec()
    affinity: AffinitySpec = AffinitySpec()
    canary: CanarySpec | None = None
    breaker: BreakerSpec | None = None
    """Off unless an objective is set."""
    waiting: WaitingSpec = WaitingSpec()
    timeouts: TimeoutSpec = TimeoutSpec()
    provisioning: ProvisioningSpec = ProvisioningSpec()

    def __post_init__(self) -> None:
        url_credentials.check("model", self.model)
        if Workload.RERANK in self.serves and set(self.serves) != {Workload.RERANK}:
            raise ValueError("a pool that serves the workload rerank serves no other")
        if self.pooling is not UNSET and Workload.EMBEDDING not in self.serves:
            raise ValueError("pooling is of embeddings, which are not among the workloads of this pool")

    @property
    def serves(self) -> tuple[Workload, ...]:
        """Its workloads."""
        return (Workload.COMPLETION,) if self.workloads is UNSET else self.workloads


POOL_DECODER: Final = msgspec.json.Decoder(PoolSpec)
