"""The token file (`gateway.tokens_file`): which bearer tokens are good, whose work they bring and what they permit.

It holds digests and never a token. The gateway reads it again when it changes; `orchctl token new` adds to it. Nobody
but its owner may read or write it: who can add a line lets himself in.
"""

import math
import os
import stat
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from llorch_shared.wire.task import Name, Priority

TOKENS_MAX: Final = 512
"""Every digest is compared at each request, a third of a microsecond each."""
FILE_BYTES_MAX: Final = 1024 * 1024
OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
Signature = tuple[int, int, int, int]


class TokenFileError(ValueError):
    """The token file cannot be used as it is; the message says why and what to do, and shows no digest."""


class TokenEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One `[[tokens]]` table."""

    name: Name
    """For people, and what its limits are counted under."""
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
    """Digest of the token, lower-case hex."""
    tenant: Name
    """Whose tasks its tasks are, and all it may see. Its weight and quotas are the tenant's (`/v1/tenants`), or what a
    pool says of it."""
    priorities: Annotated[tuple[Priority, ...], Meta(min_length=1)] = tuple(Priority)
    requests_per_s: Annotated[float, Meta(gt=0)] | None = None
    """Requests per second in the long run, of each gateway process; without it there is no limit."""
    burst: Annotated[int, Meta(ge=1)] | None = None
    """Requests at once after a pause; without it as many as one second permits."""
    streams_max: Annotated[int, Meta(ge=1)] | None = None
    """Streams open at once, at each gateway process."""
    expires: Annotated[datetime, Meta(tz=True)] | None = None
    """From then on it is refused; with its offset, for example 2027-01-31T00:00:00Z."""

    def burst_of(self) -> int:
        if self.burst is not None:
            return self.burst
        return max(1, math.ceil(self.requests_per_s or 1))


class TokenFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tokens: tuple[TokenEntry, ...] = ()


def parse(text: str) -> tuple[TokenEntry, ...]:
    """Raises TokenFileError."""
    try:
        entries = msgspec.convert(tomllib.loads(text), TokenFile).tokens
    except tomllib.TOMLDecodeError as error:
        raise TokenFileError(f"it is not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise TokenFileError(str(error)) from error
    if len(entries) > TOKENS_MAX:
        raise TokenFileError(f"it has {len(entries)} tokens; {TOKENS_MAX} is the most")
    names: set[str] = set()
    digests: dict[str, str] = {}
    for entry in entries:
        if entry.name in names:
            raise TokenFileError(f"two tokens have the name {entry.name}")
        names.add(entry.name)
        if entry.sha256 in digests:
            raise TokenFileError(f"{entry.name} and {digests[entry.sha256]} are the same token")
        digests[entry.sha256] = entry.name
    return entries


def read_text(path: Path) -> str:
    """The file as it is, if it is its owner's alone. Raises TokenFileError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            _check(path, os.fstat(descriptor))
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise TokenFileError(f"the token file {path} cannot be read: {error.strerror}") from error
    if len(data) > FILE_BYTES_MAX:
        raise TokenFileError(f"the token file {path} is over {FILE_BYTES_MAX} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise TokenFileError(f"the token file {path} is not UTF-8") from error


def read(path: Path) -> tuple[TokenEntry, ...]:
    """Raises TokenFileError."""
    text = read_text(path)
    try:
        return parse(text)
    except TokenFileError as error:
        raise TokenFileError(f"the token file {path} cannot be used: {error}") from error


def signature(path: Path) -> Signature | None:
    """Differs whenever the file was written, replaced or given other permissions; None when it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns, found.st_size, found.st_mode


def _check(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise TokenFileError(f"the token file {path} is not a regular file")
    if found.st_mode & OTHERS:
        mode = stat.S_IMODE(found.st_mode)
        raise TokenFileError(f"the token file {path} is open to others (mode {mode:04o}): chmod 600 {path}")
    if found.st_uid not in (0, os.geteuid()):
        raise TokenFileError(f"the token file {path} belongs to another user: chown it to the gateway's")
