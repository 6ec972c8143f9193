"""Provisioning as messages: what is wanted, the plan, progress, and what was made (ORCH-3430, 3805, 3700)."""

from typing import Final

import msgspec

from llorch_shared.wire.provisioning_spec import ProvisioningSpec
from llorch_shared.wire.task import Engine, Name


class EnsureEngine(msgspec.Struct, frozen=True, kw_only=True):
    engine: Engine
    provisioning: ProvisioningSpec


class EnsureModel(msgspec.Struct, frozen=True, kw_only=True):
    model_ref: str
    checksum: str = ""
    cache_dir: str = ""


class PlanStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    kind: str
    """`check`, `download`, `install`, `extract`, `verify`, `move`, `register`."""
    detail: str
    bytes_total: int = 0


class ProvisionPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer to an ensure request: the job to follow, and what it will do. Equal requests get the same job."""

    job: Name
    steps: tuple[PlanStep, ...]
    refusal: str = ""
    """Why it cannot be done, with what to do about it; empty when the job runs."""
    code: str = ""
    """`UNTRUSTED_ARTIFACT` where the catalog or a digest forbids it; else empty."""


class PreparedEngine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="engine"):
    """Everything needed to start the engine, nothing about a model (ORCH-3805)."""

    engine: Engine
    mode: str
    entry: tuple[str, ...]
    """argv prefix: the binary, or the interpreter and the launcher module."""
    env: dict[str, str] = {}
    flags: tuple[str, ...] = ()
    workdir: str = ""
    engine_version: str
    engine_digest: str = ""
    """`sha256:<hex>` of what was installed, where there is one file to hash."""
    engine_catalog_id: str = ""


class ResolvedModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="model"):
    """A model on this node's disk (ORCH-3702)."""

    model_ref: str
    model_id: str
    local_path: str
    size_bytes: int
    digest: str
    """`sha256:<hex>`, computed by us."""
    verified: bool = False
    """True when a digest was given and matched."""


class ProvisionEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`prov.<node>.progress.<job>`; repeated at least every second while the job lasts, and the outcome on request."""

    job: Name
    node_id: Name
    target: str
    """For people: `engine llamacpp`, `model pypi:…`."""
    step: int = 0
    steps: int = 0
    kind: str = ""
    detail: str = ""
    bytes_done: int = 0
    bytes_total: int = 0
    done: bool = False
    error: str = ""
    hint: str = ""
    code: str = ""
    """Of the error, as in the plan."""
    result: PreparedEngine | ResolvedModel | None = None
    at_ms: int = 0


class ProvisionerStatus(msgspec.Struct, frozen=True, kw_only=True):
    node_id: Name
    engines: tuple[PreparedEngine, ...]
    models: tuple[ResolvedModel, ...]
    jobs: tuple[ProvisionEvent, ...]


ENSURE_ENGINE_DECODER: Final = msgspec.json.Decoder(EnsureEngine)
ENSURE_MODEL_DECODER: Final = msgspec.json.Decoder(EnsureModel)
PLAN_DECODER: Final = msgspec.json.Decoder(ProvisionPlan)
EVENT_DECODER: Final = msgspec.json.Decoder(ProvisionEvent)
STATUS_DECODER: Final = msgspec.json.Decoder(ProvisionerStatus)
