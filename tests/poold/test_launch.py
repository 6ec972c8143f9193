"""Command lines of engines: flags, devices, and an environment without our secrets."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from llorch_poold.adapters.launch import Launch, Unlaunchable, plan_launch
from llorch_poold.core.devices import CPU, DeviceMask
from llorch_shared.wire.provision import PreparedEngine, ResolvedModel
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine

OURS = {"PATH": "/bin", "AUTH_TOKEN": "secret", "NATS_PASSWORD": "secret", "LLORCH_STATE_DIR": "/x"}
MODEL = ResolvedModel(model_ref="m", model_id="m", local_path="/models/m.gguf", size_bytes=1, digest="sha256:0")
GPU = DeviceMask("cuda:1", ("GPU-b",))


def launch(*entry: str, device: DeviceMask = CPU, flags: tuple[str, ...] = (), **fields: Any) -> Launch:
    spec = msgspec.convert({"id": "p", "engine": "llamacpp", "model": "m", "ctx": 1024, **fields}, PoolSpec)
    engine = PreparedEngine(
        engine=Engine.LLAMACPP, mode="external", entry=entry, engine_version="v", env={"E": "1"}, flags=flags
    )
    return plan_launch(spec, device=device, port=4000, engine=engine, model=MODEL, environment=OURS)


def value(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_llama_server_gets_the_context_of_all_its_slots() -> None:
    plan = launch("/opt/llama-server", slots=4)
    assert value(plan.argv, "-c") == "4096"
    assert value(plan.argv, "--parallel") == "4"
    assert "--no-cont-batching" not in plan.argv
    assert "--no-cont-batching" in launch("/opt/llama-server").argv
    assert (value(plan.argv, "-fit"), value(plan.argv, "-cram"), plan.model_path) == ("off", "0", "/models/m.gguf")
    assert "--metrics" in plan.argv


@pytest.mark.parametrize("entry", ["/opt/llama-server", "/envs/x/bin/python3.11"])
def test_an_engine_may_erase_slots_and_write_down_none(entry: str) -> None:
    folder = value(launch(entry).argv, "--slot-save-path")
    assert folder.endswith("/"), "names of files are put behind it as they are"
    with pytest.raises(OSError, match=folder):
        Path(f"{folder}kept").touch()


def test_on_the_cpu_batches_are_small_and_threads_wait_passively() -> None:
    plan = launch("/opt/llama-server")
    assert (value(plan.argv, "-b"), value(plan.argv, "-ngl")) == ("64", "0")
    assert (plan.env["OMP_WAIT_POLICY"], plan.env["CUDA_VISIBLE_DEVICES"]) == ("PASSIVE", "")


def test_on_a_gpu_the_engine_sees_its_mask_only() -> None:
    plan = launch("/opt/llama-server", device=GPU)
    assert plan.env["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    assert value(plan.argv, "-ngl") == "999"
    assert "-b" not in plan.argv
    assert "OMP_WAIT_POLICY" not in plan.env


def test_a_python_entry_gets_the_launcher_as_a_file() -> None:
    plan = launch("/envs/x/bin/python3.11", flags=("--threads", "2"))
    assert plan.argv[0] == "/envs/x/bin/python3.11"
    assert plan.argv[1].endswith("xllamacpp_child.py")
    assert plan.argv[-2:] == ("--threads", "2")


def test_an_engine_is_started_for_the_workloads_of_its_pool() -> None:
    """Where all tokens of an input make its vector together they must fit into one batch."""
    both = launch("/opt/llama-server", workloads=["completion", "embedding"], pooling="mean")
    assert value(both.argv, "--pooling") == "mean"
    assert "--embeddings" in both.argv
    assert (value(both.argv, "-b"), value(both.argv, "-ub"), both.batch) == ("1024", "1024", 1024)
    last = launch("/opt/llama-server", workloads=["embedding"], pooling="last")
    assert (value(last.argv, "-ub"), last.batch) == ("64", 64)
    plain = launch("/opt/llama-server", workloads=["embedding"], device=GPU)
    assert "--pooling" not in plain.argv
    assert value(plain.argv, "-ub") == "1024"
    rerank = launch("/envs/x/bin/python3.11", workloads=["rerank"])
    assert "--reranking" in rerank.argv
    assert (value(rerank.argv, "--batch-size"), "--embeddings" in rerank.argv) == ("1024", False)
    assert "--embeddings" not in launch("/opt/llama-server").argv


def test_no_secret_and_no_setting_of_ours_reaches_an_engine() -> None:
    assert set(launch("/opt/llama-server").env) == {"PATH", "E", "CUDA_VISIBLE_DEVICES", "OMP_WAIT_POLICY"}


def test_the_mock_engine_needs_nothing_prepared() -> None:
    spec = msgspec.convert(
        {"id": "p", "engine": "mock", "model": "mock:w", "provisioning": {"flags": ["--rate", "5"]}}, PoolSpec
    )
    plan = plan_launch(spec, device=CPU, port=1, engine=None, model=None, environment={})
    assert plan.model_path == "mock:w"
    assert plan.argv[-2:] == ("--rate", "5")


def test_an_engine_without_an_adapter_is_refused() -> None:
    spec = msgspec.convert({"id": "p", "engine": "vllm", "model": "m"}, PoolSpec)
    with pytest.raises(Unlaunchable):
        plan_launch(spec, device=CPU, port=1, engine=None, model=MODEL, environment={})
