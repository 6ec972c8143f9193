"""Engine processes: started in a group of their own, ended for sure, remembered across a crash of this node.

A child dies with its parent (PR_SET_PDEATHSIG, from the very fork on); the state file is the second net, for where
there is no such signal. Output goes to one file per replica, bounded, whose end is told when the engine fails.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from llorch_poold.adapters.launch import Launch
from llorch_poold.core.orphans import EngineProcess, orphans
from llorch_shared.with_parent import with_parent

log = logging.getLogger(__name__)

LOG_BYTES_MAX: Final = 16 * 1024 * 1024
LOG_HEAD_BYTES: Final = 256 * 1024
LOG_TAIL_BYTES: Final = 4 * 1024
TERM_GRACE_S: Final = 3.0
PORTS_MAX: Final = 1000
_LISTEN: Final = "0A"
"""State of a listening socket in /proc/net/tcp."""
_RECORDS: Final = msgspec.json.Decoder(list[EngineProcess])


class NoPort(OSError):
    """Every port that engines may use is taken."""


def free_port(base: int = 0, *, among: Sequence[int] = (), taken: Iterable[int] = (), host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now and that is not in `taken`: any, the first from `base` on, or the first of
    `among`. Raises NoPort."""
    reserved = set(taken)
    for candidate in among or (range(base, base + PORTS_MAX) if base else [0] * PORTS_MAX):
        with socket.socket() as probe:
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            port = int(probe.getsockname()[1])
        if port not in reserved:
            return port
    where = f"among {', '.join(map(str, among))}" if among else f"from {base} to {base + PORTS_MAX - 1}"
    raise NoPort(f"no free port {where}")


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None when the process does not exist or only waits to be collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def listens(pid: int, port: int) -> bool:
    """Whether this very process listens on a loopback port: what answers there might be another engine with the same
    model. Linux only; elsewhere always true."""
    if sys.platform != "linux":
        return True
    wanted = f":{port:04X}"
    inodes = set()
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTEN and fields[1].endswith(wanted):
            inodes.add(f"socket:[{fields[9]}]")
    try:
        return any(os.readlink(link) in inodes for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


class EngineChild:
    """One running engine process."""

    def __init__(self, process: asyncio.subprocess.Process, launch: Launch, log_path: Path) -> None:
        self._process: Final = process
        self.launch: Final = launch
        self.log_path: Final = log_path
        self.pid: Final = process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        return await self._process.wait()

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after a grace; returns when the process is collected. Safe to call twice."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(TERM_GRACE_S):
                    await self._process.wait()
            except TimeoutError:
                self.kill()
                await self._process.wait()
        self.kill()

    def explain_exit(self) -> str:
        code = self._process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return f"the engine process ended ({how}): {self.log_tail()}"

    def log_tail(self, limit: int = 400) -> str:
        """Its last lines, as one line of at most `limit` characters."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
                data = file.read(LOG_TAIL_BYTES)
        except OSError:
            return "no output"
        lines = [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
        return " | ".join(lines[-4:])[-limit:] or "no output"

    def log_head(self) -> str:
        """What it said while it started. Blocking."""
        try:
            with self.log_path.open("rb") as file:
                return file.read(LOG_HEAD_BYTES).decode("utf-8", "replace")
        except OSError:
            return ""

    def bound_log(self) -> None:
        """The file is opened for appending, so cutting it to nothing is safe while the engine writes."""
        with contextlib.suppress(OSError):
            if self.log_path.stat().st_size > LOG_BYTES_MAX:
                os.truncate(self.log_path, 0)


class EngineProcesses:
    """Starts engines and keeps the state file of those that run."""

    def __init__(self, folder: Path, node_id: str) -> None:
        self._logs: Final = folder / "engines"
        self._file: Final = folder / f"poold-{node_id}.json"
        self._running: dict[int, EngineProcess] = {}
        self._ports: dict[int, int] = {}
        self._starting: set[int] = set()

    def free_port(self, base: int, among: Sequence[int] = ()) -> int:
        """A port for one more engine; ports of engines that are still starting are not free. Raises NoPort."""
        return free_port(base, among=among, taken=[*self._ports.values(), *self._starting])

    async def spawn(self, replica_id: str, launch: Launch) -> EngineChild:
        """Raises OSError when the program cannot be started. The port is taken from the moment of the call."""
        self._starting.add(launch.port)
        try:
            return await self._spawn(replica_id, launch)
        finally:
            self._starting.discard(launch.port)

    async def _spawn(self, replica_id: str, launch: Launch) -> EngineChild:
        self._logs.mkdir(parents=True, exist_ok=True)
        log_path = self._logs / f"{replica_id}.log"
        with log_path.open("wb"):
            pass
        output = os.open(log_path, os.O_WRONLY | os.O_APPEND)
        try:
            process = await asyncio.create_subprocess_exec(
                *with_parent(launch.argv),
                env=dict(launch.env),
                cwd=launch.workdir or None,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        finally:
            os.close(output)
        child = EngineChild(process, launch, log_path)
        self._running[child.pid] = EngineProcess(
            pid=child.pid, start_ticks=start_ticks(child.pid) or 0, replica_id=replica_id
        )
        self._ports[child.pid] = launch.port
        self._write()
        return child

    def collected(self, child: EngineChild) -> None:
        self._ports.pop(child.pid, None)
        if self._running.pop(child.pid, None) is not None:
            self._write()

    def reap_orphans(self, recorded: Iterable[EngineProcess] | None = None) -> tuple[EngineProcess, ...]:
        """End the engines that an earlier life of this node left behind; returns them. Blocking only for signals."""
        processes = list(self._recorded() if recorded is None else recorded)
        found = orphans(
            processes, {each.pid: ticks for each in processes if (ticks := start_ticks(each.pid)) is not None}
        )
        for process in found.end:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        self._write()
        return found.end

    def _recorded(self) -> list[EngineProcess]:
        try:
            return _RECORDS.decode(self._file.read_bytes())
        except FileNotFoundError:
            return []
        except msgspec.DecodeError as error:
            log.warning("%s cannot be read, engines of an earlier life are not looked for: %s", self._file, error)
            return []

    def _write(self) -> None:
        """A disk that is full stops no engine: they die with this node, and the file is for those that did not."""
        temporary = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(list(self._running.values())))
            temporary.replace(self._file)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._file, error.strerror, extra={"action": "engine.unrecorded"})
