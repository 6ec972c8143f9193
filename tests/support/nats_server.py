"""A real nats-server on a random loopback port, which a test may kill and bring back."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from llorch_ctl.embedded import NatsConfig, server_binary
from llorch_shared.lifecycle import with_parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
