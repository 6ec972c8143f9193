"""Does a GGUF model fit on a device mask? The formula matches llama.cpp's own numbers for weights and KV cache.

    weights  = file - header
    kv       = n_layer * n_ctx_total * n_head_kv * (key_len + value_len) * 2 B        f16; all slots share n_ctx_total
    compute  = 16 B * n_ubatch * (n_embd + n_ff) + 2 B * n_ubatch * n_ctx_total       an upper bound
    output   = 4 B * n_vocab * slots
    per GPU  : 0.5 GiB of context and 1 GiB of margin

Models with a sliding window, MLA or recurrent state need less KV than this says, never more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MIB: Final = 1024 * 1024
CONTEXT_MB: Final = 512
MARGIN_MB: Final = 1024
UBATCH_GPU: Final = 512


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """From the header of a GGUF file. Lengths in elements, `weights_bytes` in bytes."""

    weights_bytes: int
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    key_length: int
    value_length: int
    n_vocab: int
    n_ctx_train: int = 0


@dataclass(frozen=True, slots=True)
class VramPlan:
    fits: bool
    need_mb: int
    room_mb: int
    """Free memory of the mask, less context and margin of each GPU."""
    reason: str = ""


def kv_bytes(facts: ModelFacts, ctx_total: int) -> int:
    return facts.n_layer * ctx_total * facts.n_head_kv * (facts.key_length + facts.value_length) * 2


def need_bytes(facts: ModelFacts, *, ctx_total: int, slots: int, ubatch: int = UBATCH_GPU) -> int:
    compute = 16 * ubatch * (facts.n_embd + facts.n_ff) + 2 * ubatch * ctx_total
    return facts.weights_bytes + kv_bytes(facts, ctx_total) + compute + 4 * facts.n_vocab * slots


def plan(
    facts: ModelFacts, *, ctx_total: int, slots: int, free_mb: Sequence[int], ubatch: int = UBATCH_GPU
) -> VramPlan:
    """`free_mb` of every GPU of the mask. No spill to the host: what does not fit is not started (ORCH-3012)."""
    need_mb = -(-need_bytes(facts, ctx_total=ctx_total, slots=slots, ubatch=ubatch) // MIB)
    room_mb = sum(max(0, free - CONTEXT_MB - MARGIN_MB) for free in free_mb)
    if need_mb <= room_mb:
        return VramPlan(True, need_mb, room_mb)
    reason = (
        f"the model needs {need_mb} MiB ({kv_bytes(facts, ctx_total) // MIB} MiB of it KV cache for {ctx_total} "
        f"tokens), the device mask has room for {room_mb} MiB: lower ctx or slots, or free GPU memory"
    )
    return VramPlan(False, need_mb, room_mb, reason)
