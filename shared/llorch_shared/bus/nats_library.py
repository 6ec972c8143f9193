"""What the bus is made of in nats-py, imported without aiohttp.

nats-py imports aiohttp wherever that is installed, for its WebSocket transport alone: a quarter of the time that a
service takes to start. Here it comes when an address asks for WebSockets.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Final

__all__ = ["Client", "Parser", "Subscription", "errors", "load_websockets"]

_FOR_WEBSOCKETS: Final = "aiohttp"


@contextlib.contextmanager
def _unseen(module: str) -> Iterator[None]:
    """Importing this module fails, as where it is not installed; one that is loaded already stays."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


with _unseen(_FOR_WEBSOCKETS):
    from nats import errors
    from nats.aio import transport as _transport
    from nats.aio.client import Client
    from nats.aio.subscription import Subscription
    from nats.protocol.parser import Parser


def load_websockets() -> None:
    """Give nats-py what its WebSocket transport needs. Raises ImportError where that is not installed."""
    for module in (_FOR_WEBSOCKETS, "multidict"):
        setattr(_transport, module, importlib.import_module(module))
