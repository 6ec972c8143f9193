"""granian inside our own loop: one process, HTTP/1.1 and HTTP/2 (ALPN, or prior knowledge without TLS) on one port.

The listening socket is ours (`listening.py`), so that its end can be told to the kernel. Signals are not the server's:
the service tells it to stop, after it has ended the streams.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, TaskImpl
from granian.http import HTTP1Settings, HTTP2Settings
from granian.server.embed import Server

from llorch_gateway import listening
from llorch_gateway.idle_connections import IdleConnections
from llorch_shared.settings import SettingsError

log = logging.getLogger(__name__)

BACKLOG: Final = 4096
STOP_WITHIN_S: Final = 1.0
"""Open connections get this long to close after they were told; idle HTTP/2 clients often do not. The end of the
process closes the rest."""
LAST_REQUESTS_S: Final = 0.25
"""Whoever connected before the door was closed has so long to send a request."""
HTTP2_STREAMS_MAX: Final = 1024
"""Streams of one HTTP/2 connection: a proxy carries many clients over one."""
HEADERS_BYTES_MAX: Final = 64 * 1024
"""All headers of one HTTP/2 request; those of HTTP/1 have to fit the buffer below."""
UNSENT_BYTES_MAX: Final = 64 * 1024
"""What the server itself keeps of a response that its client does not take, beside the kernel's share."""


_Holder: Final[Any] = SocketHolder
"""Its stub leaves out how it is made: descriptor, whether it is a Unix socket, backlog."""


class _Server(Server):
    """granian on a socket that is bound already."""

    def __init__(self, listener_fd: int, app: Callable[..., Awaitable[None]], **options: Any) -> None:
        super().__init__(app, backlog=BACKLOG, **options)
        self._listener_fd: Final = listener_fd

    def _init_shared_socket(self) -> None:
        self._ssp, self._shd = None, _Holder(self._listener_fd, False, BACKLOG)


class HttpServer:
    """`address` is bound when this is made, so a port of 0 has a number and a taken one is told at once. A client that
    takes nothing of what it is sent for `stall_s` is cut off, and a connection whose next request has not come, to the
    end of its headers, within `header_read_s` (HTTP/1, and the first of any), or six times that."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        address: str,
        *,
        requests_max: int,
        stall_s: float = 30.0,
        header_read_s: float = 10.0,
        http2: bool = True,
        tls: Mapping[str, Any] | None = None,
    ) -> None:
        """`tls` is what `llorch_gateway.tls.options` says."""
        self._scheme: Final = "https" if tls else "http"
        self.host, port = split_address(address)
        self._listener: Final = listening.bind(self.host, port, stall_s=stall_s)
        self.port: Final = int(self._listener.getsockname()[1])
        self._connections: Final = IdleConnections(app, self.port, within_s=header_read_s)
        self._watch: asyncio.Task[None] | None = None
        self._server: Final[Any] = _Server(
            os.dup(self._listener.fileno()),
            self._connections,
            address=self.host,
            port=self.port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.auto if http2 else HTTPModes.http1,
            task_impl=TaskImpl.asyncio,
            websockets=False,
            backpressure=requests_max,
            http1_settings=HTTP1Settings(
                header_read_timeout=round(header_read_s * 1000), max_buffer_size=UNSENT_BYTES_MAX
            ),
            http2_settings=HTTP2Settings(
                max_concurrent_streams=HTTP2_STREAMS_MAX,
                max_headers_size=HEADERS_BYTES_MAX,
                max_send_buffer_size=UNSENT_BYTES_MAX,
            ),
            log_enabled=False,
            **(tls or {}),
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._scheme}://{host}:{self.port}"

    async def start(self) -> None:
        """Returns when connections are taken."""
        self._task = asyncio.create_task(self._server.serve(), name="http server")
        deadline = asyncio.get_running_loop().time() + 10
        while not await _answers(self.host, self.port):
            if self._task.done() or asyncio.get_running_loop().time() > deadline:
                raise RuntimeError(f"the HTTP server did not start on {self.url}")
            await asyncio.sleep(0.005)
        self._watch = asyncio.create_task(self._connections.watch(), name="idle connections")

    async def wait(self) -> None:
        """Until the server ends, which it only does by itself when it failed."""
        assert self._task is not None
        await asyncio.shield(self._task)

    async def close_door(self) -> None:
        """Take no more connections; who has one is served. Other processes on the port take the new ones."""
        listening.close_door(self._listener)
        await asyncio.sleep(LAST_REQUESTS_S)

    async def stop(self) -> None:
        if self._task is None:
            return
        if self._watch is not None:
            self._watch.cancel()
        self._listener.close()
        self._server.stop()
        done, _ = await asyncio.wait((self._task,), timeout=STOP_WITHIN_S)
        if not done:
            log.info("idle connections are still open %.0f s after the stop; they end with this process", STOP_WITHIN_S)
        self._task = None


def split_address(address: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port`. Raises SettingsError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise SettingsError(f"gateway.addr is {address!r}; write host:port, for example 127.0.0.1:8080")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104  (an empty host means every interface; auth checks it)


async def _answers(host: str, port: int) -> bool:
    reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    try:
        _, writer = await asyncio.open_connection(reach, port)
    except OSError:
        return False
    writer.close()
    return True
