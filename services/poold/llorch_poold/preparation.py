"""The first two gates of a replica: its engine and its model are present, and the model fits on the device mask."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llorch_poold.adapters.launch import reads_whole
from llorch_poold.adapters.port import EngineBroke
from llorch_poold.core import vram
from llorch_poold.core.determinism import cpu_isa, determinism_class, gpu_isa
from llorch_poold.core.devices import DeviceMask
from llorch_poold.core.pace import Pace
from llorch_poold.core.reconcile import Desired
from llorch_poold.gguf import NotGguf, read_facts
from llorch_poold.gpu.probe import GpuReport
from llorch_poold.node_context import ReplicaFacts
from llorch_poold.node_metrics import ReplicaMetrics
from llorch_poold.provisioning import Progress, Provisioning
from llorch_shared.metrics import Metrics
from llorch_shared.wire.provision import PreparedEngine, ResolvedModel
from llorch_shared.wire.registry import Gpu
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine

log = logging.getLogger(__name__)


class NoRoom(EngineBroke):
    """The model does not fit on the device mask as it is now. `fits_alone`: it would if nothing else were there."""

    def __init__(self, reason: str, *, fits_alone: bool) -> None:
        super().__init__(reason)
        self.fits_alone = fits_alone


@dataclass(frozen=True, slots=True)
class Prepared:
    """Both None for the mock engine, which needs nothing."""

    engine: PreparedEngine | None = None
    model: ResolvedModel | None = None

    @property
    def engine_version(self) -> str:
        return self.engine.engine_version if self.engine is not None else ""


async def prepare(provisioning: Provisioning, desired: Desired, report: GpuReport, progress: Progress) -> Prepared:
    """Raises NotProvisioned, NoRoom, EngineBroke (the model cannot be read), BusError."""
    if desired.spec.engine is Engine.MOCK:
        return Prepared()
    engine_task = asyncio.create_task(provisioning.engine(desired.spec, progress))
    model_task = asyncio.create_task(provisioning.model(desired.spec, progress))
    try:
        engine, model = await asyncio.gather(engine_task, model_task)
    finally:
        engine_task.cancel()
        model_task.cancel()
    await _check_vram(desired.spec, desired.device, model, report)
    return Prepared(engine, model)


async def _check_vram(spec: PoolSpec, device: DeviceMask, model: ResolvedModel, report: GpuReport) -> None:
    if device.cpu:
        return
    free = [gpu.vram_free_mb for gpu in report.on(device.uuids)]
    try:
        facts = await asyncio.to_thread(read_facts, Path(model.local_path))
    except (NotGguf, OSError) as error:
        raise EngineBroke(f"the model file cannot be read: {error}") from error
    ubatch = spec.ctx if reads_whole(spec) else vram.UBATCH_GPU
    plan = vram.plan(facts, ctx_total=spec.ctx * spec.slots, slots=spec.slots, free_mb=free, ubatch=ubatch)
    if not plan.fits:
        whole = [gpu.vram_total_mb for gpu in report.on(device.uuids)]
        alone = vram.plan(facts, ctx_total=spec.ctx * spec.slots, slots=spec.slots, free_mb=whole, ubatch=ubatch)
        raise NoRoom(plan.reason, fits_alone=alone.fits)


def facts_of(
    desired: Desired,
    prepared: Prepared,
    metrics: Metrics,
    pace: Pace,
    *,
    incarnation: str,
    engine_version: str,
    features: tuple[str, ...],
    gpus: Sequence[Gpu],
) -> ReplicaFacts:
    """What the tasks of this life of the engine tell their readers. `gpus`: those of the device mask."""
    spec = desired.spec
    digest = prepared.model.digest if prepared.model is not None else ""
    return ReplicaFacts(
        replica_id=desired.replica_id,
        pool_id=spec.id,
        incarnation=incarnation,
        engine=spec.engine,
        engine_version=engine_version,
        model_digest=digest,
        sampler_profile_version=spec.sampler_profile_version,
        device=desired.device.label,
        determinism_class=determinism_class(
            engine=spec.engine,
            engine_version=engine_version,
            isa=cpu_isa(_cpuinfo()) if desired.device.cpu else gpu_isa(gpus),
            quant=spec.quant or "",
            model_ref=spec.model,
            model_digest=digest,
            sampler_profile=spec.sampler_profile_version,
        ),
        features=features,
        pace=pace,
        metrics=ReplicaMetrics(
            metrics,
            engine=spec.engine,
            engine_version=engine_version,
            pool_id=spec.id,
            replica_id=desired.replica_id,
        ),
    )


@cache
def _cpuinfo() -> str:
    """Empty where the system does not tell: then no determinism class is."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        log.info("the instructions of this CPU are not known: %s", error)
        return ""
