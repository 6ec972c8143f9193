"""Whether a session whose text an engine holds has ended, by what is stored of it. Pure."""

from typing import Final

from llorch_poold.core.slot_memory import Use
from llorch_shared import session_account
from llorch_shared.wire.session import SessionPolicy, SessionRecord

CLOCKS_MS: Final = 2_000
"""A deletion counts for tasks that began so shortly after it, too: nobody's clock decides that a text stays."""


def has_ended(
    use: Use,
    *,
    account: SessionRecord | None,
    deleted_ms: int,
    policy: SessionPolicy,
    ttl_ms: int,
    now_ms: int,
) -> bool:
    """With an account, that decides. Without one: a deletion since its text came here (`deleted_ms`; 0: none), or
    `ttl_ms` without a task here."""
    if account is not None:
        return session_account.is_over(account, policy, now_ms)
    return (deleted_ms > 0 and deleted_ms + CLOCKS_MS >= use.since_ms) or now_ms - use.used_ms >= ttl_ms
