"""The services of compose.yaml as processes of this machine: their own commands and environment, volumes as folders.

A container sees the volumes that it mounts and nothing of the others. So does a process here: every path in its command
and its environment is below a folder of its own, with a link for each thing that it mounts. Addresses become free ports
of loopback.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from support.nats_server import free_port
from support.processes import ServiceProcess

ROOT: Final = Path(__file__).parents[2]
ENVIRONMENT: Final = {"LLORCH_STATE_DIR": "/data", "LLORCH_GATEWAY_DRAIN_MS": "0"}
"""What the image says; and here nobody else serves while a gateway leaves."""
_VARIABLE: Final = re.compile(r"\$\{(\w+):-([^}]*)\}")
_PROGRAMS: Final = {("python3", "-m"): [], ("orchctl",): ["llorch_ctl"]}


def loaded() -> dict[str, Any]:
    """compose.yaml with the defaults of its variables."""
    text = _VARIABLE.sub(lambda found: found.group(2), (ROOT / "compose.yaml").read_text())
    services: dict[str, Any] = yaml.safe_load(text)["services"]
    return services


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Where -> which volume, outermost first."""
    pairs = (volume.split(":") for volume in service.get("volumes", ()))
    return dict(sorted((target, name) for name, target, *_ in pairs))


class Composed:
    """`run` waits for a service that ends, `start` and `ready` are for those that stay."""

    def __init__(self, folder: Path, *, secrets: dict[str, str]) -> None:
        self.folder: Final = folder
        self.services: Final = loaded()
        self.processes: Final[dict[str, ServiceProcess]] = {}
        self._ports: Final = {port: free_port() for port in (4222, 8222, 8080)}
        self._metrics: Final = {name: free_port() for name in self.services}
        for name, service in self.services.items():
            self._lay_out(name, service, secrets)

    @property
    def url(self) -> str:
        return self.addressed("gateway", "http://127.0.0.1:8080")

    def root(self, name: str) -> Path:
        return self.folder / name

    def run(self, name: str, *more: str) -> None:
        process = self.start(name, *more)
        assert process.wait(30) == 0, process.tail()

    def start(self, name: str, *more: str) -> ServiceProcess:
        service = self.services[name]
        words = [*service.get("entrypoint", ()), *(more or service.get("command", ()))]
        program = next(each for each in _PROGRAMS if words[: len(each)] == list(each))
        words = [*_PROGRAMS[program], *words[len(program) :]]
        self.processes[name] = process = ServiceProcess(
            name,
            [self.addressed(name, word) for word in words],
            folder=self.folder / "logs",
            environment={
                key: self.addressed(name, value)
                for key, value in {**ENVIRONMENT, **service.get("environment", {})}.items()
            },
        )
        process.start()
        return process

    async def healthy(self, name: str) -> bool:
        """By the address that its health check asks."""
        self.processes[name].check_alive()
        (asked,) = re.findall(r"http://[^']+", self.services[name]["healthcheck"]["test"][-1])
        try:
            async with httpx.AsyncClient(timeout=5) as http:
                return (await http.get(self.addressed(name, asked))).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """The bus last."""
        bus = self.processes.pop("nats", None)
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.finish()
        if bus is not None:
            bus.stop()

    def addressed(self, name: str, value: Any) -> str:
        """A word of its command or environment, as it has to be outside of its container."""
        text = str(value)
        if text.startswith("/"):
            return str(self.root(name)) + text
        return re.sub(r"\b(nats|gateway|127\.0\.0\.1|0\.0\.0\.0):(\d+)\b", partial(self._here, name), text)

    def _here(self, name: str, found: re.Match[str]) -> str:
        return f"127.0.0.1:{self._ports.get(int(found.group(2)), self._metrics[name])}"

    def _lay_out(self, name: str, service: dict[str, Any], secrets: dict[str, str]) -> None:
        root = self.root(name)
        for target, volume in mounts(service).items():
            there = self.folder / "volumes" / volume
            there.mkdir(parents=True, exist_ok=True)
            here = root / target.lstrip("/")
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(there)
        for secret in service.get("secrets", ()):
            path = root / "run" / "secrets" / secret
            path.parent.mkdir(parents=True)
            path.write_text(secrets[secret])
        config = (ROOT / "nats.conf").read_text().replace("store_dir: /", f"store_dir: {root}/")
        root.mkdir(exist_ok=True)
        (root / "nats.conf").write_text(self.addressed(name, config))
