"""Command lines of engine processes: which program, which flags, which devices. Nothing is started here.

One command line serves llama-server and the xllamacpp child; an entry that is a Python interpreter gets our launcher
file. CPU engines share their cores with others, so their OpenMP threads wait passively and their batches are small:
a cancel is noticed after the current batch. Only where an input must be read at once, to be embedded or ranked, is the
batch as large as the context.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llorch_poold.adapters import xllamacpp_child
from llorch_poold.core.devices import DeviceMask
from llorch_shared.wire.provision import PreparedEngine, ResolvedModel
from llorch_shared.wire.spec import Pooling, PoolSpec
from llorch_shared.wire.task import Engine, Workload

CPU_BATCH: Final = 64
"""A cancel of a long prompt costs up to two of them. Smaller ones cost more: 7 % of CPU per token at 32, and the tokens
of a seed depend on how its prompt was cut, which in company is always the same only for one that fits in a batch."""
GPU_BATCH: Final = 2048
"""What llama.cpp does unless told otherwise."""
MOCK_BATCH: Final = "512"
ALL_LAYERS: Final = 999
HOST: Final = "127.0.0.1"
SAMPLER_PROFILE: Final = "v1"
NO_SAVES: Final = "/proc/"
"""llama-server erases slots only where it may also save them. Nobody can write a file here, whoever asks for it. File
names are put behind it as they are."""

_INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
"""What an engine gets of our environment: no secret, no setting of ours."""


class Unlaunchable(ValueError):
    """No command line can be made: the pool asks for something this node cannot start."""


@dataclass(frozen=True, slots=True)
class Launch:
    argv: tuple[str, ...]
    env: Mapping[str, str]
    port: int
    model_path: str
    """What /props must answer: proof that the process behind the port is ours."""
    batch: int
    """Prompt tokens that the engine reads at once."""
    workdir: str = ""
    gpu: bool = False
    """It must run on a GPU, or not at all."""


def plan_launch(
    spec: PoolSpec,
    *,
    device: DeviceMask,
    port: int,
    engine: PreparedEngine | None,
    model: ResolvedModel | None,
    environment: Mapping[str, str],
) -> Launch:
    """Raises Unlaunchable."""
    if spec.sampler_profile_version != SAMPLER_PROFILE:
        raise Unlaunchable(f"sampler profile {spec.sampler_profile_version} is not known, only {SAMPLER_PROFILE}")
    env = {name: environment[name] for name in _INHERITED if name in environment}
    if spec.engine is Engine.MOCK:
        return _mock(spec, port=port, env=env)
    if spec.engine is not Engine.LLAMACPP:
        raise Unlaunchable(f"this node has no adapter for engine {spec.engine}")
    if engine is None or model is None:
        raise Unlaunchable("engine or model was not prepared")
    common = ("--host", HOST, "--port", str(port), "--model", model.local_path)
    context = str(spec.ctx * spec.slots)
    env |= _device_env(device)
    python = Path(engine.entry[-1]).name.startswith("python")
    whole = reads_whole(spec)
    batch = spec.ctx if whole else CPU_BATCH if device.cpu else GPU_BATCH
    if python:
        argv = [*engine.entry, str(Path(xllamacpp_child.__file__).absolute()), *common]
        argv += ["--ctx-size", context, "--parallel", str(spec.slots), "--slot-save-path", NO_SAVES]
        argv += ["--batch-size", str(batch)] if device.cpu or whole else []
        argv += [] if device.cpu else ["--gpu-layers", str(ALL_LAYERS)]
    else:
        argv = [*engine.entry, *common]
        argv += ["-c", context, "--parallel", str(spec.slots), "--no-webui", "--metrics", "--slots"]
        argv += ["--slot-save-path", NO_SAVES]
        argv += ["-fit", "off", "-cram", "0"]
        argv += ["--no-cont-batching"] if spec.slots == 1 else []
        argv += ["-b", str(batch), "-ub", str(batch)] if device.cpu or whole else []
        argv += ["-ngl", "0" if device.cpu else str(ALL_LAYERS)]
    return Launch(
        argv=(*argv, *_workload_flags(spec), *engine.flags),
        env={**env, **engine.env, **spec.provisioning.env},
        port=port,
        model_path=model.local_path,
        batch=batch,
        workdir=engine.workdir,
        gpu=not device.cpu,
    )


def reads_whole(spec: PoolSpec) -> bool:
    """Whether an input must fit into one batch: unless its vector is that of its last token, all of its tokens make it
    together."""
    return spec.serves != (Workload.COMPLETION,) and spec.pooling is not Pooling.LAST


def _workload_flags(spec: PoolSpec) -> list[str]:
    """llama-server's names, which the xllamacpp child knows, too."""
    if Workload.RERANK in spec.serves:
        return ["--reranking"]
    if Workload.EMBEDDING not in spec.serves:
        return []
    return ["--embeddings", *(("--pooling", spec.pooling.value) if spec.pooling else ())]


def _device_env(device: DeviceMask) -> dict[str, str]:
    if device.cpu:
        return {"CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE"}
    return {"CUDA_VISIBLE_DEVICES": ",".join(device.uuids)}


def _mock(spec: PoolSpec, *, port: int, env: Mapping[str, str]) -> Launch:
    argv = (
        *(sys.executable, "-m", "llorch_poold.mock_engine"),
        *("--host", HOST, "--port", str(port), "--model", spec.model),
        *("--ctx", str(spec.ctx), "--slots", str(spec.slots), *spec.provisioning.flags),
    )
    batch = int(spec.provisioning.env.get("LLORCH_MOCK_BATCH", MOCK_BATCH))
    return Launch(argv=argv, env={**env, **spec.provisioning.env}, port=port, model_path=spec.model, batch=batch)
