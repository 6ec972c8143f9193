"""An engine's own Python environment: made in staging, proven, then renamed into place.

It has no pip of its own, needs none of this process's packages and is used only through its interpreter: that survives
the rename, while console scripts inside still name the staging path. The receipt in it tells what it is, so that an
environment whose registration was cut short is found again without fetching anything.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from llorch_provisioner.adapters import pip, process
from llorch_provisioner.core.failure import Failure
from llorch_provisioner.core.refs import Package

RECEIPT: Final = "llorch-receipt.json"
MAKE_TIMEOUT_S: Final = 120.0
INSTALL_TIMEOUT_S: Final = 900.0
PROOF_TIMEOUT_S: Final = 60.0


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """Written last into a finished environment."""

    package: str
    version: str
    digest: str
    """sha256 of the wheel, hex."""
    python: str


_RECEIPT: Final = msgspec.json.Decoder(Receipt)


def python_tag() -> str:
    """What an environment depends on besides its wheel: this Python and platform."""
    return f"{sys.implementation.cache_tag}-{sys.platform}-{os.uname().machine}".lower()


def interpreter(environment: Path) -> Path:
    return environment / "bin" / "python"


async def make(environment: Path, wheel: Path, package: Package, digest: str, *, base: Mapping[str, str]) -> None:
    """Make `environment` with that one wheel in it. Raises Failure; what it leaves then is only good for the sweep."""
    env = pip.child_environment(base, environment.parent, configured=False)
    made = await process.run(
        [sys.executable, "-P", "-m", "venv", "--without-pip", str(environment)],
        env=env,
        cwd=environment.parent,
        timeout_s=MAKE_TIMEOUT_S,
    )
    if made.code != 0:
        raise Failure(
            f"python -m venv failed: {' / '.join(made.lines[-3:])[-400:]}",
            "install the venv module of this Python (Debian: python3-venv)",
        )
    await pip.install(wheel, interpreter(environment), base=base, timeout_s=INSTALL_TIMEOUT_S)
    await _prove(environment, package, env)
    receipt = Receipt(package=package.name, version=package.version, digest=digest, python=python_tag())
    (environment / RECEIPT).write_bytes(msgspec.json.encode(receipt))


def receipt(environment: Path) -> Receipt | None:
    """What a finished environment is; None when there is none, it is not finished, or its Python is gone."""
    try:
        found = _RECEIPT.decode((environment / RECEIPT).read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
    return found if os.access(interpreter(environment), os.X_OK) else None


async def _prove(environment: Path, package: Package, env: Mapping[str, str]) -> None:
    """The environment's interpreter runs and finds the distribution."""
    proof = await process.run(
        [
            *(str(interpreter(environment)), "-I", "-c"),
            "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))",
            package.name,
        ],
        env=env,
        cwd=environment.parent,
        timeout_s=PROOF_TIMEOUT_S,
    )
    if proof.code != 0 or not proof.lines:
        raise Failure(
            f"the new environment does not find {package.name}: {' / '.join(proof.lines[-2:])[-300:]}",
            "the wheel does not fit this Python; name another version",
        )
