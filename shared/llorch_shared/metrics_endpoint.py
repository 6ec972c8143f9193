"""/metrics of the services that have no HTTP of their own. On loopback only: nothing asks for a token there."""

from typing import Final

from prometheus_client import start_http_server

from llorch_shared.auth import is_loopback
from llorch_shared.metrics import Metrics
from llorch_shared.settings import SettingsError


class MetricsEndpoint:
    """Serves from a thread until closed. `address` is `host:port` as it is really bound."""

    def __init__(self, metrics: Metrics, address: str, *, key: str) -> None:
        """`address` is `host:port`, port 0 for any free one; `key` is the setting. Raises SettingsError."""
        host, _, port = address.rpartition(":")
        if not is_loopback(host):
            raise SettingsError(f"{key} {address!r}: metrics carry no token, so they listen on loopback only")
        try:
            self._server, _ = start_http_server(int(port), host.strip("[]"), registry=metrics.registry)
        except (OSError, ValueError, OverflowError) as error:
            raise SettingsError(f"{key} {address!r} cannot be used: {error}") from error
        self.address: Final = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
