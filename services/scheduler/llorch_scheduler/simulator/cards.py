"""What the shipped scenarios are built from: cards, sizes of prompts and answers, pools and flows.

Speeds are those of an 8-billion-parameter model in four-bit quantisation, rounded from what is commonly measured on
such cards; they are models of hardware, not measurements of this project.
"""

from typing import Any, Final

from llorch_scheduler.simulator.arrivals import Bursts, Poisson
from llorch_scheduler.simulator.scenario import Flow, Hardware, PoolPlan, ReplicaPlan
from llorch_scheduler.simulator.sizes import LogNormal
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine, Priority

RTX_3060: Final = Hardware(name="rtx3060-12gb", vram_mb=12_288, prefill_per_s=1_600, step_ms=18.0, step_per_task_ms=2.2)
RTX_3090: Final = Hardware(name="rtx3090-24gb", vram_mb=24_576, prefill_per_s=3_600, step_ms=9.0, step_per_task_ms=1.1)
CARD_CHATS_PER_S: Final = 1.9
"""What an RTX 3090 with 8 slots does of `chat`."""

CHAT_PROMPT: Final = LogNormal(median=350, sigma=1.0, most=4_000)
CHAT_ANSWER: Final = LogNormal(median=180, sigma=0.8, most=1_500)
JOB_PROMPT: Final = LogNormal(median=1_200, sigma=0.7, most=5_000)
JOB_ANSWER: Final = LogNormal(median=320, sigma=0.6, most=2_000)

INTERACTIVE: Final = Priority.INTERACTIVE
BATCH: Final = Priority.BATCH


def card(node: str, **fields: Any) -> ReplicaPlan:
    """An RTX 3090 with eight slots."""
    return ReplicaPlan(node=node, hardware=RTX_3090, **{"slots": 8, "load_ms": 12_000, **fields})


def pool(pool_id: str, *replicas: ReplicaPlan, **policy: Any) -> PoolPlan:
    spec = PoolSpec(id=pool_id, engine=Engine.LLAMACPP, model="8b-q4", ctx=8_192, slots=replicas[0].slots, **policy)
    return PoolPlan(spec=spec, replicas=replicas, weights_mb=5_000, kv_kb_per_token=128)


def chat(tenant: str, pool_id: str, per_s: float, **fields: Any) -> Flow:
    """People who ask: short prompts, answers of a few seconds, all with the same generous bound on their length."""
    values: dict[str, Any] = {
        "arrivals": Poisson(per_s),
        "prompt": CHAT_PROMPT,
        "output": CHAT_ANSWER,
        "max_tokens": CHAT_ANSWER.most,
        "deadlines_ms": (600_000,),
    }
    return Flow(tenant=tenant, priority=INTERACTIVE, pool_id=pool_id, **(values | fields))


def jobs(tenant: str, pool_id: str, per_s: float, **fields: Any) -> Flow:
    """Work that comes in bursts: twice the mean for the first third of every ten minutes, half of it otherwise."""
    values: dict[str, Any] = {
        "arrivals": Bursts(per_s=per_s / 2, burst_per_s=2 * per_s, every_s=600, lasts_s=200),
        "prompt": JOB_PROMPT,
        "output": JOB_ANSWER,
        "max_tokens": JOB_ANSWER.most,
    }
    return Flow(tenant=tenant, priority=BATCH, pool_id=pool_id, **(values | fields))
