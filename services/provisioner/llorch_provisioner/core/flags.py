"""Engine flags that people still write the old way, in today's spelling (ORCH-3271)."""

from collections.abc import Sequence
from typing import Final

from llorch_shared.wire.task import Engine

_LLAMACPP: Final = {"-ngl": "--n-gpu-layers", "--ngl": "--n-gpu-layers", "--gpu-layers": "--n-gpu-layers"}


def normalise(engine: Engine, flags: Sequence[str]) -> tuple[str, ...]:
    """The same flags; only names change, `--name=value` keeps its value, other engines keep theirs."""
    if engine is not Engine.LLAMACPP:
        return tuple(flags)
    done: list[str] = []
    for flag in flags:
        name, equals, value = flag.partition("=")
        done.append(f"{_LLAMACPP.get(name, name)}{equals}{value}")
    return tuple(done)
