"""A real nats-server on a random loopback port, which a test may kill and bring back; and a cluster of three."""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from llorch_ctl.embedded import NatsConfig, server_binary
from llorch_shared.lifecycle import with_parent
from support.link import Link

FIRST_PORT, PORTS_OF_A_WORKER = 16_000, 1_000
"""Below the ports that the kernel gives to clients, so that nobody takes one while its server is away."""


def _ports_of_this_worker() -> Iterator[int]:
    """Test processes that run side by side are given none of each other's."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16
    start = random.randrange(PORTS_OF_A_WORKER)
    for number in itertools.count(start):
        yield FIRST_PORT + worker * PORTS_OF_A_WORKER + number % PORTS_OF_A_WORKER


_ports = _ports_of_this_worker()


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens; each is given once, as long as there are any."""
    for port in itertools.islice(_ports, PORTS_OF_A_WORKER):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("every port of this worker is taken")


class NatsServer:
    """Start, kill -9, start again on the same port with the same store."""

    def __init__(self, folder: Path, *, extra: str = "", sync_always: bool = False) -> None:
        self.folder = folder
        self.port = free_port()
        self.config = NatsConfig(
            port=self.port,
            store_dir=folder / "jetstream",
            sync_always=sync_always,
            extra=extra,
            memory_bytes=256 * 1024 * 1024,
            file_bytes=64 * 1024 * 1024 * 1024,
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def configure(self, extra: str) -> None:
        """Replace what is configured beyond the defaults. A server that runs reads it after `reload`."""
        self.config = msgspec.structs.replace(self.config, extra=extra)
        (self.folder / "nats.conf").write_text(self.config.render())

    def reload(self) -> None:
        """SIGHUP: read the configuration again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def start(self, deadline_s: float = 15) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "nats.conf"
        path.write_text(self.config.render())
        log = (self.folder / "nats.log").open("ab")
        # Dies with the test run, so a killed pytest leaves no server behind.
        command = with_parent([str(server_binary()), "--config", str(path)])
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + deadline_s
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
                if link.recv(4) == b"INFO":
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nats-server did not start: {(self.folder / 'nats.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """kill -9"""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()


class NatsCluster:
    """Three servers that keep every stream together. Each may be killed and brought back by itself.

    The network between each two of them is a `Link`: `async with cluster.network():` around all use of the cluster.
    Each server connects to the next. What they tell each other of further addresses leads nowhere.
    """

    def __init__(self, folder: Path, *, extra: str = "") -> None:
        self.folder = folder
        names = [f"nats-{number}" for number in range(1, 4)]
        ports = [free_port() for _ in names]
        ways = [Link(free_port(), port) for port in (*ports[1:], ports[0])]
        self.servers = [
            NatsServer(folder / name, extra=f"{extra}{_member(name, port, way)}")
            for name, port, way in zip(names, ports, ways, strict=True)
        ]
        self.links = {frozenset((names[at], names[(at + 1) % len(names)])): way for at, way in enumerate(ways)}

    @contextlib.asynccontextmanager
    async def network(self) -> AsyncIterator[None]:
        for link in self.links.values():
            await link.start()
        try:
            yield
        finally:
            for link in self.links.values():
                await link.close()

    def around(self, name: str) -> list[Link]:
        """What connects this server to the others."""
        return [link for pair, link in self.links.items() if name in pair]

    @property
    def url(self) -> str:
        """All three, as a client needs them that may lose the one it is connected to."""
        return ",".join(server.url for server in self.servers)

    def start(self, deadline_s: float = 15) -> None:
        for server in self.servers:
            server.start(deadline_s)

    def named(self, name: str) -> NatsServer:
        """By the name that a server has in the cluster, which is that of its folder."""
        return next(server for server in self.servers if server.folder.name == name)

    def stop(self) -> None:
        for server in self.servers:
            if server.process is not None and server.process.poll() is None:
                server.process.terminate()
        for server in self.servers:
            server.stop()


def _member(name: str, port: int, way: Link) -> str:
    cluster = (
        f"name: llorch, listen: 127.0.0.1:{port}, advertise: 127.0.0.1:{free_port()}, "
        f'routes: ["nats://127.0.0.1:{way.port}"]'
    )
    return f"server_name: {name}\ncluster {{ {cluster} }}\n"
