"""The folder in which one running system keeps everything: queue store, caches, logs, its effective config.

One system at a time: an exclusive lock is held for as long as the process lives and is released by the kernel.
"""

import fcntl
import os
from pathlib import Path
from typing import Final

from llorch_ctl.exits import Problem


class StateDir:
    """Paths below one folder, and the lock on it. Use as a context manager for the lock."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.logs: Final = path / "logs"
        self.config: Final = path / "config.toml"
        self.nats_config: Final = path / "nats" / "nats.conf"
        self.nats_store: Final = path / "nats" / "jetstream"
        self._lock_path: Final = path / "lock"
        self._lock: int | None = None

    def __enter__(self) -> "StateDir":
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Problem(
                f"cannot use the state folder {self.path}: {error.strerror}", fix="choose another with --state-dir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._lock, 32).decode().strip()
            os.close(self._lock)
            self._lock = None
            raise Problem(
                f"another orchctl{f' (pid {holder})' if holder else ''} runs with the state folder {self.path}",
                fix="stop it first, or give this one its own folder with --state-dir",
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None
