"""The provisioner's client: plan, progress, outcome; asked again when silent; refusals are final."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest

from llorch_poold import provisioning
from llorch_poold.provisioning import NotProvisioned, Provisioning
from llorch_shared import subjects
from llorch_shared.bus import nats
from llorch_shared.bus.nats import NatsBus
from llorch_shared.bus.port import Message, Unanswered
from llorch_shared.settings import NatsSettings
from llorch_shared.wire.provision import ProvisionEvent, ProvisionPlan, ResolvedModel
from llorch_shared.wire.spec import PoolSpec
from support.nats_server import NatsServer

pytestmark = pytest.mark.nats

MODEL = ResolvedModel(model_ref="file:/m", model_id="m", local_path="/m", size_bytes=1, digest="sha256:0")
SPEC = msgspec.convert({"id": "p", "engine": "llamacpp", "model": "file:/m"}, PoolSpec)


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[NatsBus]:
    connected = await nats.connect(NatsSettings(url=nats_server.url), name="poold")
    yield connected
    await connected.close()


class FakeProvisioner:
    """Answers each request with the next plan, and tells the events that go with it."""

    def __init__(self, bus: NatsBus, *answers: tuple[ProvisionPlan, list[dict[str, Any]]]) -> None:
        self._bus = bus
        self._answers = list(answers)
        self.asked = 0

    async def serve(self) -> None:
        await self._bus.serve(subjects.provision_model("node-1"), self._answer)

    async def _answer(self, message: Message) -> tuple[bytes, Mapping[str, str]]:
        self.asked += 1
        plan, events = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        for event in events:
            told = ProvisionEvent(job=plan.job, node_id="node-1", target="model m", **event)
            self._bus.publish(subjects.provision_progress("node-1", plan.job), msgspec.json.encode(told))
        return msgspec.json.encode(plan), {}


PLAN = ProvisionPlan(job="job-1", steps=())


async def test_a_model_comes_with_its_progress(bus: NatsBus) -> None:
    events: list[dict[str, Any]] = [
        {"detail": "m.gguf", "bytes_done": 5, "bytes_total": 10},
        {"done": True, "result": MODEL},
    ]
    await FakeProvisioner(bus, (PLAN, events)).serve()
    said: list[str] = []
    assert await Provisioning(bus, "node-1").model(SPEC, said.append) == MODEL
    assert said == ["model m: m.gguf 50 %"]


async def test_a_refusal_is_final_and_says_why(bus: NatsBus) -> None:
    await FakeProvisioner(bus, (ProvisionPlan(job="j", steps=(), refusal="installs are not allowed"), [])).serve()
    with pytest.raises(NotProvisioned, match="not allowed") as refused:
        await Provisioning(bus, "node-1").model(SPEC, lambda said: None)
    assert refused.value.final


async def test_what_is_not_trusted_says_so_and_is_asked_for_again(bus: NatsBus) -> None:
    refused = ProvisionPlan(job="j", steps=(), refusal="not signed", code="UNTRUSTED_ARTIFACT")
    mismatch = {"error": "UNTRUSTED_ARTIFACT: other bytes", "code": "UNTRUSTED_ARTIFACT", "done": True}
    await FakeProvisioner(bus, (refused, []), (refused, []), (PLAN, []), (PLAN, [mismatch])).serve()
    asker = Provisioning(bus, "node-1")
    with pytest.raises(NotProvisioned, match="not signed") as told:
        await asker.model(SPEC, print)
    assert (told.value.final, told.value.code, told.value.costly) == (True, "UNTRUSTED_ARTIFACT", False)
    assert not await asker.permitted(SPEC)
    assert await asker.permitted(SPEC)
    with pytest.raises(NotProvisioned, match="other bytes") as told:
        await asker.model(SPEC, print)
    assert (told.value.final, told.value.code, told.value.costly) == (True, "UNTRUSTED_ARTIFACT", True)


async def test_a_failed_job_may_be_tried_again(bus: NatsBus) -> None:
    await FakeProvisioner(bus, (PLAN, [{"error": "disk full", "hint": "free some space"}])).serve()
    with pytest.raises(NotProvisioned, match=r"disk full \(free some space\)") as failed:
        await Provisioning(bus, "node-1").model(SPEC, lambda said: None)
    assert not failed.value.final


async def test_a_silent_provisioner_is_asked_again(bus: NatsBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisioning, "SILENCE_S", 0.1)
    fake = FakeProvisioner(bus, (PLAN, []), (PLAN, [{"done": True, "result": MODEL}]))
    await fake.serve()
    assert await Provisioning(bus, "node-1").model(SPEC, lambda said: None) == MODEL
    assert fake.asked == 2


async def test_a_provisioner_that_comes_late_is_waited_for(bus: NatsBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisioning, "ASK_AGAIN_S", 0.02)
    said = asyncio.Event()
    asking = asyncio.create_task(Provisioning(bus, "node-1").model(SPEC, lambda _: said.set()))
    async with asyncio.timeout(15):
        await said.wait()
        await FakeProvisioner(bus, (PLAN, [{"done": True, "result": MODEL}])).serve()
        assert await asking == MODEL


async def test_a_bus_that_is_away_is_waited_for_and_is_no_failure(
    bus: NatsBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    provisioner = FakeProvisioner(bus, (PLAN, [{"done": True, "result": MODEL}]))
    await provisioner.serve()
    monkeypatch.setattr(provisioning, "ASK_AGAIN_S", 0.01)
    subscribe, tries = bus.subscribe, 0

    async def away(subject: str, handler: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries <= 12:
            raise Unanswered("not connected to the bus")
        return await subscribe(subject, handler)

    monkeypatch.setattr(bus, "subscribe", away)
    said: list[str] = []
    assert await Provisioning(bus, "node-1").model(SPEC, said.append) == MODEL
    assert said[0] == "waiting for the bus: not connected to the bus"
