"""Who asks, and how: what every operation needs to know about one request, over HTTP or the bus."""

import uuid
from dataclasses import dataclass
from typing import Literal

from llorch_gateway.limits import StreamQuota
from llorch_shared.auth import EVERY_PRIORITY, Identity
from llorch_shared.errors import invalid
from llorch_shared.identifiers import is_correlation_id
from llorch_shared.wire.task import Priority


@dataclass(frozen=True, slots=True)
class Call:
    """`identity` is `token:<fp6>`, `oidc:<fp6>`, `localhost`, or `bus` (the bus's own permissions let it in); with
    `bus:<tenant>` the bus itself names the caller's account."""

    correlation_id: str
    identity: str
    channel: Literal["http", "nats"]
    tenant: str
    bound: bool = False
    """Whether the tasks of its tenant are all that this caller may know of."""
    priorities: frozenset[Priority] = EVERY_PRIORITY
    streams: StreamQuota | None = None
    """How many streams its token may have open; None is no limit."""

    @property
    def origin(self) -> dict[str, str]:
        """Who asked, as the audit record has it."""
        return {"correlation_id": self.correlation_id, "identity": self.identity, "channel": self.channel}

    @property
    def reads_on_bus(self) -> bool:
        """Whether it hears its tokens on the bus, where it may hear those of its own tenant alone."""
        return self.bound and self.channel == "nats"

    def check_operator(self) -> None:
        """There are no roles (AUTH-1005): who is not bound to a tenant operates the system. Raises OrchError 403."""
        if self.bound:
            raise invalid("this token is bound to a tenant and may not operate the system", status=403)

    def may_see(self, tenant: str) -> bool:
        """Whether a task of `tenant` exists for this caller."""
        return not self.bound or tenant == self.tenant


def call_of(identity: Identity, correlation_id: str, *, tenant: str, streams: StreamQuota | None = None) -> Call:
    """`tenant` is whose work it is when the token says nothing about that."""
    return Call(
        correlation_id,
        identity.crumb,
        "http",
        identity.tenant or tenant,
        bound=bool(identity.tenant),
        priorities=identity.priorities,
        streams=streams,
    )


def correlation_of(sent: str | None) -> str:
    """The caller's id when it has a form that can travel, else a new one (OC-CTRL-2052)."""
    if sent and is_correlation_id(sent):
        return sent
    return str(uuid.uuid4())
