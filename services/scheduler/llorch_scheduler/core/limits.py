"""How long the core waits for what, and how much it does at once. Times in milliseconds."""

import msgspec

from llorch_shared.on_time import PREEMPT_LEAD_MS


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    attempts_max: int = 3
    claim_ms: int = 30_000
    """A placement that a living replica does not claim for this long goes elsewhere."""
    missing_ms: int = 5_000
    """A claimed task that its replica's reports do not list for this long is lost. A node stops listing a task a moment
    before it writes the final record, so one report proves nothing."""
    absent_ms: int = 5_000
    """After a takeover: how long a replica that only run records name may take to report (registry keys live 3 s)."""
    preempt_lead_ms: int = PREEMPT_LEAD_MS
    """How long before the last moment a slot is made free."""
    preempt_ms: int = 5_000
    """A task that was asked to stop and has not done so by then is left alone."""
    eta_again_ms: int = 1_000
    """How often a task that can no longer be in time is looked at, until its time is up or overload lasts."""
    pause_ms: int = 1_000
    """Wait before a write that the bus did not do is tried again."""
    backlog_ms: int = 2_000
    """After a takeover: placing begins once the backlog is pulled, and at the latest after this."""
    load_min_ms: int = 100
    load_max_ms: int = 1_000
    upkeep_ms: int = 1_000
    expired_per_tick_max: int = 1_024
    wishes_max: int = 16_384
    """Cancel wishes kept for tasks that are not known (yet). The node looks for the stored wish after its claim, so a
    forgotten one makes a cancel late, never lost."""
