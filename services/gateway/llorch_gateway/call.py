"""Who asks, and how: what every operation needs to know about one request, over HTTP or the bus."""

import uuid
from dataclasses import dataclass
from typing import Literal

from llorch_shared.identifiers import is_correlation_id


@dataclass(frozen=True, slots=True)
class Call:
    """`identity` is `token:<fp6>`, `localhost`, or `bus` (the bus's own permissions let it in)."""

    correlation_id: str
    identity: str
    channel: Literal["http", "nats"]
    tenant: str


def correlation_of(sent: str | None) -> str:
    """The caller's id when it has a form that can travel, else a new one (OC-CTRL-2052)."""
    if sent and is_correlation_id(sent):
        return sent
    return str(uuid.uuid4())
