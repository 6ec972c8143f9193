"""What listens from the first moment: before the bus is there, a gateway says so instead of refusing connections.

Liveness is true, readiness names what is missing, everything else is told to come back. Then the real front is put in.
"""

from typing import Any, Final

import msgspec

from llorch_gateway.asgi import App, Receive, Scope, Send, reply_error
from llorch_gateway.call import correlation_of
from llorch_gateway.failures import unavailable
from llorch_gateway.http_errors import CORRELATION, JSON_TYPE
from llorch_shared.http_api import Liveness, Readiness

_encode: Final = msgspec.json.Encoder().encode


class Entrance:
    """`missing` says why the gateway behind it does not stand yet."""

    def __init__(self, missing: str) -> None:
        self.missing = missing
        self.front: App | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        front = self.front
        if front is not None:
            await front(scope, receive, send)
        elif scope["type"] == "http":
            await self._early(scope, send)

    async def _early(self, scope: Scope, send: Send) -> None:
        sent = next((value for name, value in scope["headers"] if name == CORRELATION), b"")
        correlation = correlation_of(sent.decode("latin-1"))
        answer: dict[tuple[str, str], tuple[int, Any]] = {
            ("GET", "/healthz"): (200, Liveness()),
            ("GET", "/readyz"): (503, Readiness(ready=False, reasons=(self.missing,))),
        }
        told = answer.get((scope["method"], scope["path"]))
        if told is None:
            await reply_error(send, unavailable(f"this gateway is starting: {self.missing}"), correlation)
            return
        status, body = told
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [JSON_TYPE, (CORRELATION, correlation.encode())],
            }
        )
        await send({"type": "http.response.body", "body": _encode(body)})
