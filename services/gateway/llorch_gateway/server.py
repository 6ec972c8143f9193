"""granian inside our own loop: one process, HTTP/1.1 and HTTP/2 (prior knowledge) on one port.

The port is opened with SO_REUSEPORT, so several gateway processes may share it. Signals are not the server's: the
service tells it to stop, after it has ended the streams.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from granian.constants import HTTPModes, Interfaces, TaskImpl
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server

from llorch_shared.settings import SettingsError

log = logging.getLogger(__name__)

BACKLOG: Final = 4096
STOP_WITHIN_S: Final = 1.0
"""Open connections get this long to close after they were told; idle HTTP/2 clients often do not. The end of the
process closes the rest."""
HTTP2_STREAMS_MAX: Final = 1024
"""Streams of one HTTP/2 connection: a proxy carries many clients over one."""


class HttpServer:
    """`address` is bound when this is made, so a port of 0 has a number and a taken one is told at once."""

    def __init__(self, app: Callable[..., Awaitable[None]], address: str, *, requests_max: int) -> None:
        self.host, port = split_address(address)
        self._held: Final = _hold(self.host, port)
        self.port: Final = int(self._held.getsockname()[1])
        self._server: Final[Any] = Server(
            app,
            address=self.host,
            port=self.port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.auto,
            task_impl=TaskImpl.asyncio,
            websockets=False,
            backlog=BACKLOG,
            backpressure=requests_max,
            http1_settings=HTTP1Settings(header_read_timeout=10_000, pipeline_flush=True),
            http2_settings=HTTP2Settings(max_concurrent_streams=HTTP2_STREAMS_MAX),
            log_enabled=False,
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Returns when connections are taken."""
        self._task = asyncio.create_task(self._server.serve(), name="http server")
        deadline = asyncio.get_running_loop().time() + 10
        while not await _answers(self.host, self.port):
            if self._task.done() or asyncio.get_running_loop().time() > deadline:
                raise RuntimeError(f"the HTTP server did not start on {self.url}")
            await asyncio.sleep(0.005)

    async def wait(self) -> None:
        """Until the server ends, which it only does by itself when it failed."""
        assert self._task is not None
        await asyncio.shield(self._task)

    async def stop(self) -> None:
        if self._task is None:
            return
        self._server.stop()
        done, _ = await asyncio.wait((self._task,), timeout=STOP_WITHIN_S)
        if not done:
            log.info("idle connections are still open %.0f s after the stop; they end with this process", STOP_WITHIN_S)
        self._held.close()
        self._task = None


def split_address(address: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port`. Raises SettingsError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise SettingsError(f"gateway.addr is {address!r}; write host:port, for example 127.0.0.1:8080")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104  (an empty host means every interface; auth checks it)


def _hold(host: str, port: int) -> socket.socket:
    """Bind without listening: keeps the number of a port 0, and finds out whether a port can be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    held = socket.socket(family, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind((host, port))
    except OSError as error:
        held.close()
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return held


async def _answers(host: str, port: int) -> bool:
    reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    try:
        _, writer = await asyncio.open_connection(reach, port)
    except OSError:
        return False
    writer.close()
    return True
