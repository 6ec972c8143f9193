"""Which web pages may call: none unless their origin is listed. The browser asks first and obeys; nobody else does."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from llorch_gateway.http_errors import Headers

ANY: Final = "*"
METHODS: Final = b"GET, POST, PUT, DELETE"
EXPOSED: Final = b"x-correlation-id, retry-after, x-backoff-ms, etag"
MAX_AGE_S: Final = b"600"


@dataclass(frozen=True, slots=True)
class Cors:
    """`origins` as browsers send them (`https://host:port`), or `*` for every page: tokens are sent by a page's own
    code and never by the browser, so a page cannot use what it was not given."""

    origins: Collection[str] = ()

    def permits(self, origin: bytes | None) -> bool:
        return origin is not None and (ANY in self.origins or origin.decode("latin-1") in self.origins)

    def headers(self, origin: bytes) -> Headers:
        """For an answer to a page that is permitted."""
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", EXPOSED),
            (b"vary", b"origin"),
        ]

    def preflight(self, origin: bytes, names: bytes) -> Headers:
        """For the browser's question whether the page may send a request with headers of these `names`: client
        libraries add some of their own, and none of them opens anything here."""
        return [
            *self.headers(origin),
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", names),
            (b"access-control-max-age", MAX_AGE_S),
        ]
