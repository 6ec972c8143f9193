"""How a pool schedules, as an operator writes it: queues, shares, quotas, deadlines, preemption, waiting (REQUIREMENTS
sections 3 and 7).

Every number is a key of the pool, with its unit in the name, a default and the reason for it. All of them may change
while tasks wait: the scheduler applies a stored change at once and audits it.
"""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llorch_shared.wire.task import Name, Priority

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Weight = Annotated[int, Meta(ge=1, le=1_000)]
Rate = Annotated[float, Meta(gt=0, le=1_000_000)]
Share = Annotated[float, Meta(ge=0, le=1)]
Milliseconds = Annotated[int, Meta(ge=0, le=2**53)]


class FullPolicy(StrEnum):
    """What a full queue does (ORCH-3005)."""

    REJECT = "reject"
    """The server refuses the newcomer."""
    DROP_LRU = "drop-lru"
    """The newcomer is taken; the oldest batch task ends in its place, else the oldest of all."""
    SHED_LOW_PRIORITY = "shed-low-priority"
    """A newcomer takes the place of the newest task of a lower class; with none of those it is refused."""


class QueueSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    capacity: Count = 256
    """Waiting tasks per priority: longer waits outlast the clients' patience."""
    full_policy: FullPolicy = FullPolicy.REJECT
    """The answer is exact and nothing accepted is lost."""
    tenant_capacity: Count | None = None
    """Waiting tasks per priority of one tenant; none: a tenant may fill the queue, its share is bounded by weights."""


class PrioritySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Priority
    weight: Weight | None = None
    """Share of the pool's slot time while both classes wait; none: interactive 8, batch 1 (ORCH-3075)."""
    queue_capacity: Count | None = None
    """Waiting tasks of this class; none: `queue.capacity`."""
    rate_limit_rps: Rate | None = None
    """Starts per second of the whole class; what is over it waits. None: no limit."""


class TenantLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one tenant may use of one pool. Work over a limit waits, and holds up nobody else (ORCH-3036, 3077)."""

    weight: Weight = 1
    """Share among the tenants of its class while they wait."""
    max_concurrent: Count | None = None
    """Tasks placed or running."""
    rps: Rate | None = None
    """Starts per second; one second's worth may start at once."""
    tokens_per_min: Annotated[int, Meta(ge=1, le=10**12)] | None = None
    """Prompt and generated tokens per minute: expected when a task starts, corrected when it ends."""
    kv_mb: Annotated[int, Meta(ge=1, le=10**9)] | None = None
    """KV cache of its running tasks as estimated from ctx and the engine's bytes per token, MiB."""


class TenantSpec(TenantLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: Name


class FairnessSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["wfq"] = "wfq"
    tenants: tuple[TenantSpec, ...] = ()
    default: TenantLimits = TenantLimits()
    """For tenants that are not listed: equal weights, no quota."""
    share_window_ms: Annotated[int, Meta(ge=1_000, le=3_600_000)] = 60_000
    """Time constant of the average behind `admission_share`: a minute shows a changed mix before people ask."""


class AdmissionSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    priorities: tuple[PrioritySpec, ...] = ()
    fairness: FairnessSpec = FairnessSpec()


class DeadlineSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    order: Literal["edf", "fifo"] = "edf"
    """Inside one tenant's queue of a class: earliest deadline first, or as admitted. Equal deadlines: as admitted."""
    min_on_time_probability: Share = 0.5
    """Below it a task is refused with DEADLINE_UNMET: its expected end is past its deadline. 0 refuses nothing."""
    evict: Literal["eta", "expiry"] = "eta"
    """In lasting overload a waiting task ends when it can no longer be in time (`eta`), else when its time is up."""
    overload_after_ms: Milliseconds = 5_000
    """Every slot taken and tasks waiting for this long is lasting overload: a burst of seconds is not."""


class HardRequirements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    engine_capability: Name = "interruptible_decode"
    """A replica whose self-test did not show this is never preempted (ORCH-3086)."""
    max_preemptions_per_min: Annotated[int, Meta(ge=0, le=100_000)] = 10
    """Repeated work is paid by everybody: ten a minute cannot stall a pool."""
    protect_priorities: tuple[Priority, ...] = (Priority.INTERACTIVE,)
    """Classes whose running tasks are never stopped: people read them."""


class PreemptionSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    mode: Literal["disabled", "soft", "hard"] = "soft"
    """soft: waiting work of a lower class is passed over for a task that would miss its deadline otherwise. hard: its
    running work is stopped, too, and resumes later."""
    soft_max_in_row: Annotated[int, Meta(ge=1, le=1_000)] = 8
    """A class that was passed over so often in a row gets its turn: nothing starves."""
    hard_requirements: HardRequirements = HardRequirements()


class AffinitySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    ttl_ms: Milliseconds = 600_000
    """How long a session prefers its last replica: the life of a session (ORCH-3009, 3021). 0 is off."""


class CanarySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A second replica set that takes a part of the tasks (ORCH-3033). Without it every task goes to the stable set."""

    engine_version: Annotated[str, Meta(min_length=1, max_length=256)]
    """Replicas of exactly this version are the second set."""
    percent: Annotated[float, Meta(ge=0, le=100)] = 0
    """Part of the sessions, chosen by a hash, so that one session stays on one side."""
    labels: tuple[Name, ...] = ()
    """Tasks with one of these `placement.label`s."""


class BreakerSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When starting late becomes the rule, the lowest class is refused, then all (ORCH-3040)."""

    start_ms: Annotated[int, Meta(ge=1, le=2**53)]
    """The objective: an interactive task starts within this time of its admission."""
    broken_share: Share = 0.5
    """Opens while at least this part of the interactive tasks start late …"""
    healthy_share: Share = 0.1
    """… and closes when at most this part does. The gap keeps it from flapping."""
    hold_ms: Annotated[int, Meta(ge=1_000, le=3_600_000)] = 30_000
    """How long either must last before anything changes, and the time constant of the average."""


class WaitingSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What refused clients are promised. A client that comes back when it was told to finds its place kept."""

    promised_share: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """Part of the measured drain rate that is promised; the rest absorbs chance and serves newcomers."""
    grace_ms: Annotated[int, Meta(ge=0, le=600_000)] = 30_000
    """How long a place is kept for a client that is late."""
    retry_max_ms: Annotated[int, Meta(ge=1_000, le=86_400_000)] = 3_600_000
    """Longest time a client is sent away for; beyond it nothing is promised."""
    load_ms: Annotated[int, Meta(ge=1, le=86_400_000)] = 30_000
    """Expected time of a model load until one has been measured."""
