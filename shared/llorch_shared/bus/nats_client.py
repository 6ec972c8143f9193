"""nats-py's client with our parser, without its ways of dying silently, and the options it is used with."""

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from random import SystemRandom
from typing import Any, Final

from llorch_shared import certificates
from llorch_shared.bus.nats_library import Client, errors, load_websockets
from llorch_shared.bus.nats_parser import FastParser
from llorch_shared.settings import NatsSettings, Secret, SettingsError

RECONNECT_WAIT_S: Final = 0.2
PING_INTERVAL_S: Final = 10
"""Two unanswered pings mean a new connection: a server that hangs is left after 30 s."""
CONNECT_TIMEOUT_S: Final = 5
_NO_LINGER: Final = struct.pack("ii", 1, 0)
OUTBOUND_BYTES_MAX: Final = 64 * 1024 * 1024
"""Bytes not yet taken by the socket. Beyond this the server is not reading: signals are dropped, stores refused."""


class BusClient(Client):
    """TLS, authentication, reconnecting and the server pool are the library's."""

    def __init__(self, violated: Callable[[str], None]) -> None:
        super().__init__()
        self.cluster_changed: list[Callable[[], None]] = []
        """Called when the server says that it has lost or found another one. They must not raise."""
        self._others: frozenset[str] | None = None
        """The servers of the cluster as the one of this connection tells; None until it has."""
        self.parser: Final = FastParser(self)
        self._ps = self.parser
        self._violated: Final = violated

    async def _process_pong(self) -> None:
        """A waiter that gave up has a finished future; setting it would end the library's read loop for good."""
        if self._pongs:
            waiter = self._pongs.pop(0)
            if not waiter.done():
                waiter.set_result(True)
        self._pongs_received += 1
        self._pings_outstanding = 0

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        await super()._process_info(info, initial_connection)
        before, self._others = self._others, frozenset(info.get("connect_urls") or ())
        if not initial_connection and before is not None and before != self._others:
            for changed in self.cluster_changed:
                changed()

    async def _process_err(self, err_msg: str) -> None:
        """Permission errors are told; any other server error means a new connection, never a closed client."""
        words = err_msg.strip("'")
        if "permissions violation" in words:
            self._violated(words)
            return
        error = errors.Error(f"nats: {words}")
        await self._error_cb(error)
        await self._process_op_err(error)

    async def _process_op_err(self, e: Exception) -> None:
        """The library would wait for a broken connection to take what is still to be sent, without end when the other
        side is silent; and what it took in the end would arrive late."""
        self.drop_connection()
        await super()._process_op_err(e)

    def drop_connection(self) -> None:
        """Close the socket now; neither this process nor the kernel sends what waits in it. Never raises: the library's
        read loop would end by it for good."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is None:
            return
        # uvloop's socket raises ValueError when it is closed already.
        with contextlib.suppress(OSError, AttributeError, ValueError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        writer.transport.abort()


def client_options(settings: NatsSettings, password: Secret | None, name: str) -> dict[str, Any]:
    """Never give up: without end, a fifth of a second apart. Processes begin at different servers of a cluster, and one
    that lost its server tries the others first."""
    urls = [url.strip() for url in settings.url.split(",") if url.strip()]
    if any(url.startswith(("ws://", "wss://")) for url in urls):
        load_websockets()
    options: dict[str, Any] = {
        "servers": SystemRandom().sample(urls, len(urls)),
        "dont_randomize": True,
        "name": name,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": RECONNECT_WAIT_S,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "ping_interval": PING_INTERVAL_S,
        "pending_size": OUTBOUND_BYTES_MAX,
    }
    if (context := tls_context(settings)) is not None:
        options["tls"] = context
    if settings.creds_file:
        options["user_credentials"] = settings.creds_file
    elif settings.nkey_seed_file:
        options["nkeys_seed"] = settings.nkey_seed_file
    elif settings.user:
        options["user"] = settings.user
        options["password"] = password.reveal() if password else ""
    return options


def tls_context(settings: NatsSettings) -> ssl.SSLContext | None:
    """None where neither address nor settings ask for it. Raises SettingsError for files that cannot be used."""
    wanted = settings.tls
    if not (wanted.ca_file or wanted.cert_file or wanted.key_file or settings.url.startswith(("tls://", "wss://"))):
        return None
    if bool(wanted.cert_file) is not bool(wanted.key_file):
        raise SettingsError("nats.tls needs both cert_file and key_file, or neither")
    try:
        context = ssl.create_default_context(cafile=wanted.ca_file or None)
        if wanted.cert_file:
            certificates.show(context, wanted.cert_file, wanted.key_file)
    except (OSError, ValueError) as error:
        raise SettingsError(f"nats.tls cannot be used: {error}") from error
    return context
