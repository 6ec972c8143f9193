"""What a session has left of what it may use: neither spent, nor held for its tasks under way. And what a task is told
that does not fit. Pure.
"""

from typing import Final, NamedTuple

from llorch_shared.errors import ErrorCode, OrchError, PolicyLabel
from llorch_shared.session_limits import in_force
from llorch_shared.wire.session import NANO, SessionPolicy, SessionRecord, SessionRemaining

RETRY_MS: Final = 1_000
"""What other tasks of a session have reserved comes back when they end; when is not known."""


class Budget(NamedTuple):
    unit: str
    limit: int | None
    """None: as much as it takes."""
    spent: int
    held: int

    @property
    def left(self) -> int | None:
        return None if self.limit is None else max(0, self.limit - self.spent - self.held)

    def check(self, asked: int, *, engine: str, pool_id: str) -> None:
        """Raises OrchError for a task that may take more than is left: whether it is worth coming back, its code
        says."""
        if self.limit is None or asked <= self.limit - self.spent - self.held:
            return
        unspent = self.limit - self.spent
        if asked > unspent:
            raise OrchError(
                ErrorCode.INVALID_PARAMS,
                f"the session has {max(0, unspent)} {self.unit} left, and this task may take {asked}",
                engine=engine,
                pool_id=pool_id,
                policy_label=PolicyLabel.SESSION_BUDGET,
                hint="ask for fewer max_tokens, or go on in a new session",
            )
        raise OrchError(
            ErrorCode.ADMISSION_REJECT,
            f"the session has {unspent} {self.unit} left, of which {self.held} are reserved for its tasks under way",
            engine=engine,
            pool_id=pool_id,
            retry_after_ms=RETRY_MS,
            policy_label=PolicyLabel.SESSION_BUDGET,
        )


class Budgets(NamedTuple):
    tokens: Budget
    nano: Budget
    time_ms: Budget


def budgets(record: SessionRecord, policy: SessionPolicy) -> Budgets:
    limits, spent = in_force(record.limits, policy), record.spent
    holds = [hold.amounts for hold in record.open.values()]
    return Budgets(
        Budget("tokens", limits.tokens, spent.tokens, sum(each.tokens for each in holds)),
        Budget("billionths of cost", limits.nano, spent.nano, sum(each.nano for each in holds)),
        Budget("ms of decode time", limits.time_ms, spent.time_ms, sum(each.time_ms for each in holds)),
    )


def remaining(record: SessionRecord, policy: SessionPolicy) -> SessionRemaining:
    """As clients are told."""
    tokens, nano, time_ms = (budget.left for budget in budgets(record, policy))
    return SessionRemaining(
        tokens_budget_remaining=tokens,
        time_budget_remaining_ms=time_ms,
        cost_budget_remaining=None if nano is None else nano / NANO,
    )
