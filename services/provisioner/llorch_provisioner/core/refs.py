"""Model references: `file:/abs/path`, a relative path, `pypi:<package>==<version>/<path in the wheel>` (ORCH-3700).

A reference has one stable identity however it is written (ORCH-3704). A package without a version is accepted only when
this release pins one: the same reference must mean the same bytes tomorrow.
"""

import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Final

import msgspec

from llorch_provisioner.core import paths
from llorch_provisioner.core.failure import Failure

SCHEMES: Final = ("file:", "pypi:")

_SCHEME: Final = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")
_PACKAGE: Final = re.compile(r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?$(?!\n)")
_VERSION: Final = re.compile(r"^[0-9][A-Za-z0-9.+!_-]{0,63}$(?!\n)")


class Package(msgspec.Struct, frozen=True):
    """One release of one distribution; `name` is normalised (lower case, dashes)."""

    name: str
    version: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


class FileRef(msgspec.Struct, frozen=True):
    """A file that is already on this machine."""

    path: str
    """Absolute, or relative to the folder of models."""


class WheelRef(msgspec.Struct, frozen=True):
    """A file inside a wheel."""

    package: Package
    member: str

    @property
    def model_id(self) -> str:
        return f"pypi:{self.package.requirement}/{self.member}"


ModelRef = FileRef | WheelRef


def parse_model_ref(text: str, pinned: Collection[tuple[str, str]] = ()) -> ModelRef:
    """Understand a model reference. `pinned` are the (name, version) pairs that may stand in for a missing version.
    Raises Failure."""
    if not text or text != text.strip() or len(text) > paths.PATH_LENGTH_MAX:
        raise Failure(f"the model reference {text[:80]!r} is empty, padded or too long")
    match = _SCHEME.match(text)
    if match is None:
        return _file(text)
    scheme, rest = match[1].lower(), text[match.end() :]
    if scheme == "file":
        return _file(rest)
    if scheme == "pypi":
        return _wheel(rest, pinned)
    raise Failure(
        f"models cannot be taken from {scheme}: here",
        f"supported are {', '.join(SCHEMES)} and a path; download the file and name it as file:/path/to/model.gguf",
    )


def package(name: str, version: str) -> Package:
    """A validated, normalised release. Raises Failure."""
    if not _PACKAGE.match(name):
        raise Failure(f"{name[:80]!r} is not the name of a package")
    if not version:
        raise Failure(f"package {name} has no version", f"name one, for example {name}==1.2.3")
    if not _VERSION.match(version):
        raise Failure(f"{version[:80]!r} is not an exact version of {name}", "name one release, without ranges or '*'")
    return Package(normalised(name), version)


def normalised(name: str) -> str:
    """Two spellings of one distribution are one name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _file(text: str) -> FileRef:
    if text.startswith("//"):
        if not text.startswith("///"):
            raise Failure(f"file:{text} names another machine", "use file:/absolute/path")
        text = text[2:]
    if text.startswith("/"):
        return FileRef(str(paths.absolute(text, "model path")))
    return FileRef(str(paths.relative(text, "model path")))


def _wheel(text: str, pinned: Collection[tuple[str, str]]) -> WheelRef:
    requirement, slash, member = text.partition("/")
    if not slash or not member:
        raise Failure(
            f"pypi:{text} names no file in the wheel", "write pypi:<package>==<version>/<path of the file in the wheel>"
        )
    name, equals, version = requirement.partition("==")
    if not equals:
        known = [release for pin, release in pinned if pin == normalised(name)]
        version = known[0] if len(known) == 1 else ""
    return WheelRef(package(name, version), str(_member(member)))


def _member(text: str) -> PurePosixPath:
    member = paths.relative(text, "path in the wheel")
    if member.suffix.lower() in (".py", ".so", ".dylib", ".pyd"):
        raise Failure(f"{text} is code, not a model")
    return member
