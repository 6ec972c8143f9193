"""Client of this node's provisioner: ask for an engine or a model, follow the job, ask again when it falls silent.

A bus that is away is waited for: it is no fault of the replica. Asking again is safe: equal requests get the same job,
and a finished job repeats its outcome. The mock engine and `mock:` models need nothing and nobody is asked for them.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from llorch_shared import subjects
from llorch_shared.bus.port import Bus, BusError, Handler, Message, Subscription
from llorch_shared.wire.provision import (
    EVENT_DECODER,
    PLAN_DECODER,
    EnsureEngine,
    EnsureModel,
    PreparedEngine,
    ProvisionEvent,
    ResolvedModel,
)
from llorch_shared.wire.spec import PoolSpec

SILENCE_S: Final = 5.0
ASK_AGAIN_S: Final = 0.5
REQUEST_TIMEOUT_S: Final = 5.0

Progress = Callable[[str], None]


class NotProvisioned(Exception):
    """The provisioner says no, or its job failed; the message says what to do. `final`: asking again will not help,
    but where `code` says that the model is not trusted: then the catalog may be changed. `costly`: that was found only
    when its bytes had been fetched or read."""

    def __init__(self, message: str, *, final: bool, code: str = "", costly: bool = False) -> None:
        super().__init__(message)
        self.final = final
        self.code = code
        self.costly = costly


class Provisioning:
    """Asks the provisioner of one node."""

    def __init__(self, bus: Bus, node_id: str) -> None:
        self._bus: Final = bus
        self._node: Final = node_id

    async def engine(self, spec: PoolSpec, progress: Progress) -> PreparedEngine:
        """Raises NotProvisioned. Waits for as long as the provisioner is away."""
        order = EnsureEngine(engine=spec.engine, provisioning=spec.provisioning)
        result = await self._ensure(subjects.provision_engine(self._node), msgspec.json.encode(order), progress)
        if not isinstance(result, PreparedEngine):
            raise NotProvisioned("the provisioner answered with something that is no engine", final=True)
        return result

    async def model(self, spec: PoolSpec, progress: Progress) -> ResolvedModel:
        """Raises NotProvisioned. Waits for as long as the provisioner is away."""
        result = await self._ensure(subjects.provision_model(self._node), _model_order(spec), progress)
        if not isinstance(result, ResolvedModel):
            raise NotProvisioned("the provisioner answered with something that is no model", final=True)
        return result

    async def permitted(self, spec: PoolSpec) -> bool:
        """Whether the model that was refused may be fetched by now; if so, that has begun."""
        try:
            await self._ask(subjects.provision_model(self._node), _model_order(spec), _say_nothing)
        except NotProvisioned as error:
            return not error.code
        return True

    async def _ensure(self, subject: str, order: bytes, progress: Progress) -> PreparedEngine | ResolvedModel:
        events: asyncio.Queue[ProvisionEvent] = asyncio.Queue(maxsize=256)

        def heard(message: Message) -> None:
            try:
                event = EVENT_DECODER.decode(message.data)
            except msgspec.DecodeError:
                return
            if events.full():
                events.get_nowait()
            events.put_nowait(event)

        wildcard = await self._listen(heard, progress)
        try:
            while True:
                job = await self._ask(subject, order, progress)
                result = await self._follow(job, events, progress)
                if result is not None:
                    return result
        finally:
            await wildcard.close()

    async def _listen(self, heard: Handler, progress: Progress) -> Subscription:
        while True:
            try:
                return await self._bus.subscribe(subjects.provision_progress_of_node(self._node), heard)
            except BusError as error:
                progress(f"waiting for the bus: {error}")
            await asyncio.sleep(ASK_AGAIN_S)

    async def _ask(self, subject: str, order: bytes, progress: Progress) -> str:
        while True:
            try:
                reply = await self._bus.request(subject, order, timeout_s=REQUEST_TIMEOUT_S)
                plan = PLAN_DECODER.decode(reply.data)
            except BusError as error:
                progress(f"waiting for the provisioner: {error}")
            except msgspec.DecodeError as error:
                raise NotProvisioned(f"the provisioner's answer is not a plan: {error}", final=True) from error
            else:
                if plan.refusal:
                    raise NotProvisioned(plan.refusal, final=True, code=plan.code)
                return plan.job
            await asyncio.sleep(ASK_AGAIN_S)

    async def _follow(
        self, job: str, events: "asyncio.Queue[ProvisionEvent]", progress: Progress
    ) -> PreparedEngine | ResolvedModel | None:
        """The outcome of the job; None when it has fallen silent and must be asked for again."""
        while True:
            try:
                async with asyncio.timeout(SILENCE_S):
                    event = await events.get()
                    while event.job != job:
                        event = await events.get()
            except TimeoutError:
                return None
            if event.error:
                said = f"{event.error}{f' ({event.hint})' if event.hint else ''}"
                raise NotProvisioned(said, final=bool(event.code), code=event.code, costly=True)
            if event.done:
                return event.result
            share = f" {100 * event.bytes_done // event.bytes_total} %" if event.bytes_total else ""
            progress(f"{event.target}: {event.detail or event.kind}{share}")


def _model_order(spec: PoolSpec) -> bytes:
    model = spec.provisioning.model
    return msgspec.json.encode(EnsureModel(model_ref=spec.model, checksum=model.checksum, cache_dir=model.cache_dir))


def _say_nothing(_progress: str) -> None:
    """The reason why the replica does not run stands; nothing has come of asking."""
