"""A real nats-server on a random loopback port, which a test may kill and bring back; and a cluster of three."""

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import psutil

from llorch_ctl.embedded import NatsConfig, server_binary
from llorch_shared.with_parent import with_parent
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
            memory_bytes=1024 * 1024 * 1024,
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
        self.process = subprocess.Popen(with_parent(self.command(path)), stdout=log, stderr=log)
        log.close()
        deadline = time.monotonic() + deadline_s
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
                if link.recv(4) == b"INFO":
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nats-server did not start: {(self.folder / 'nats.log').read_text()[-2000:]}")
            time.sleep(0.02)

    def command(self, config: Path) -> list[str]:
        return [str(server_binary()), "--config", str(config)]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

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


class SupervisedNats(NatsServer):
    """Runs under `orchctl bus`. A kill is one of the machine: of both."""

    def command(self, config: Path) -> list[str]:
        return [sys.executable, "-m", "llorch_ctl", "bus", "--json-logs", str(config)]

    @property
    def pid(self) -> int:
        """Of the server itself."""
        return psutil.Process(super().pid).children()[0].pid

    def kill(self) -> None:
        assert self.process is not None
        servers = psutil.Process(self.process.pid).children()
        super().kill()
        _, alive = psutil.wait_procs(servers, timeout=10)
        assert not alive, f"nats-server outlived its supervisor: {alive}"


class NatsCluster:
    """Three servers that keep every stream together. Each may be killed and brought back by itself.

    `linked`: what they tell each other goes through `links`, by (from, to), which are started before the servers.
    """

    def __init__(self, folder: Path, *, extra: str = "", linked: bool = False) -> None:
        self.folder = folder
        routes = {f"nats-{number}": free_port() for number in range(1, 4)}
        pairs = [(one, other) for one in routes for other in routes if one != other]
        self.links = {pair: Link(free_port(), routes[pair[1]]) for pair in pairs} if linked else {}
        ports = {pair: self.links[pair].port if linked else routes[pair[1]] for pair in pairs}
        self.servers = [NatsServer(folder / name, extra=f"{extra}{_member(name, routes, ports)}") for name in routes]

    def links_of(self, name: str) -> list[Link]:
        """All that connect one server to the others."""
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


def _member(name: str, routes: Mapping[str, int], ports: Mapping[tuple[str, str], int]) -> str:
    """`ports`: where the first finds the second. Where that is a link, what a server tells of its own address leads
    nowhere, so that nobody goes round it."""
    hidden = "" if set(ports.values()) == set(routes.values()) else ', advertise: "127.0.0.1:1"'
    others = ", ".join(f'"nats://127.0.0.1:{port}"' for (one, _), port in ports.items() if one == name)
    listen = f'listen: "127.0.0.1:{routes[name]}"{hidden}'
    return f"server_name: {name}\ncluster {{ name: llorch, {listen}, routes: [{others}] }}\n"
