"""Settings as a TOML file: the effective ones that children are given, and the example for people."""

import os
from pathlib import Path
from typing import Any, Final

import msgspec
import tomli_w

from llorch_shared.embedded_defaults import DEFAULT_ENGINE, DEFAULT_MODEL_REF
from llorch_shared.settings import Settings
from llorch_shared.settings_loading import ENVIRONMENT
from llorch_shared.wire.provisioning_spec import ProvisioningSpec
from llorch_shared.wire.spec import PoolSpec
from llorch_shared.wire.task import Engine

EMBEDDED_CTX: Final = 2048
"""The built-in model was trained for 2048 tokens of context."""

EXAMPLE: Final = f"""\
# llama-orch: one file for every service. `orchctl config show` prints what is in effect, with defaults.
# Precedence: command line, environment, this file, default. Name it with --config or LLORCH_CONFIG.

profile = "gpu"            # "ci" allows engines on the CPU, marked device: "cpu" everywhere; never a fallback
# state_dir = "/var/lib/llama-orch"

[nats]
url = "nats://127.0.0.1:4222"   # a loopback address starts an embedded server; any other is used as it is

[gateway]
addr = "127.0.0.1:8080"         # beyond loopback it needs AUTH_TOKEN or AUTH_TOKEN_FILE in the environment

[poold]
node_id = "node-1"

# One pool: replicas that serve one model with one engine. Tasks name `engine` and `model`.
[[pools]]
id = "small"
engine = "llamacpp"
model = "{DEFAULT_MODEL_REF}"
devices = [0]              # GPU indices of one replica; "all", or "cpu" with profile "ci"
replicas = 1
slots = 2                  # tasks one replica decodes at once
ctx = {EMBEDDED_CTX}

[pools.queue]
capacity = 256             # waiting tasks per priority; one more is refused with 429

# How slots are shared: `orchctl pool show POOL --all` lists every key, contracts/config-schema/Config.json the reasons.
# [[pools.admission.fairness.tenants]]
# id = "team-a"
# weight = 3               # while both wait, three times the slot time of a tenant with weight 1

[pools.provisioning]
mode = "external"          # your own llama-server; "package" installs one with pip
command = ["llama-server"]

[pools.provisioning.model]
checksum = "{DEFAULT_ENGINE.model.checksum}"
"""


def embedded_pool(pool_id: str, *, command: tuple[str, ...] = (), slots: int = 2) -> PoolSpec:
    """A pool of the small model that the package index carries. With `command`, that engine runs it on the GPUs;
    without, the built-in one does on the CPU."""
    if command:
        provisioning = ProvisioningSpec(command=command, model=DEFAULT_ENGINE.model)
        return PoolSpec(
            id=pool_id,
            engine=Engine.LLAMACPP,
            model=DEFAULT_MODEL_REF,
            devices=(0,),
            slots=slots,
            ctx=EMBEDDED_CTX,
            provisioning=provisioning,
        )
    return PoolSpec(
        id=pool_id,
        engine=Engine.LLAMACPP,
        model=DEFAULT_MODEL_REF,
        devices="cpu",
        slots=slots,
        ctx=EMBEDDED_CTX,
        provisioning=DEFAULT_ENGINE,
    )


def render(settings: Settings) -> str:
    """All keys, defaults included. The environment of an engine is in it and may hold secrets."""
    plain: dict[str, Any] = msgspec.to_builtins(settings)
    return tomli_w.dumps(_without_none(plain))


def write(settings: Settings, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(settings), encoding="utf-8")


def child_environment(path: Path) -> dict[str, str]:
    """The environment of a service: ours, but every setting comes from the effective config at `path`."""
    inherited = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    return {**inherited, "LLORCH_CONFIG": str(path), "PYTHONUNBUFFERED": "1"}


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value
