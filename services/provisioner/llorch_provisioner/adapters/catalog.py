"""What this node has: `engines.json` and `models.json`, written whole, durably, at once (ORCH-3440, 3262, 3263).

An index of another schema version is refused, not guessed at. The index says where things are and what they were when
they were verified; whether they still are is looked at when they are asked for.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from llorch_provisioner.adapters import files
from llorch_provisioner.core.failure import Failure
from llorch_shared.wire.provision import PreparedEngine, ResolvedModel

INDEX_VERSION: Final = 1


class EngineEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One installed engine (ORCH-3441)."""

    id: str
    engine: str
    version: str
    created_ms: int
    build_ref: str = ""
    """Where it came from, for example `pypi:xllamacpp==2026.10.11549`."""
    digest: str = ""
    build_flags: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    """Paths that make it up."""
    python: str = ""
    """Interpreter and platform that the environment was made for."""
    prepared: PreparedEngine


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One model on this node's disk, as it was when it was verified."""

    id: str
    model_ref: str
    local_path: str
    size_bytes: int
    mtime_ns: int
    digest: str
    created_ms: int
    verified: bool = False
    state: str = "Active"
    source: str = ""
    """For example the wheel it was taken from, with its digest (ORCH-3060)."""

    def resolved(self, model_ref: str, *, verified: bool) -> ResolvedModel:
        return ResolvedModel(
            model_ref=model_ref,
            model_id=self.id,
            local_path=self.local_path,
            size_bytes=self.size_bytes,
            digest=self.digest,
            verified=verified,
        )


class _Header(msgspec.Struct, frozen=True):
    version: int


class _Engines(msgspec.Struct, frozen=True):
    entries: tuple[EngineEntry, ...]


class _Models(msgspec.Struct, frozen=True):
    entries: tuple[ModelEntry, ...]


EntryT = TypeVar("EntryT", EngineEntry, ModelEntry)


class Index(Generic[EntryT]):
    """One index file. Used from one thread; blocks for a small write."""

    def __init__(self, path: Path, decode: Callable[[bytes], tuple[EntryT, ...]]) -> None:
        self._path: Final = path
        self._decode: Callable[[bytes], tuple[EntryT, ...]] = decode
        self._entries: dict[tuple[str, str], EntryT] = {}
        self._read()

    def all(self) -> tuple[EntryT, ...]:
        return tuple(self._entries.values())

    def find(self, wanted: Callable[[EntryT], bool]) -> EntryT | None:
        """The newest entry that is wanted."""
        found = [entry for entry in self._entries.values() if wanted(entry)]
        return max(found, key=lambda entry: entry.created_ms, default=None)

    def put(self, entry: EntryT) -> None:
        """Add or replace; durable when it returns."""
        self._entries[_key(entry)] = entry
        self._write()

    def remove(self, entry: EntryT) -> None:
        """Forget an entry; not having it is fine."""
        if self._entries.pop(_key(entry), None) is not None:
            self._write()

    def _read(self) -> None:
        if not self._path.exists():
            return
        remedy = f"move {self._path} away; what is missing then is fetched again"
        try:
            data = self._path.read_bytes()
            known = msgspec.json.decode(data, type=_Header).version
            if known != INDEX_VERSION:
                raise Failure(f"{self._path} has schema version {known}, this release knows {INDEX_VERSION}", remedy)
            entries = self._decode(data)
        except msgspec.DecodeError as error:
            raise Failure(f"{self._path} is damaged: {error}", remedy) from error
        except OSError as error:
            raise Failure(f"cannot read {self._path}: {error.strerror}") from error
        self._entries = {_key(entry): entry for entry in entries}

    def _write(self) -> None:
        body = {"version": INDEX_VERSION, "entries": list(self._entries.values())}
        files.write_file(self._path, msgspec.json.format(msgspec.json.encode(body), indent=1))


def engine_index(path: Path) -> Index[EngineEntry]:
    """The engines of this node. Raises Failure when the file is of another version or damaged."""
    return Index(path, lambda data: msgspec.json.decode(data, type=_Engines).entries)


def model_index(path: Path) -> Index[ModelEntry]:
    """The models of this node. Raises Failure when the file is of another version or damaged."""
    return Index(path, lambda data: msgspec.json.decode(data, type=_Models).entries)


def _key(entry: EngineEntry | ModelEntry) -> tuple[str, str]:
    return (entry.id, entry.local_path if isinstance(entry, ModelEntry) else "")
