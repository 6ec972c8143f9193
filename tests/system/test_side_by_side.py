"""This release and the one before on one bus, as in the middle of an upgrade or a rollback: no task notices."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llorch_poold.core.seed import seed_of
from llorch_poold.mock_text import text_of
from llorch_shared import streams
from llorch_shared.bus.topology import Stream, Topology
from llorch_shared.wire.task import TaskState
from llorch_shared.wire.version import VERSION_HEADER
from support.client import follow, task_request
from support.system import PATIENT, System, mock_pool
from support.wire_v1 import NotInThisClone, conforms, unpack_previous

TASKS, TOKENS = 24, 20
TYPES = {"llorch.adm": "TaskRequest", "llorch.run": "RunRecord", "llorch.plc": "Placement"}

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> str:
    """PYTHONPATH of the previous release."""
    try:
        return unpack_previous(tmp_path_factory.mktemp("before") / "release")
    except NotInThisClone as error:
        pytest.skip(str(error))


@pytest.fixture
def bus_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The streams are there since the previous release, which kept placements on disk."""
    made = streams.base

    def base(**settings: Any) -> Topology:
        return Topology(
            streams=tuple(
                Stream(name=each.name, config={**each.config, "storage": "file"}) if each.name == streams.PLC else each
                for each in made(**settings).streams
            )
        )

    monkeypatch.setattr(streams, "base", base)


class Tap:
    """Everything on the bus that says a version, or is of a type that does."""

    def __init__(self) -> None:
        self.versions: Counter[tuple[str, str]] = Counter()
        self.broken: list[str] = []

    def take(self, message: Any) -> None:
        kind = ".".join(message.subject.split(".")[:2])
        if kind in TYPES:
            self.versions[kind, message.headers.get(VERSION_HEADER, "1")] += 1
            try:
                conforms(TYPES[kind], json.loads(message.data))
            except Exception as error:  # noqa: BLE001  (told below, with the message)
                self.broken.append(f"{message.subject}: {error}")


@pytest.mark.parametrize("scheduler", ["old", "new"])
async def test_gateways_and_nodes_of_two_releases_work_together_under_a_scheduler_of_either(
    scheduler: str, previous: str, bus_of_before: None, tmp_path: Path
) -> None:
    pool = mock_pool(replicas=1, slots=4, rate=200)
    system = System(tmp_path, pools=[pool], gateways=2, nodes=2, settings=PATIENT)
    for name in ("gateway-1", "poold-1", "provisioner-1", *(["scheduler-1"] if scheduler == "old" else [])):
        system.processes[name].environment["PYTHONPATH"] = previous
    async with system:
        tap = Tap()
        for subject in ("llorch.adm.>", "llorch.run.>", "llorch.plc.>"):
            await system.bus.subscribe(subject, tap.take)
        requests = [task_request(max_tokens=TOKENS, prompt=f"task {number}") for number in range(TASKS)]
        for number, request in enumerate(requests):
            await system.client(1 + number % 2).submit(request)
        readers = [
            follow(system.clients[number // 2 % 2 :] + system.clients[: number // 2 % 2], request.task_id)
            for number, request in enumerate(requests)
        ]
        endless = await system.client(1).submit(max_tokens=1500)
        other = await system.client(2).submit(max_tokens=1500)
        for transcript, request in zip(await asyncio.gather(*readers), requests, strict=True):
            transcript.check()
            assert transcript.error is None, transcript.error
            assert transcript.text == text_of(request.prompt or "", seed_of(request.task_id, None), TOKENS)
        assert await system.client(2).cancel(endless.task_id) == 204
        assert await system.client(1).cancel(other.task_id) == 204
        ran_on = Counter[str | None]()
        for request in requests:
            for client in system.clients:
                view = await client.get(request.task_id)
                assert (view.state, view.tokens_out) == (TaskState.DONE, TOKENS)
            ran_on[view.node_id] += 1
        assert set(ran_on) == {"node-1", "node-2"}
        assert tap.broken == []
        assert {kind for kind, _ in tap.versions} == set(TYPES)
        assert {version for _, version in tap.versions} == {"1"}, "nothing here needs a newer version"
