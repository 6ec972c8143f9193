"""Connections that ask nothing are closed: those on which no request was ever whole (no word, half a TLS handshake,
half of an HTTP/2 request) as soon as the headers of one are overdue, and those that were of use after six times that.

The HTTP server itself knows a time for the headers of HTTP/1 alone, and anybody can open a connection without a token.
So the process looks at its own sockets. A connection is known by the port of its other end, which is unique among those
of one client; two clients that share one are kept as long as either has a request under way. Where the system does not
tell of a process's sockets, none is closed.
"""

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

SOCKETS: Final = "/proc/self/fd"
AFTER_USE_FACTOR: Final = 6
AT_ONCE: Final = 128
"""Sockets that are looked at before others have their turn in the loop."""
JUST_HEARD_MS: Final = 500
"""Who has sent something just now may be asking: once more is waited, and not for ever."""
_SOCKET: Final = "socket:["
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_TOLD_BYTES: Final = 104
_LAST_HEARD: Final = struct.Struct("=I")
_LAST_HEARD_AT: Final = 52
"""`tcpi_last_data_recv` in Linux's `tcp_info`, milliseconds."""


class Connection(NamedTuple):
    peer: int
    """Port of the other end."""
    heard_ms: int
    """Since it last sent anything."""


class Idle:
    """Decides. Times are monotonic, seconds."""

    def __init__(self, within_s: float) -> None:
        self._within_s: Final = within_s
        self._under_way: Final[Counter[int]] = Counter()
        self._asked: dict[int, float] = {}
        self._first: dict[int, float] = {}

    def begins(self, peer: int) -> None:
        self._under_way[peer] += 1

    def ends(self, peer: int, now: float) -> None:
        self._under_way[peer] -= 1
        if not self._under_way[peer]:
            del self._under_way[peer]
        self._asked[peer] = now

    def overdue(self, connections: Mapping[int, Connection], now: float) -> list[int]:
        """Of all that there are, by whatever names them."""
        self._first = {name: self._first.get(name, now) for name in connections}
        peers = {each.peer for each in connections.values()}
        self._asked = {peer: at for peer, at in self._asked.items() if peer in peers}
        return [name for name, each in connections.items() if self._is_overdue(name, each, now)]

    def _is_overdue(self, name: int, connection: Connection, now: float) -> bool:
        if connection.peer in self._under_way:
            return False
        asked = self._asked.get(connection.peer)
        bound_s = self._within_s if asked is None else AFTER_USE_FACTOR * self._within_s
        idle_s = now - max(self._first[name], asked or 0.0)
        return idle_s >= bound_s * (2 if connection.heard_ms < JUST_HEARD_MS else 1)


class IdleConnections:
    """Around an application that is served on `port`: counts its requests, and closes who has none."""

    def __init__(self, app: Callable[..., Awaitable[None]], port: int, *, within_s: float) -> None:
        self._app: Final = app
        self._port: Final = port
        self._idle: Final = Idle(within_s)
        self._every_s: Final = within_s / 2

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        peer = int(scope["client"][1])
        self._idle.begins(peer)
        try:
            await self._app(scope, receive, send)
        finally:
            self._idle.ends(peer, asyncio.get_running_loop().time())

    async def watch(self) -> None:
        """Until cancelled."""
        if sys.platform != "linux":
            return
        while True:
            await asyncio.sleep(self._every_s)
            found: dict[int, Connection] = {}
            descriptors: dict[int, int] = {}
            for number, name in enumerate(os.listdir(SOCKETS), 1):
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)
                for inode, connection in self._of_ours(int(name)):
                    found[inode], descriptors[inode] = connection, int(name)
            for inode in self._idle.overdue(found, asyncio.get_running_loop().time()):
                _close(descriptors[inode], inode)

    def _of_ours(self, fd: int) -> Iterator[tuple[int, Connection]]:
        """The connection behind a descriptor, if it is one of the port. It is the server's, which may close it and use
        its number again at any time: what is told then is of another, and is looked at again before it is closed."""
        try:
            link = os.readlink(f"{SOCKETS}/{fd}")
            if not link.startswith(_SOCKET):
                return
            one = socket.socket(fileno=fd)
        except OSError:
            return
        try:
            if one.type == socket.SOCK_STREAM and one.family in _FAMILIES and one.getsockname()[1] == self._port:
                told = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TOLD_BYTES)
                heard_ms = _LAST_HEARD.unpack_from(told, _LAST_HEARD_AT)[0]
                yield int(link[len(_SOCKET) : -1]), Connection(one.getpeername()[1], heard_ms)
        except OSError:  # closed meanwhile, or it listens
            return
        finally:
            one.detach()


def _close(fd: int, inode: int) -> None:
    """For both sides, by a copy of its own, if it is that one yet: the server finds it at its end."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as copy:
        if os.fstat(copy.fileno()).st_ino == inode:
            copy.shutdown(socket.SHUT_RDWR)
