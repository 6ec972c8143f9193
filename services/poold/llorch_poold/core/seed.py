"""Sampler profile v1 and the seed of a task: what must be the same for two runs to give the same tokens."""

import hashlib
from typing import Final

SEED_SPACE: Final = 2**32 - 1
"""llama.cpp reads 2^32-1 as "choose a random seed"."""

SAMPLER_V1: Final[dict[str, float | int]] = {
    "temperature": 0.7,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.05,
    "repeat_penalty": 1.0,
}


def seed_of(task_id: str, seed: int | None) -> int:
    """The request's seed, or one that follows from the task id, so that every attempt uses the same."""
    if seed is not None:
        return seed
    return int.from_bytes(hashlib.sha256(task_id.lower().encode("ascii")).digest()[:4], "big") % SEED_SPACE
