"""The provisioner on the bus: `prov.<node>.engine.ensure`, `model.ensure` and `status`, and its progress events.

It keeps working while the bus is away: jobs run on, and tell their state again once it is back.
"""

import contextlib
import logging
import sys
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from llorch_provisioner.cache import Cache
from llorch_provisioner.core import catalog_trust
from llorch_provisioner.core.failure import Failure
from llorch_provisioner.verification import Verifications
from llorch_provisioner.workshop import Workshop
from llorch_shared import subjects
from llorch_shared.bus.nats import connect
from llorch_shared.bus.patience import BUS_ENDED, BUS_LOST, Step, get_through, unless_stopped
from llorch_shared.bus.port import Bus, Message
from llorch_shared.embedded_defaults import CPU_ONLY_ON_LINUX
from llorch_shared.lifecycle import Stop
from llorch_shared.logs import narrate
from llorch_shared.metrics import Metrics
from llorch_shared.metrics_endpoint import MetricsEndpoint
from llorch_shared.model_table import ModelTable
from llorch_shared.settings import Secret, Settings
from llorch_shared.signatures import verify as verify_signature
from llorch_shared.wire.catalog import VERIFY_DECODER, VerifyAnswer
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
    """Serve until the wish to stop. Returns the exit code: 0 after that wish, 1 when the cache cannot be used, 3 when
    the bus connection ended for good. Raises SettingsError."""
    actor = f"provisioner/{settings.poold.node_id}"
    metrics = Metrics()
    with contextlib.ExitStack() as opened:
        endpoint = MetricsEndpoint(metrics, settings.provisioner.metrics_addr, key="provisioner.metrics_addr")
        opened.callback(endpoint.close)
        try:
            cache = Cache(settings.cache_path())
        except Failure as failure:
            narrate(log, failure.sentence(), actor=actor, action="provisioner.unusable", level=logging.CRITICAL)
            return 1
        opened.callback(cache.close)
        narrate(
            log,
            f"uses {cache.root}; engines: {len(cache.engines.all())}, models: {len(cache.models.all())}, "
            f"unfinished leftovers removed: {cache.swept}",
            actor=actor,
            action="provisioner.started",
            metrics_addr=endpoint.address,
            offline=settings.provisioner.offline,
        )
        bus = await unless_stopped(
            stop,
            connect(
                settings.nats,
                name=f"provisioner/{settings.poold.node_id}",
                password=password,
                metrics=metrics,
                on_closed=lambda: stop.wish(BUS_ENDED),
            ),
        )
        if bus is not None:
            try:
                await _serve(bus, cache, settings, environment, metrics=metrics, stop=stop)
            finally:
                await bus.close()
    narrate(log, f"stops: {stop.reason}", actor=actor, action="provisioner.stopped")
    return BUS_LOST if stop.reason == BUS_ENDED else 0


async def _serve(
    bus: Bus, cache: Cache, settings: Settings, environment: Mapping[str, str], *, metrics: Metrics, stop: Stop
) -> None:
    node = settings.poold.node_id

    def tell(event: ProvisionEvent) -> None:
        bus.publish(subjects.provision_progress(node, event.job), _ENCODER.encode(event))

    catalog = ModelTable(bus, metrics)
    # Before the first model is judged, what the catalog says is known.
    if not await get_through(bus, (catalog.start,), stop):
        return

    def permitted(model_ref: str) -> Collection[str] | None:
        entries = catalog.models.of_source(model_ref)
        return catalog_trust.permitted(model_ref, entries, settings.catalog.trust_policy, verify_signature)

    gpu_only = settings.profile == "gpu" and sys.platform == "linux"
    async with Workshop(
        cache,
        settings.provisioner,
        node_id=node,
        environment=environment,
        tell=tell,
        metrics=metrics,
        permitted=permitted,
        cpu_only=CPU_ONLY_ON_LINUX if gpu_only else frozenset(),
    ) as workshop:

        async def ensure_engine(message: Message) -> tuple[bytes, Mapping[str, str]]:
            return _ENCODER.encode(answer(workshop, ENSURE_ENGINE_DECODER, message.data)), {}

        async def ensure_model(message: Message) -> tuple[bytes, Mapping[str, str]]:
            return _ENCODER.encode(answer(workshop, ENSURE_MODEL_DECODER, message.data)), {}

        async def status(_: Message) -> tuple[bytes, Mapping[str, str]]:
            return _ENCODER.encode(workshop.status()), {}

        verifications = Verifications(bus, cache, metrics, node_id=node)

        async def verify(message: Message) -> tuple[bytes, Mapping[str, str]]:
            return _ENCODER.encode(verify_answer(verifications, message.data)), {}

        steps: tuple[Step, ...] = (
            lambda: bus.serve(subjects.provision_verify(node), verify),
            lambda: bus.serve(subjects.provision_engine(node), ensure_engine),
            lambda: bus.serve(subjects.provision_model(node), ensure_model),
            lambda: bus.serve(subjects.provision_status(node), status),
        )
        try:
            if await get_through(bus, steps, stop):
                await stop.wait()
        finally:
            await verifications.close()
            await catalog.close()


def verify_answer(verifications: Verifications, data: bytes) -> VerifyAnswer:
    try:
        wish = VERIFY_DECODER.decode(data)
    except msgspec.DecodeError as error:
        return VerifyAnswer(started=False, problem=f"not a valid request: {error}")
    return verifications.begin(wish)


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
