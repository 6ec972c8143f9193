"""From what a person types to a task request: the pool is chosen by what the system says it can serve."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from llorch_shared.wire.registry import Capabilities, PoolCapability
from llorch_shared.wire.task import (
    Determinism,
    Engine,
    Failover,
    PlacementMode,
    PlacementOverrides,
    Priority,
    TaskRequest,
    Workload,
)


class NoChoice(ValueError):
    """What was typed fits no pool, or several that differ; the message lists them."""


class Template(StrEnum):
    """How a prompt is wrapped for the model."""

    NONE = "none"
    CHATML = "chatml"


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What was typed, with ids made for it; None where nothing was."""

    task_id: str
    session_id: str
    prompt: str
    template: Template = Template.NONE
    model: str | None = None
    engine: Engine | None = None
    pool: str | None = None
    max_tokens: int = 128
    ctx: int | None = None
    priority: Priority = Priority.INTERACTIVE
    determinism: Determinism = Determinism.STRICT
    failover: Failover = Failover.RESUME
    seed: int | None = None
    deadline_ms: int = 600_000
    override: bool = False


def chatml(text: str) -> str:
    """One user turn, and the beginning of the answer."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def choose(capabilities: Capabilities, wish: Wish) -> tuple[Engine, PoolCapability]:
    """The one engine and model that fit the wish. Raises NoChoice."""
    offers = [
        (engine.engine, pool)
        for engine in capabilities.engines
        for pool in engine.pools
        if Workload.COMPLETION in pool.workloads
    ]
    fit = [
        (engine, pool)
        for engine, pool in offers
        if wish.engine in (None, engine) and wish.model in (None, pool.model_ref) and wish.pool in (None, pool.pool_id)
    ]
    if not fit:
        raise NoChoice(f"no pool fits; the system has {_listed(offers)}")
    if len({(engine, pool.model_ref) for engine, pool in fit}) > 1:
        raise NoChoice(f"say which with --pool or --model: {_listed(fit)}")
    return max(fit, key=lambda offer: (offer[1].ready, offer[1].slots_free, offer[1].pool_id))


def build(engine: Engine, pool: PoolCapability, wish: Wish) -> TaskRequest:
    """The request to send. A named pool is pinned."""
    pinned = PlacementOverrides(mode=PlacementMode.PIN, pin_pool_id=wish.pool) if wish.pool else None
    return TaskRequest(
        task_id=wish.task_id,
        session_id=wish.session_id,
        workload=Workload.COMPLETION,
        model_ref=pool.model_ref,
        engine=engine,
        ctx=wish.ctx or pool.ctx_max,
        priority=wish.priority,
        max_tokens=wish.max_tokens,
        deadline_ms=wish.deadline_ms,
        seed=wish.seed,
        determinism=wish.determinism,
        failover=wish.failover,
        prompt=chatml(wish.prompt) if wish.template is Template.CHATML else wish.prompt,
        placement=pinned,
        override=wish.override,
    )


def _listed(offers: Sequence[tuple[Engine, PoolCapability]]) -> str:
    if not offers:
        return "no pools"
    return ", ".join(f"{pool.pool_id} ({engine}, {pool.model_ref})" for engine, pool in offers)
