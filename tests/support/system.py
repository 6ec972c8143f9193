"""The whole system as real processes on loopback: nats-server, schedulers, gateways, a provisioner and poold per node.

    async with System(tmp_path, pools=[mock_pool(slots=4)], gateways=2) as system:
        accepted = await system.client().submit(max_tokens=50)
        system.kill9("poold-1")
        await system.restart("poold-1")
        transcript = await follow(system.clients, accepted.task_id)

Process names: `nats`, `scheduler-N`, `gateway-N`, `provisioner-N`, `poold-N`, counted from 1. Pools are written to the
spec bucket by the harness, as `orchctl up` does. Logs are files in `<folder>/logs`; their ends are printed when the
block is left by an exception. Nothing outlives the block, nor the test run.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import httpx
import msgspec
import tomli_w

from llorch_ctl import bus_seeds
from llorch_shared import bus_users, streams, subjects
from llorch_shared.bus import nats as nats_bus
from llorch_shared.bus.port import Bus, BusError
from llorch_shared.settings import NatsSettings
from llorch_shared.wire.registry import LEASE_DECODER, PoolHealth
from llorch_shared.wire.spec import PoolSpec
from support.client import TaskClient
from support.nats_server import NatsCluster, NatsServer, SupervisedNats, free_port
from support.processes import ProcessDied, ServiceProcess, children_of, gone, ports_of

START_DEADLINE_S = 60.0
POLL_S = 0.05
HTTP_S = 20.0
"""For one answer, of whomever."""
PATIENT: Final = {"gateway": {"cancel_wait_ms": 20_000}}
"""Settings of a system whose receipts are waited for, however busy the machine."""


def mock_pool(
    pool_id: str = "mock",
    *,
    replicas: int = 2,
    slots: int = 4,
    rate: float = 50.0,
    capacity: int = 256,
    env: Mapping[str, str] | None = None,
    **changes: Any,
) -> PoolSpec:
    """A pool of mock engines. `rate` is tokens per second of each stream, 0 for as fast as it can."""
    fields: dict[str, Any] = {
        "id": pool_id,
        "engine": "mock",
        "model": "mock:words",
        "devices": "cpu",
        "replicas": replicas,
        "slots": slots,
        "queue": {"capacity": capacity},
        "provisioning": {"mode": "external", "env": {"LLORCH_MOCK_RATE": str(rate), **(env or {})}},
    }
    return msgspec.convert({**fields, **changes}, PoolSpec)


class _Copy(msgspec.Struct):
    current: bool = False


class _Copies(msgspec.Struct):
    leader: str = ""
    replicas: list[_Copy] = []


class _StreamInfo(msgspec.Struct):
    cluster: _Copies = msgspec.field(default_factory=_Copies)


class System:
    """Start, break and watch a whole system. Use as an async context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        pools: Sequence[PoolSpec] = (),
        gateways: int = 1,
        schedulers: int = 1,
        nodes: int = 1,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        token: str = "",
        sync_always: bool = False,
        cluster: NatsCluster | None = None,
        supervised_bus: bool = False,
        bus_tenants: Sequence[str] | None = None,
    ) -> None:
        """`cluster`: three servers instead of one; every stream then has three copies. `supervised_bus`: the one
        server runs under `orchctl bus`. `bus_tenants`: tenants that may use the bus; with them every service has a user
        of its own there (`orchctl bus-users`), without everybody may do everything."""
        self.folder = folder
        self.pools = list(pools) or [mock_pool()]
        self.token = token
        kind = SupervisedNats if supervised_bus else NatsServer
        self.nats = kind(folder / "nats", sync_always=sync_always)
        self.cluster = cluster
        self.bus_servers = cluster or self.nats
        self.config_path = folder / "llorch.toml"
        self.users = folder / "users"
        self._bus_tenants = bus_tenants
        self._settings = dict(settings or {})
        self._environment = {
            "LLORCH_CONFIG": str(self.config_path),
            "LLORCH_GATEWAY_DRAIN_MS": "0",
            **(environment or {}),
        }
        if token:
            self._environment["AUTH_TOKEN"] = token
        self.addresses: dict[str, str] = {}
        """host:port of every process: HTTP of a gateway, metrics of the others."""
        self.processes: dict[str, ServiceProcess] = {}
        for number in range(1, schedulers + 1):
            self._add(f"scheduler-{number}", "llorch_scheduler", "LLORCH_SCHEDULER_METRICS_ADDR")
        for number in range(1, nodes + 1):
            node = {"LLORCH_NODE_ID": f"node-{number}", "LLORCH_STATE_DIR": str(folder / f"node-{number}")}
            self._add(f"provisioner-{number}", "llorch_provisioner", "LLORCH_PROVISIONER_METRICS_ADDR", node)
            self._add(f"poold-{number}", "llorch_poold", "LLORCH_POOLD_METRICS_ADDR", node)
        for number in range(1, gateways + 1):
            self._add(f"gateway-{number}", "llorch_gateway", "ORCHD_ADDR")
        self.gateways = [name for name in self.processes if name.startswith("gateway-")]
        self.clients: list[TaskClient] = []
        self.start_deadline_s = START_DEADLINE_S
        """How long the first start may take; a real engine has to be fetched."""
        self.bus: Bus
        """The harness's own connection, for bus clients in tests."""

    def _add(self, name: str, module: str, address_key: str, extra: Mapping[str, str] | None = None) -> None:
        self.addresses[name] = f"127.0.0.1:{free_port()}"
        environment = {**self._environment, **(extra or {}), address_key: self.addresses[name]}
        if self._bus_tenants is not None:
            service, _, number = name.rpartition("-")
            user = f"{service}-node-{number}" if service in bus_users.ON_NODES else service
            environment["NATS_NKEY_SEED_FILE"] = str(self.seed(user))
        self.processes[name] = ServiceProcess(name, [module], folder=self.folder / "logs", environment=environment)

    def seed(self, user: str) -> Path:
        """Of a user of the bus."""
        return self.users / user / bus_seeds.SEED

    def _write_users(self, tenants: Sequence[str]) -> None:
        nodes = [name.replace("poold", "node") for name in self.processes if name.startswith("poold-")]
        bus_seeds.write(self.users, (*bus_users.services(nodes), *bus_users.tenants(tenants)))
        extra = (self.users / bus_seeds.CONFIG).read_text()
        self.nats.config = msgspec.structs.replace(self.nats.config, extra=extra)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            self.print_tails()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.stop()
        if kind is not None:
            self.print_tails()

    async def start(self) -> None:
        """Start everything and wait until every replica of every pool is ready and every pool has its scheduler."""
        self._write_config()
        mine = NatsSettings(url=self.bus_servers.url)
        if self._bus_tenants is not None:
            self._write_users(self._bus_tenants)
            mine = msgspec.structs.replace(mine, nkey_seed_file=str(self.seed(bus_users.OPERATOR)))
        await asyncio.to_thread(self.bus_servers.start)
        self.bus = await nats_bus.connect(mine, name="harness")
        await self.bus.ensure(streams.base(replicas=self._copies))
        for pool in self.pools:
            await self.put_pool(pool)
        for process in self.processes.values():
            process.start()
        self.clients = [TaskClient(self.url(name), token=self.token) for name in self.gateways]
        for name in self.processes:
            await self.ready(name)
        for pool in self.pools:
            await self.replicas_ready(pool.id, pool.replicas * self._nodes_of(pool), self.start_deadline_s)
            await self.until(partial(self._scheduled, pool.id), f"a scheduler for {pool.id}", START_DEADLINE_S)

    async def _scheduled(self, pool_id: str) -> bool:
        """Whether somebody holds the shard of this pool."""
        key = subjects.registry(subjects.lease_key(subjects.shard_of(pool_id)))
        message = await self.bus.last(streams.REG, key)
        return message is not None and not message.deleted and bool(LEASE_DECODER.decode(message.data).holder)

    async def stop(self) -> None:
        """End every process. Safe to call twice."""
        for client in self.clients:
            await client.aclose()
        self.clients = []
        engines = [pid for name, process in self.processes.items() if process.running for pid in self.engines_of(name)]
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            if process.starts:
                await asyncio.to_thread(process.finish)
        assert await asyncio.to_thread(gone, engines, 10), f"engines outlived their node: {engines}"
        if hasattr(self, "bus"):
            await self.bus.close()
        self.bus_servers.stop()

    @property
    def _copies(self) -> int:
        return len(self.cluster.servers) if self.cluster is not None else 1

    def url(self, name: str = "gateway-1") -> str:
        return f"http://{self.addresses[name]}"

    def client(self, gateway: int = 1) -> TaskClient:
        return self.clients[gateway - 1]

    def kill9(self, name: str) -> None:
        """SIGKILL to one process; `nats` is one too, or `nats-N` of a cluster. Engines of a killed poold die
        with it."""
        if name == "nats":
            self.nats.kill()
        elif self.cluster is not None and name.startswith("nats-"):
            self.cluster.named(name).kill()
        else:
            self.processes[name].kill9()

    def pid_of(self, name: str) -> int:
        """Of a process that was started; `nats` is one too."""
        return self.nats.pid if name == "nats" else self.processes[name].pid

    async def restart(self, name: str, *, wait_ready: bool = True) -> None:
        """Start a killed or stopped process again at the same address."""
        if name == "nats":
            await asyncio.to_thread(self.nats.start)
            return
        if self.cluster is not None and name.startswith("nats-"):
            await asyncio.to_thread(self.cluster.named(name).start)
            return
        self.processes[name].start()
        if wait_ready:
            await self.ready(name)

    def kill9_engine(self, node: int = 1, index: int = 0) -> int:
        """SIGKILL to one engine process of a node; returns its pid."""
        pid = self.engines_of(f"poold-{node}")[index]
        os.kill(pid, signal.SIGKILL)
        return pid

    async def kill_engine_at(self, url: str, node: int = 1) -> None:
        """SIGKILL to the engine of a node that listens there."""
        for pid in self.engines_of(f"poold-{node}"):
            if any(url.endswith(f":{port}") for port in ports_of(pid)):
                os.kill(pid, signal.SIGKILL)

    def engines_of(self, name: str) -> list[int]:
        """Pids of the engines that a node runs now."""
        process = self.processes[name]
        return children_of(process.pid) if name.startswith("poold-") and process.running else []

    async def engine_urls(self, model: str, node: int = 1) -> list[str]:
        """Of the engines of a node that serve this model."""
        urls = []
        for pid in self.engines_of(f"poold-{node}"):
            for port in ports_of(pid):
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=HTTP_S) as http:
                    if (await http.get("/props")).json()["model_path"] == model:
                        urls.append(str(http.base_url))
        return urls

    async def fault(self, model: str, *faults: Mapping[str, Any]) -> None:
        """What the mock engines of a model do wrong from now on: with the next generations, one after another."""
        for url in await self.engine_urls(model):
            async with httpx.AsyncClient(timeout=HTTP_S) as http:
                (await http.post(f"{url}/fault", json=list(faults))).raise_for_status()

    async def busy_slots(self, model: str) -> int:
        """By the engines' own word."""
        busy = 0
        for url in await self.engine_urls(model):
            async with httpx.AsyncClient(timeout=HTTP_S) as http:
                busy += sum(slot["is_processing"] for slot in (await http.get(f"{url}/slots")).json())
        return busy

    async def leader_of(self, stream: str) -> str:
        """The server of a cluster that leads it now; empty while none does. Raises BusError."""
        return (await self._copies_of(stream)).leader

    async def copies_are_current(self) -> bool:
        """Whether every server of a cluster has all of every stream."""
        try:
            answer = await self.bus.request("$JS.API.STREAM.NAMES", b"", timeout_s=5)
            names = msgspec.json.decode(answer.data).get("streams") or []
            found = [await self._copies_of(name) for name in names]
        except BusError:
            return False
        whole = self._copies - 1
        return bool(found) and all(
            each.leader and sum(copy.current for copy in each.replicas) == whole for each in found
        )

    async def _copies_of(self, stream: str) -> "_Copies":
        message = await self.bus.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout_s=5)
        return msgspec.json.decode(message.data, type=_StreamInfo).cluster

    async def put_pool(self, pool: PoolSpec) -> None:
        """Write a pool's desired state, as `orchctl up` does."""
        await self.bus.store(subjects.spec(subjects.pool_key(pool.id)), msgspec.json.encode(pool))

    async def ready(self, name: str, deadline_s: float = START_DEADLINE_S) -> None:
        """Wait until a process serves: /readyz of a gateway, /metrics of the others."""
        path = "/readyz" if name.startswith("gateway-") else "/metrics"
        process = self.processes[name]

        async def answers() -> bool:
            process.check_alive()
            return (await self.http_status(name, path)) == 200

        await self.until(answers, f"{name} to be ready", deadline_s)

    async def http_status(self, name: str, path: str) -> int:
        """Status of one GET, 0 while nobody listens."""
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            async with httpx.AsyncClient(base_url=self.url(name), headers=headers, timeout=HTTP_S) as http:
                return (await http.get(path)).status_code
        except httpx.TransportError:
            return 0

    async def health(self, pool_id: str, gateway: str = "gateway-1") -> PoolHealth | None:
        """A pool as a gateway sees it; None while it does not answer 200."""
        client = self.clients[self.gateways.index(gateway)]
        try:
            response = await client.http.get(f"/v1/pools/{pool_id}/health")
        except httpx.TransportError:
            return None
        return msgspec.json.decode(response.content, type=PoolHealth) if response.status_code == 200 else None

    async def replicas_ready(self, pool_id: str, count: int, deadline_s: float = START_DEADLINE_S) -> None:
        """Wait until every gateway that runs sees exactly `count` ready replicas of a pool."""

        async def enough() -> bool:
            for gateway in self.gateways:
                if not self.processes[gateway].running:
                    continue
                health = await self.health(pool_id, gateway)
                if health is None or sum(replica.state == "ready" for replica in health.replicas) != count:
                    return False
            return True

        await self.until(enough, f"{count} ready replicas of {pool_id}", deadline_s)

    async def metric(self, name: str, metric: str, **labels: str) -> float:
        """Sum of a metric's samples at one process that carry `labels`; 0 when there is none."""
        async with httpx.AsyncClient(base_url=self.url(name), timeout=HTTP_S) as http:
            headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
            text = (await http.get("/metrics", headers=headers)).raise_for_status().text
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        total = 0.0
        for line in text.splitlines():
            if line.partition("{")[0].partition(" ")[0] == metric and all(pair in line for pair in wanted):
                total += float(line.rpartition(" ")[2])
        return total

    async def until(self, question: Callable[[], Any], what: str, deadline_s: float) -> None:
        """Ask again every 50 ms until the answer is true; fail with `what` at the deadline."""
        deadline = time.monotonic() + deadline_s
        while not await question():
            if time.monotonic() > deadline:
                raise ProcessDied(f"waited {deadline_s:.0f} s for {what}")
            await asyncio.sleep(POLL_S)

    def print_tails(self) -> None:
        for process in self.processes.values():
            if process.starts:
                sys.stderr.write(process.tail() + "\n")
        for server in self.cluster.servers if self.cluster is not None else [self.nats]:
            log = server.folder / "nats.log"
            if log.exists():
                sys.stderr.write(f"--- {server.folder.name}\n" + log.read_text(errors="replace")[-2000:] + "\n")

    def _nodes_of(self, pool: PoolSpec) -> int:
        nodes = [name.removeprefix("poold-") for name in self.processes if name.startswith("poold-")]
        return len(pool.nodes or nodes)

    def _write_config(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "profile": "ci",
            "state_dir": str(self.folder / "state"),
            "log_level": "info",
            "nats": {"url": self.bus_servers.url, "replicas": self._copies},
            "gateway": {"auth_optional": True},
            "poold": {"drain_timeout_ms": 500},
        }
        for key, value in self._settings.items():
            config[key] = {**config.get(key, {}), **value} if isinstance(value, Mapping) else value
        self.config_path.write_text(tomli_w.dumps(config))
