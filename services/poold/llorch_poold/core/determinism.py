"""The determinism class of a replica: replicas of one class give the same tokens for the same seed.

What must be equal was measured: the engine's build, the instructions it computes with (an AVX2 and an AVX-512 build of
one version part after a few tokens), the quantisation, the model's bytes, and the sampler. The number of threads does
not matter. Equal classes are a promise that the comparison of a repeated stream keeps honest; different ones only mean
that nothing is promised.
"""

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from llorch_shared.wire.registry import Gpu

_GGML_FLAGS: Final = (
    "sse4_2",
    "avx",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "bmi2",
    "f16c",
    "fma",
    "asimd",
    "asimddp",
    "asimdhp",
    "i8mm",
    "sve",
    "sve2",
    "bf16",
)
"""By which ggml chooses its code, as /proc/cpuinfo spells them."""
_DIGITS: Final = 16


def cpu_isa(cpuinfo: str) -> tuple[str, ...]:
    """The instructions of this machine that an engine may compute with, from the text of /proc/cpuinfo."""
    flags: set[str] = set()
    for line in cpuinfo.splitlines():
        name, found, value = line.partition(":")
        if found and name.strip() in ("flags", "Features"):
            flags.update(value.split())
            break
    return tuple(flag for flag in _GGML_FLAGS if flag in flags)


def gpu_isa(gpus: Iterable[Gpu]) -> tuple[str, ...]:
    """Models and compute capabilities of a mask's devices, sorted: which of two equal ones it is does not matter."""
    return tuple(sorted(f"{gpu.name} {gpu.compute_capability}" for gpu in gpus))


def determinism_class(
    *,
    engine: str,
    engine_version: str,
    isa: Iterable[str],
    quant: str,
    model_ref: str,
    model_digest: str,
    sampler_profile: str,
) -> str:
    """A short name for all of it; empty when the engine's build or its instructions are not known, for then nothing
    may be promised."""
    facts = [engine, engine_version, sorted(isa), quant, model_digest or model_ref, sampler_profile]
    if not engine_version or not facts[2]:
        return ""
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:_DIGITS]
