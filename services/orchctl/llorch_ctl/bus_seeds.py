"""Seeds of the bus's users: one folder per user with one file that its owner alone may read.

A seed that is there stays, and its user with it. A folder each, so that a container can be given its own and none of
the others.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

import nkeys

from llorch_ctl.core.bus_config import rendered
from llorch_ctl.exits import Exit, Problem
from llorch_shared.bus_users import User

CONFIG: Final = "users.conf"
SEED: Final = "seed.nk"
_SEED_BYTES: Final = 32


def write(folder: Path, users: tuple[User, ...], config: Path | None = None) -> list[str]:
    """Make what is missing, write the configuration anew; returns the names of new users. Raises Problem, OSError.

    `config`: where, if not among the seeds. It tells no secret."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh, keys = [], {}
    for user in users:
        path = folder / user.name / SEED
        if not path.exists():
            _write_seed(path)
            fresh.append(user.name)
        keys[user.name] = _public_key(path)
    _replace(config or folder / CONFIG, rendered(users, keys))
    return fresh


def present(folder: Path) -> set[str]:
    """Names of users that have a seed."""
    return {path.parent.name for path in folder.glob(f"*/{SEED}")}


def _write_seed(path: Path) -> None:
    """Whole or not at all, and never readable by others."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    half = path.with_name(f".{SEED}.new")
    half.unlink(missing_ok=True)
    with open(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(nkeys.encode_seed(os.urandom(_SEED_BYTES), nkeys.PREFIX_BYTE_USER) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    half.replace(path)


def _public_key(path: Path) -> str:
    seed = bytearray(path.read_bytes().strip())
    try:
        pair = nkeys.from_seed(seed)
        key = str(pair.public_key.decode())
        pair.wipe()
    except Exception as error:
        raise Problem(
            f"{path} is no seed of a user",
            fix="put the file back that was there, or remove it and give its owner the new one",
            exit_code=Exit.USAGE,
        ) from error
    return key


def _replace(path: Path, text: str) -> None:
    half = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        half.unlink()
    half.write_text(text, encoding="utf-8")
    half.replace(path)
