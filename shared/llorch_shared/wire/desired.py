"""What is wanted beside the pools' specifications: that a pool rests, that it gets another model, and the tenants.

These are values of the spec bucket under keys of their own, so that writing a pool's specification again (`orchctl up`,
`config apply`) neither ends a drain nor breaks off a reload, and a release that does not know them still reads every
pool.
"""

from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from llorch_shared import url_credentials
from llorch_shared.wire.policy import TenantSpec
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Name

ModelRef = Annotated[str, Meta(min_length=1, max_length=512)]
DeadlineMs = Annotated[int, Meta(ge=0, le=86_400_000)]
FORMER_MAX: Final = 16
LEARN_MS: Final = 5_000
"""How long a gateway may still admit tasks for the model that a pool had."""
RELOAD_DEADLINE_MS: Final = 1_800_000
"""Half an hour: a model of some tens of gigabytes may have to be fetched first."""


class PoolDrain(msgspec.Struct, frozen=True, kw_only=True):
    """`drain.<pool>`: while it stands the pool has no replicas and takes no tasks (ORCH-2101, OC-CTRL-2002)."""

    pool_id: Name
    requested_ms: int
    deadline_ms: DeadlineMs
    """Milliseconds from `requested_ms` on in which running tasks may end. What runs then makes way and waits."""
    identity: str = ""

    @property
    def until_ms(self) -> int:
        return self.requested_ms + self.deadline_ms


class ReloadState(StrEnum):
    UNDERWAY = "underway"
    DONE = "done"
    FAILED = "failed"
    """The pool serves what it served before."""


class FormerModel(msgspec.Struct, frozen=True, kw_only=True):
    model_ref: ModelRef
    until_ms: int


class PoolReload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`reload.<pool>`: the latest change of the pool's model that was asked for (ORCH-2102, OC-CTRL-2003)."""

    id: str
    pool_id: Name
    new_model_ref: ModelRef
    old_model_ref: ModelRef
    state: ReloadState
    requested_ms: int
    deadline_ms: DeadlineMs = RELOAD_DEADLINE_MS
    """Milliseconds from `requested_ms` on: what is not ready then has failed."""
    ended_ms: int = 0
    last_error: str = ""
    identity: str = ""
    channel: str = ""
    former: tuple[FormerModel, ...] = ()
    """What earlier reloads took from the pool, the latest last; `FORMER_MAX` of them."""

    def had(self, model_ref: str, at_ms: int) -> bool:
        """Whether the pool had this model at that time, as far as gateways knew: they learn of a change a little
        later."""
        known = list(self.former)
        if self.state is not ReloadState.FAILED:
            until_ms = self.ended_ms if self.state is ReloadState.DONE else at_ms
            known.append(FormerModel(model_ref=self.old_model_ref, until_ms=until_ms))
        return any(each.model_ref == model_ref and at_ms <= each.until_ms + LEARN_MS for each in known)

    def and_before(self) -> tuple[FormerModel, ...]:
        """`former` of the next reload."""
        if self.state is not ReloadState.DONE:
            return self.former
        mine = FormerModel(model_ref=self.old_model_ref, until_ms=self.ended_ms)
        return (*self.former, mine)[-FORMER_MAX:]


class Tenant(TenantSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`tenant.<tenant>`: what the tenant may use of each pool that has no entry of its own for it."""


class DrainRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/pools/{id}/drain"""

    deadline_ms: DeadlineMs
    """How long what runs may take to end, milliseconds."""


class ReloadRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/pools/{id}/reload"""

    new_model_ref: ModelRef
    deadline_ms: DeadlineMs = RELOAD_DEADLINE_MS
    """What is not ready after so many milliseconds has failed."""

    def __post_init__(self) -> None:
        url_credentials.check("new_model_ref", self.new_model_ref)


class PoolView(msgspec.Struct, frozen=True, kw_only=True):
    """A pool in a list."""

    revision: int
    """As the `ETag` of the pool."""
    drained: bool
    spec: PoolSpec


class PoolList(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/pools, by id."""

    pools: tuple[PoolView, ...]


class TenantList(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/tenants, by id."""

    tenants: tuple[Tenant, ...]


DRAIN_DECODER: Final = msgspec.json.Decoder(PoolDrain)
RELOAD_DECODER: Final = msgspec.json.Decoder(PoolReload)
TENANT_DECODER: Final = msgspec.json.Decoder(Tenant)
