"""One supervised process over all its starts: started, read, asked whether it is ready, started again, ended.

When it comes back is decided in `core.supervision`. A child lives in a session of its own, so that Ctrl-C in the
terminal reaches only the supervisor; and the kernel kills it when the supervisor dies, however that happens.
"""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import msgspec

from llorch_ctl.core.supervision import Life, Phase, RestartPolicy
from llorch_ctl.logfiles import LogFile, LogView
from llorch_shared.wall_clock import now_ms
from llorch_shared.with_parent import with_parent

LINE_BYTES_MAX: Final = 256 * 1024
PROBE_EVERY_S: Final = 0.05
KILLED_WAIT_S: Final = 5.0

Probe = Callable[[float], Awaitable[bool]]
"""Is it ready? Gets the Unix time in seconds at which the process was started, so that an old sign is not taken for a
new one. Must not raise; asked every 50 ms."""


class Listener(Protocol):
    """Hears what a process writes."""

    def begun(self) -> None:
        """The process is about to be started; all that follows is of this start."""

    def heard(self, line: bytes) -> None: ...


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One process to supervise."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    ready: Probe
    ready_within_s: float = 30.0
    stop_within_s: float = 10.0
    """Time between SIGTERM and SIGKILL."""
    restart: RestartPolicy = RestartPolicy()
    listener: Listener | None = None


class Keeper:
    """One process over all its starts."""

    def __init__(self, spec: ProcessSpec, log: LogFile, view: LogView, given_up: asyncio.Event) -> None:
        self.spec: Final = spec
        self.log: Final = log
        self.life: Final = Life(spec.restart)
        self.ready: Final = asyncio.Event()
        self.last_end = "it has not run yet"
        self.task: asyncio.Task[None] | None = None
        self._too_late = ""
        self._view: Final = view
        self._given_up: Final = given_up
        self._stop: Final = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def run(self) -> None:
        delay: float | None = 0.0
        while delay is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stop.wait()
            if self._stop.is_set():
                return
            began = time.monotonic()
            try:
                await self._one_run()
            except OSError as error:
                self.last_end = f"cannot run {self.spec.argv[0]}: {error.strerror}"
            delay = self.life.ended(time.monotonic(), random.random())  # noqa: S311  (spreads restarts, no secret)
            if self.life.phase is Phase.FAILED:
                self._view.say(f"{self.spec.name} is given up: {self.last_end}", "error")
                self._given_up.set()
            elif delay is not None:
                lasted = time.monotonic() - began
                self._view.say(
                    f"{self.spec.name} ended after {lasted:.1f} s ({self.last_end}); starts again in {delay:.1f} s",
                    "warning",
                )

    async def _one_run(self) -> None:
        self.life.started()
        if self.spec.listener is not None:
            self.spec.listener.begun()
        process = await asyncio.create_subprocess_exec(
            *with_parent(self.spec.argv),
            env=dict(self.spec.env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LINE_BYTES_MAX,
            start_new_session=True,
        )
        self._process = process
        reading = asyncio.create_task(self._keep_log(process), name=f"log {self.spec.name}")
        probing = asyncio.create_task(self._probe(process), name=f"probe {self.spec.name}")
        try:
            code = await process.wait()
        finally:
            probing.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await reading
        self.last_end = self._too_late or _describe(code)

    async def _probe(self, process: asyncio.subprocess.Process) -> None:
        """Wait for readiness; a process that is not ready in time is ended, which counts as a failed start."""
        self._too_late = ""
        started_unix, deadline = now_ms() / 1000, time.monotonic() + self.spec.ready_within_s
        while not await self.spec.ready(started_unix):
            if time.monotonic() > deadline:
                self._too_late = f"not ready within {self.spec.ready_within_s:.0f} s"
                self.signal(signal.SIGKILL)
                return
            await asyncio.sleep(PROBE_EVERY_S)
        self.life.became_ready(time.monotonic())
        self.ready.set()
        again = f", start {self.life.restarts + 1}" if self.life.restarts else ""
        self._view.say(
            f"{self.spec.name} is ready after {now_ms() / 1000 - started_unix:.1f} s (pid {process.pid}{again})"
        )

    async def _keep_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                line = error.partial
                if not line:
                    break
            except asyncio.LimitOverrunError:
                line = await process.stdout.read(LINE_BYTES_MAX)
            line = line.rstrip(b"\n")
            self.log.write(line)
            if self.spec.listener is not None:
                self.spec.listener.heard(line)
            self._view.show(self.spec.name, line)
        self.log.close()

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def restart(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        self.life.restart_wished()
        self.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.spec.stop_within_s):
                await process.wait()
                return
        self._say_killed()
        self.signal(signal.SIGKILL)
        await process.wait()

    async def stop(self) -> bool:
        """SIGTERM, then SIGKILL after the limit. True when it ended by itself."""
        self.life.stop_wished()
        self._stop.set()
        assert self.task is not None
        self.signal(signal.SIGTERM)
        ended, _ = await asyncio.wait({self.task}, timeout=self.spec.stop_within_s)
        if not ended:
            self._say_killed()
            self.signal(signal.SIGKILL)
            await asyncio.wait({self.task}, timeout=KILLED_WAIT_S)
        if self.task.done():
            self.task.result()
        self.log.close()
        return bool(ended)

    def _say_killed(self) -> None:
        self._view.say(f"{self.spec.name} does not end within {self.spec.stop_within_s:.0f} s and is killed", "warning")


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"killed by {signal.Signals(-code).name}"
