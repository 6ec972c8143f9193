"""An engine that the operator installed: found, and asked which version it is (mode external)."""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from llorch_provisioner.adapters import pip, process
from llorch_provisioner.core.failure import Failure
from llorch_shared.wire.task import Engine

VERSION_TIMEOUT_S: Final = 60.0
_LLAMACPP: Final = re.compile(r"version:\s*(.+)")
_HINTS: Final[dict[Engine, str]] = {
    Engine.LLAMACPP: (
        "install llama.cpp and put llama-server on PATH, name it in provisioning.command, "
        "or set provisioning.mode = 'package' with allow_package_installs = true"
    ),
    Engine.VLLM: "pip install vllm in an environment of its own and name its program in provisioning.command",
}


def find(engine: Engine, command: str, base: Mapping[str, str]) -> Path:
    """The program, by path or by name on PATH. Raises Failure with how to get it."""
    found = shutil.which(os.path.expanduser(command), path=base.get("PATH", os.defpath))
    if found is None:
        raise Failure(f"{command} is not on this node", _HINTS.get(engine, "install it, or name its path"))
    return Path(found).absolute()


async def version(engine: Engine, argv: tuple[str, ...], base: Mapping[str, str], env: Mapping[str, str]) -> str:
    """What `--version` says, as one short line. Raises Failure when the program does not run."""
    folder = Path(argv[0]).parent
    child_env = pip.child_environment(base, Path(tempfile.gettempdir()), configured=False) | dict(env)
    try:
        ended = await process.run([*argv, "--version"], env=child_env, cwd=folder, timeout_s=VERSION_TIMEOUT_S)
    except OSError as error:
        raise Failure(f"{argv[0]} cannot be started: {error.strerror}") from error
    if ended.code != 0:
        said = " / ".join(ended.lines[-3:])[-300:]
        raise Failure(f"{argv[0]} --version ended with code {ended.code}: {said}", "run it by hand to see why")
    return f"{Path(argv[0]).name} {_spoken(ended.lines)}"[:200].strip()


def _spoken(lines: tuple[str, ...]) -> str:
    for line in lines:
        if match := _LLAMACPP.search(line):
            return match[1].strip()
    return lines[0] if lines else "unknown"
