"""Which old processes are ours, and what fits on a device."""

from llorch_poold.core.orphans import EngineProcess, orphans
from llorch_poold.core.vram import MIB, ModelFacts, kv_bytes, plan

SMOL = ModelFacts(
    weights_bytes=round(92.10 * MIB),
    n_layer=30,
    n_embd=576,
    n_ff=1536,
    n_head=9,
    n_head_kv=3,
    key_length=64,
    value_length=64,
    n_vocab=49_152,
)


def engine(pid: int, ticks: int) -> EngineProcess:
    return EngineProcess(pid=pid, start_ticks=ticks, replica_id="r")


def test_only_the_same_pid_with_the_same_start_time_is_ended() -> None:
    recorded = [engine(10, 100), engine(11, 200), engine(12, 300), engine(1, 5)]
    found = orphans(recorded, {10: 100, 11: 201, 1: 5})
    assert found.end == (engine(10, 100),)
    assert found.gone == (engine(11, 200), engine(12, 300), engine(1, 5))


def test_the_kv_cache_is_what_llama_cpp_reports() -> None:
    assert [kv_bytes(SMOL, ctx) / MIB for ctx in (512, 2048, 8192)] == [11.25, 45.0, 180.0]


def test_a_model_that_does_not_fit_is_told_with_numbers() -> None:
    assert plan(SMOL, ctx_total=8192, slots=1, free_mb=[4096]).fits
    tight = plan(SMOL, ctx_total=8192, slots=1, free_mb=[1700])
    assert not tight.fits
    assert "180 MiB" in tight.reason
    assert tight.room_mb == 1700 - 512 - 1024


def test_two_small_gpus_share_what_one_cannot_hold() -> None:
    assert not plan(SMOL, ctx_total=8192, slots=1, free_mb=[1700]).fits
    assert plan(SMOL, ctx_total=8192, slots=1, free_mb=[1750, 1750]).fits
