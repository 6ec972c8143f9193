"""Determinism classes."""

from typing import Any

import pytest

from llorch_poold.core.determinism import cpu_isa, determinism_class, gpu_isa
from llorch_shared.wire.registry import Gpu

FACTS: dict[str, Any] = {
    "engine": "llamacpp",
    "engine_version": "b11549",
    "isa": ("avx2", "fma"),
    "quant": "q4_1",
    "model_ref": "hf:x",
    "model_digest": "sha256:1",
    "sampler_profile": "v1",
}


def test_what_an_engine_computes_with_is_read_from_the_first_processor() -> None:
    text = "processor\t: 0\nflags\t\t: fpu sse4_2 avx avx2 hypervisor\n\nprocessor\t: 1\nflags\t\t: avx512f\n"
    assert cpu_isa(text) == ("sse4_2", "avx", "avx2")
    assert cpu_isa("processor\t: 0\nFeatures\t: fp asimd i8mm\n") == ("asimd", "i8mm")
    assert cpu_isa("") == ()


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "mock"},
        {"engine_version": "b11550"},
        {"isa": ("avx2", "avx512f", "fma")},
        {"quant": "q8_0"},
        {"model_digest": "sha256:2"},
        {"sampler_profile": "v2"},
    ],
)
def test_whatever_changes_tokens_makes_another_class(change: dict[str, Any]) -> None:
    assert determinism_class(**{**FACTS, **change}) != determinism_class(**FACTS)


def test_a_class_is_short_stable_and_told_only_where_everything_is_known() -> None:
    assert determinism_class(**FACTS) == determinism_class(**{**FACTS, "isa": ("fma", "avx2")})
    assert len(determinism_class(**FACTS)) == 16
    assert determinism_class(**{**FACTS, "engine_version": ""}) == ""
    assert determinism_class(**{**FACTS, "isa": ()}) == ""


def test_two_equal_cards_are_one_class_and_another_model_is_not() -> None:
    def card(index: int, name: str) -> Gpu:
        return Gpu(index=index, uuid=f"u{index}", name=name, vram_total_mb=1, vram_free_mb=1, compute_capability="9.0")

    assert gpu_isa([card(0, "H100")]) == gpu_isa([card(1, "H100")])
    assert gpu_isa([card(0, "H100"), card(1, "H200")]) == gpu_isa([card(0, "H200"), card(1, "H100")])
    assert gpu_isa([card(0, "H100")]) != gpu_isa([card(0, "H200")])
