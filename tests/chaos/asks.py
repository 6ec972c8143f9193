"""What clients will ask for: a pure function of seed, seconds and the cluster's shape, as the faults are.

A task's prompt names it, so that whatever an engine said can be laid beside what readers saw. Half of the tasks are
sampled, with every way to go on after the loss of their engine.
"""

import random
import uuid
from enum import StrEnum
from typing import Final

import msgspec

from chaos.plan import Shape
from llorch_shared.wire.task import Determinism, Failover, OutputMode, Priority, TaskRequest
from support.client import task_request

DEADLINE_MS: Final = 3_600_000
"""Far beyond any run, also one whose engines stand still most of the time: no task may end for being late, nor because
a clock jumped."""
TOKENS: Final = (1, 5, 20, 40, 80, 120)
GATEWAYS_TENANT: Final = "default"
"""As whose the gateways take what clients hand in."""


class Way(StrEnum):
    """How a task is handed in and followed."""

    STREAM = "stream"
    """Over HTTP, and read at once from the same gateway."""
    FOLLOW = "follow"
    """Over HTTP, and read later from another gateway."""
    BUS = "bus"
    """Straight into the admission stream."""
    TWICE = "twice"
    """To several gateways at once with the same id."""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One task of the load. Gateways are numbers; a client that fails goes on to the next."""

    at_s: float
    request: TaskRequest
    pool: str
    tenant: str
    way: Way
    gateway: int
    doors: int = 2
    """To how many gateways at once, when it is handed in `TWICE`."""
    read_after_s: float = 0.0
    readers: int = 1
    cuts: tuple[int, ...] = ()
    """The first reader hangs up after this many tokens in all, and resumes on the next gateway."""
    cancel_after_s: float | None = None
    again_after_s: float | None = None
    """The same request once more, to a gateway: it must be the same task. The id of a task of another tenant than the
    gateways' is in use there."""


def prompt_of(task_id: str) -> str:
    return f"chaos {task_id}"


def make_asks(seed: int, seconds: float, *, per_s: float, shape: Shape | None = None) -> tuple[Ask, ...]:
    """Asks in the order of their times, `per_s` a second on average, over all of `seconds`."""
    shape = shape or Shape()
    rnd = random.Random(f"asks {seed}")
    asks: list[Ask] = []
    at_s = 0.0
    while True:
        at_s += rnd.expovariate(per_s)
        if at_s >= seconds:
            return tuple(asks)
        asks.append(_ask(rnd, round(at_s, 3), shape))


def request_of(rnd: random.Random, task: str, pool: str, tokens: int) -> TaskRequest:
    """A strict task for this pool, of any class."""
    return task_request(
        task_id=task,
        session_id=str(uuid.UUID(int=rnd.getrandbits(128), version=4)),
        prompt=prompt_of(task),
        max_tokens=tokens,
        deadline_ms=DEADLINE_MS,
        priority=rnd.choice(tuple(Priority)),
        placement={"mode": "pin", "pin_pool_id": pool},
    )


def _ask(rnd: random.Random, at_s: float, shape: Shape) -> Ask:
    task = str(uuid.UUID(int=rnd.getrandbits(128), version=4))
    pool = rnd.choice(shape.pools)
    tokens = rnd.choice(TOKENS)
    way = rnd.choice(tuple(Way))
    request = msgspec.structs.replace(
        request_of(rnd, task, pool, tokens),
        determinism=rnd.choice(tuple(Determinism)),
        failover=rnd.choices(tuple(Failover), (4, 3, 1))[0],
        output_mode=rnd.choices((OutputMode.TEXT, OutputMode.JSON), (9, 1))[0],
    )
    tenant = rnd.choice(("t1", "t2", GATEWAYS_TENANT)) if way is Way.BUS else GATEWAYS_TENANT
    return Ask(
        at_s=at_s,
        request=request,
        pool=pool,
        tenant=tenant,
        way=way,
        gateway=rnd.randrange(shape.gateways),
        read_after_s=0.0 if way is Way.STREAM else round(rnd.choice((0.0, rnd.uniform(0, 3))), 3),
        readers=rnd.choices((0, 1, 2), (1, 6, 3))[0],
        cuts=tuple(sorted(rnd.randrange(1, tokens + 1) for _ in range(rnd.choice((0, 0, 1, 2))))),
        cancel_after_s=round(rnd.uniform(0, 4), 3) if rnd.random() < 0.15 else None,
        again_after_s=round(rnd.uniform(0.1, 5), 3) if rnd.random() < 0.1 and tenant == GATEWAYS_TENANT else None,
    )
