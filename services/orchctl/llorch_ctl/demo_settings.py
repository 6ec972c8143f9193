"""What the demo runs on: free ports, a state folder of its own, and the GPU where there is one with an engine for it.

Without a GPU and a llama-server for it the built-in engine runs on the CPU, in the `ci` profile, marked as such.
"""

import os
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console

from llorch_ctl import config_file, gpu, ports
from llorch_ctl.gpu_engine import gpu_engine_command
from llorch_shared.settings import Settings
from llorch_shared.settings_loading import load

POOL: Final = "demo"
_KEPT_ENVIRONMENT: Final = ("LLORCH_OFFLINE", "LLORCH_CACHE_DIR", "LLORCH_LOG_LEVEL")
"""Everything else of the environment would make the demo another one."""


def settings_for(state_dir: Path, say: Console) -> Settings:
    """The demo's settings: free ports, and the GPU where there is one with an engine for it."""
    survey, command = gpu.survey(), gpu_engine_command()
    if survey.problem:
        say.print(f"device     [yellow]cpu[/]: {survey.problem}. Marked `device: cpu` everywhere (profile ci)")
    elif not command:
        say.print(
            f"device     [yellow]cpu[/]: {survey.names[0]} is there, but the built-in engine computes on the CPU only; "
            "with a llama-server for your GPU on PATH the demo uses that"
        )
    else:
        say.print(f"device     [green]{survey.names[0]}[/], engine {command[0]}")
    on_gpu = not survey.problem and bool(command)
    flags: dict[str, Any] = {
        "profile": "gpu" if on_gpu else "ci",
        "state_dir": str(state_dir),
        "nats": {"url": f"nats://127.0.0.1:{_port(4222, 'bus', say)}"},
        "gateway": {"addr": f"127.0.0.1:{_port(8080, 'HTTP', say)}"},
    }
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    pool = config_file.embedded_pool(POOL, command=command if on_gpu else ())
    return msgspec.structs.replace(load(environment, flags=flags), pools=(pool,))


def _port(usual: int, what: str, say: Console) -> int:
    if ports.is_free("127.0.0.1", usual):
        return usual
    chosen = ports.any_free()
    say.print(f"port       {usual} is in use by {ports.owner(usual)}; {what} listens on {chosen}")
    return chosen
