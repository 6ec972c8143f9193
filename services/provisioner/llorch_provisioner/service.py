"""The provisioner on the bus: `prov.<node>.engine.ensure`, `model.ensure` and `status`, and its progress events.

It keeps working while the bus is away: jobs run on, and tell their state again once it is back.
"""

import asyncio
import logging
import sys
from collections.abc import Mapping
from typing import Final

import msgspec

from llorch_provisioner.cache import Cache
from llorch_provisioner.core.failure import Failure
from llorch_provisioner.workshop import Workshop
from llorch_shared import subjects
from llorch_shared.bus.nats import NatsBus, connect
from llorch_shared.bus.port import Bus, Message
from llorch_shared.embedded_defaults import CPU_ONLY_ON_LINUX
from llorch_shared.lifecycle import Stop
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.metrics_endpoint import MetricsEndpoint
from llorch_shared.settings import Secret, Settings
from llorch_shared.wire.provision import (
    ENSURE_ENGINE_DECODER,
    ENSURE_MODEL_DECODER,
    EnsureEngine,
    EnsureModel,
    ProvisionEvent,
    ProvisionPlan,
)

log: Final = logging.getLogger(__name__)

_ENCODER: Final = msgspec.json.Encoder()
_NOT_A_REQUEST: Final = "invalid"


async def run(settings: Settings, environment: Mapping[str, str], password: Secret, stop: Stop) -> int:
    """Serve until the wish to stop. Returns the exit code: 1 when the cache cannot be used. Raises SettingsError."""
    actor = f"provisioner/{settings.poold.node_id}"
    metrics = Metrics()
    endpoint = MetricsEndpoint(metrics, settings.provisioner.metrics_addr, key="provisioner.metrics_addr")
    try:
        cache = Cache(settings.cache_path())
    except Failure as failure:
        narrate(log, failure.sentence(), actor=actor, action="provisioner.unusable", level=logging.CRITICAL)
        return 1
    narrate(
        log,
        f"uses {cache.root}: {len(cache.engines.all())} engines, {len(cache.models.all())} models, "
        f"{cache.swept} unfinished leftovers removed",
        actor=actor,
        action="provisioner.started",
        metrics_addr=endpoint.address,
        offline=settings.provisioner.offline,
    )
    try:
        bus = await _connect(settings, password, metrics, stop)
        if bus is not None:
            try:
                await _serve(bus, cache, settings, environment, metrics=metrics, stop=stop)
            finally:
                await bus.close()
    finally:
        cache.close()
    narrate(log, f"stops: {stop.reason}", actor=actor, action="provisioner.stopped")
    return 0


async def _connect(settings: Settings, password: Secret, metrics: Metrics, stop: Stop) -> NatsBus | None:
    """The bus, however long it takes to be there; None when the wish to stop came first."""
    connecting = asyncio.create_task(
        connect(
            settings.nats,
            name="provisioner",
            password=password,
            metrics=metrics,
            on_closed=lambda: stop.wish("the bus connection ended for good"),
        ),
        name="connect",
    )
    wish = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait({connecting, wish}, return_when=asyncio.FIRST_COMPLETED)
    wish.cancel()
    if not connecting.done():
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        return None
    return connecting.result()


async def _serve(
    bus: Bus, cache: Cache, settings: Settings, environment: Mapping[str, str], *, metrics: Metrics, stop: Stop
) -> None:
    node = settings.poold.node_id

    def tell(event: ProvisionEvent) -> None:
        bus.publish(subjects.provision_progress(node, event.job), _ENCODER.encode(event))

    gpu_only = settings.profile == "gpu" and sys.platform == "linux"
    async with Workshop(
        cache,
        settings.provisioner,
        node_id=node,
        environment=environment,
        tell=tell,
        metrics=metrics,
        cpu_only=CPU_ONLY_ON_LINUX if gpu_only else frozenset(),
    ) as workshop:

        async def ensure_engine(message: Message) -> tuple[bytes, Mapping[str, str]]:
            return _ENCODER.encode(answer(workshop, ENSURE_ENGINE_DECODER, message.data)), {}

        async def ensure_model(message: Message) -> tuple[bytes, Mapping[str, str]]:
            return _ENCODER.encode(answer(workshop, ENSURE_MODEL_DECODER, message.data)), {}

        async def status(_: Message) -> tuple[bytes, Mapping[str, str]]:
            return _ENCODER.encode(workshop.status()), {}

        await bus.serve(subjects.provision_engine(node), ensure_engine)
        await bus.serve(subjects.provision_model(node), ensure_model)
        await bus.serve(subjects.provision_status(node), status)
        await stop.wait()


def answer(
    workshop: Workshop,
    decoder: "msgspec.json.Decoder[EnsureEngine] | msgspec.json.Decoder[EnsureModel]",
    data: bytes,
) -> ProvisionPlan:
    """Plan or refusal; what cannot be read is refused, never raised."""
    try:
        request = decoder.decode(data)
    except msgspec.DecodeError as error:
        return ProvisionPlan(job=_NOT_A_REQUEST, steps=(), refusal=f"not a valid request: {error}")
    return workshop.ensure(request)
