"""What a session may use: its tenant's policy, and what its client asked for, which may only be less. Pure.

What is spent of it is the account's (`session_account.py`), what is left of it `session_budget.py`.
"""

from llorch_shared.errors import invalid
from llorch_shared.wire.session import NANO, SessionLimits, SessionPolicy, SessionRequest


def permitted(policy: SessionPolicy) -> SessionLimits:
    """By the tenant's policy."""
    return SessionLimits(
        ttl_ms=policy.ttl_ms,
        turns_max=policy.turns_max,
        tokens=policy.tokens_budget,
        time_ms=policy.time_budget_ms,
        nano=_nano(policy.cost_budget),
    )


def asked_for(policy: SessionPolicy, wanted: SessionRequest) -> SessionLimits:
    """Raises OrchError for what is over the policy."""
    for name in SessionRequest.__struct_fields__:
        asked, most = getattr(wanted, name), getattr(policy, name)
        if asked is not None and most is not None and asked > most:
            raise invalid(f"{name}: {asked} is over the {most} that this tenant's sessions may have")
    limits = permitted(policy)
    return SessionLimits(
        ttl_ms=limits.ttl_ms if wanted.ttl_ms is None else wanted.ttl_ms,
        turns_max=limits.turns_max if wanted.turns_max is None else wanted.turns_max,
        tokens=_least(wanted.tokens_budget, limits.tokens),
        time_ms=_least(wanted.time_budget_ms, limits.time_ms),
        nano=_least(_nano(wanted.cost_budget), limits.nano),
    )


def in_force(own: SessionLimits, policy: SessionPolicy) -> SessionLimits:
    """The tighter of what its client and its tenant's present policy permit."""
    theirs = permitted(policy)
    return SessionLimits(
        ttl_ms=min(own.ttl_ms, theirs.ttl_ms),
        turns_max=min(own.turns_max, theirs.turns_max),
        tokens=_least(own.tokens, theirs.tokens),
        time_ms=_least(own.time_ms, theirs.time_ms),
        nano=_least(own.nano, theirs.nano),
    )


def _nano(cost: float | None) -> int | None:
    return None if cost is None else round(cost * NANO)


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)
