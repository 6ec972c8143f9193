"""The gates before an engine is started: a readable model that fits, and what was prepared when one of two fails."""

import asyncio
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_poold.adapters.port import EngineBroke
from llorch_poold.core.devices import CPU, DeviceMask
from llorch_poold.core.reconcile import Desired
from llorch_poold.gguf import NotGguf, read_facts
from llorch_poold.gpu.probe import GpuReport
from llorch_poold.preparation import NoRoom, Prepared, prepare
from llorch_poold.provisioning import NotProvisioned
from llorch_shared.wire.provision import PreparedEngine, ResolvedModel
from llorch_shared.wire.registry import Gpu
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine


def gguf(path: Path, weights: int) -> Path:
    """A header with the sizes of a small llama, one tensor, and a long token list to skip."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    entries = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    sizes = {
        "block_count": 30,
        "embedding_length": 576,
        "feed_forward_length": 1536,
        "attention.head_count": 9,
        "attention.head_count_kv": 3,
    }
    entries += [text(f"llama.{name}") + struct.pack("<II", 4, size) for name, size in sizes.items()]
    tokens = b"".join(text(f"t{number}") for number in range(5000))
    entries.append(text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 5000) + tokens)
    tensor = text("w") + struct.pack("<IQIQ", 1, weights, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries))
    path.write_bytes(head + b"".join(entries) + tensor + b"\0" * weights)
    return path


def test_the_header_of_a_model_tells_its_sizes(tmp_path: Path) -> None:
    facts = read_facts(gguf(tmp_path / "m.gguf", 1000))
    assert (facts.weights_bytes, facts.n_layer, facts.n_head_kv) == (1000, 30, 3)
    assert (facts.key_length, facts.value_length, facts.n_vocab) == (64, 64, 5000)


@pytest.mark.parametrize("keep", [0, 3, 20, 200])
def test_a_damaged_header_is_named(keep: int, tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", 10)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(NotGguf):
        read_facts(path)


class FakeProvisioning:
    """Brings an engine, and the model at `path`; or refuses the engine while the model never comes."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.given_up = False

    async def engine(self, spec: PoolSpec, progress: Any) -> PreparedEngine:
        if self.path is None:
            raise NotProvisioned("no", final=True)
        return PreparedEngine(engine=Engine.LLAMACPP, mode="external", entry=("x",), engine_version="b1")

    async def model(self, spec: PoolSpec, progress: Any) -> ResolvedModel:
        if self.path is None:
            try:
                await asyncio.Event().wait()
            finally:
                self.given_up = True
        return ResolvedModel(model_ref="m", model_id="m", local_path=str(self.path), size_bytes=1, digest="sha256:1")


def desired(device: DeviceMask, **fields: Any) -> Desired:
    spec = msgspec.convert({"id": "p", "engine": "llamacpp", "model": "m", "ctx": 8192, **fields}, PoolSpec)
    return Desired("p-n-1", spec, device)


def one_gpu(free_mb: int) -> GpuReport:
    return GpuReport(gpus=(Gpu(index=0, uuid="GPU-a", name="x", vram_total_mb=24_000, vram_free_mb=free_mb),))


MASK = DeviceMask("cuda:0", ("GPU-a",))


async def test_a_model_that_does_not_fit_is_not_started(tmp_path: Path) -> None:
    provisioning: Any = FakeProvisioning(gguf(tmp_path / "m.gguf", 1000))
    prepared = await prepare(provisioning, desired(MASK), one_gpu(8_000), print)
    assert prepared.engine_version == "b1"
    with pytest.raises(EngineBroke, match="lower ctx or slots"):
        await prepare(provisioning, desired(MASK, slots=64, ctx=32_768), one_gpu(8_000), print)


async def test_a_model_that_never_fits_makes_no_room_by_itself(tmp_path: Path) -> None:
    """Whether it would fit alone counts what an engine needs that reads an input in one batch."""
    provisioning: Any = FakeProvisioning(gguf(tmp_path / "m.gguf", 1000))
    for workload, alone in (("completion", True), ("embedding", False)):
        wanted = desired(MASK, slots=12, ctx=32_768, workloads=[workload])
        with pytest.raises(NoRoom) as told:
            await prepare(provisioning, wanted, one_gpu(1_000), print)
        assert told.value.fits_alone is alone


async def test_a_damaged_model_is_not_started_on_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"not a model")
    with pytest.raises(EngineBroke, match="not a GGUF file"):
        await prepare(FakeProvisioning(tmp_path / "m.gguf"), desired(MASK), one_gpu(8_000), print)  # type: ignore[arg-type]


async def test_when_the_engine_is_refused_nobody_waits_for_the_model() -> None:
    provisioning: Any = FakeProvisioning(None)
    with pytest.raises(NotProvisioned):
        await prepare(provisioning, desired(CPU), GpuReport(), print)
    await asyncio.sleep(0)
    assert provisioning.given_up


async def test_the_mock_engine_needs_nothing() -> None:
    provisioning: Any = FakeProvisioning(None)
    assert await prepare(provisioning, desired(CPU, engine="mock"), GpuReport(), print) == Prepared()
