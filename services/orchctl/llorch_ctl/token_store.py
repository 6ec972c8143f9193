"""Adding to the token file: what is in it stays as it is, comments too, and a crash leaves the old file or the new one.

The gateway reads the file while this writes, so it is replaced as a whole, under a lock that one writer holds.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from llorch_shared import token_file
from llorch_shared.auth import digest
from llorch_shared.token_file import TokenEntry, TokenFileError
from llorch_shared.wire.task import Priority

TOKEN_BYTES: Final = 32
PREFIX: Final = "llorch_"
"""So that scanners for secrets, and people, know what they have found."""


def fresh() -> str:
    """A token nobody can guess: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def add(path: Path, token: str, **fields: Any) -> TokenEntry:
    """Append an entry for `token`, with the fields of a TokenEntry that are not None. Makes the file where there is
    none. Raises TokenFileError; then the file is as it was."""
    given = {key: value for key, value in fields.items() if value is not None}
    try:
        entry = msgspec.convert({**given, "sha256": digest(token).hex()}, TokenEntry)
    except msgspec.ValidationError as error:
        raise TokenFileError(str(error)) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        before = token_file.read_text(path) if path.exists() else ""
        after = f"{before.rstrip()}\n\n{_table(entry)}".lstrip("\n")
        token_file.parse(after)
        _replace(path, after)
    return entry


def _table(entry: TokenEntry) -> str:
    lines = ["[[tokens]]", *(f'{key} = "{getattr(entry, key)}"' for key in ("name", "sha256", "tenant"))]
    if set(entry.priorities) != set(Priority):
        permitted = ", ".join(f'"{priority}"' for priority in entry.priorities)
        lines.append(f"priorities = [{permitted}]")
    for key in ("requests_per_s", "burst", "streams_max"):
        if (value := getattr(entry, key)) is not None:
            lines.append(f"{key} = {value}")
    if entry.expires is not None:
        lines.append(f"expires = {entry.expires.isoformat()}")
    return "\n".join(lines) + "\n"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = path.with_name(f".{path.name}.lock")
    with open(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    """Through a file beside it that nobody else can ever read. A symbolic link goes on pointing where it points."""
    real = path.resolve()
    new = real.with_name(f".{real.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    new.replace(real)
    folder = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
