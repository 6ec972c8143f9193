"""The other spelling of a pool in a config file, where `engine` and `model` are tables (REQUIREMENTS section 3).

    [[pools]]                                 means   [[pools]]
    id = "small"                                      id = "small"
    engine.id = "llamacpp"                            engine = "llamacpp"
    engine.package.name = "xllamacpp"                 provisioning.package.name = "xllamacpp"
    engine.version = "1"                              provisioning.package.version = "1"
    model.ref = "hf:org/repo/file.gguf"               model = "hf:org/repo/file.gguf"

It is turned into the one spelling before anything is validated, so everything behind knows one. Pure.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Final

Path = tuple[str, ...]

_SPELLED: Final[Mapping[Path, Path]] = {
    tuple(alias.split(".")): tuple(key.split("."))
    for alias, key in {
        "engine.id": "engine",
        "engine.version": "provisioning.package.version",
        "engine.source.git.repo": "provisioning.source.repo",
        "engine.source.git.ref": "provisioning.source.ref",
        "engine.source.submodules": "provisioning.source.submodules",
        "engine.source.build.cmake_flags": "provisioning.source.build.cmake_flags",
        "engine.source.build.generator": "provisioning.source.build.generator",
        "engine.source.cache_dir": "provisioning.source.build.cache_dir",
        "engine.container.image": "provisioning.container.image",
        "engine.container.tag": "provisioning.container.tag",
        "engine.package.name": "provisioning.package.name",
        "engine.binary.url": "provisioning.binary.url",
        "engine.binary.checksum": "provisioning.binary.checksum",
        "model.ref": "model",
        "model.cache_dir": "provisioning.model.cache_dir",
        "model.checksum": "provisioning.model.checksum",
        "provisioning.model.ref": "model",
        "ports": "provisioning.ports",
        "env": "provisioning.env",
        "flags": "provisioning.flags",
    }.items()
}
_WAYS: Final = ("source", "container", "package", "binary")
"""An engine that is described in one of these ways is had in that way."""


class BadSpelling(ValueError):
    """A key of such a table is not known, or a thing is said twice; the message names the key."""


def in_one_spelling(pool: Mapping[str, Any]) -> dict[str, Any]:
    """The pool with every other spelling replaced. Raises BadSpelling."""
    plain: dict[str, Any] = {}
    said: list[tuple[Path, Path, Any]] = []
    for path, value in _leaves(pool, ()):
        if path in _SPELLED:
            said.append((path, _SPELLED[path], value))
        else:
            if path[0] in ("engine", "model") and len(path) > 1:
                raise BadSpelling(f"unknown key `{'.'.join(path)}`{_nearest(path)}")
            _put(plain, path, value, path)
    for path, key, value in said:
        _put(plain, key, value, path)
        if path[0] == "engine" and path[1] in _WAYS:
            plain["provisioning"].setdefault("mode", path[1])
    return plain


def _leaves(table: Mapping[str, Any], above: Path) -> Iterator[tuple[Path, Any]]:
    """Values by their paths; a table that is a value itself, as `env`, or holds no other spelling, stays whole."""
    for name, value in table.items():
        path = (*above, name)
        if isinstance(value, Mapping) and path not in _SPELLED and _leads_on(path):
            yield from _leaves(value, path)
        else:
            yield path, value


def _leads_on(path: Path) -> bool:
    return any(alias[: len(path)] == path for alias in _SPELLED)


def _put(target: dict[str, Any], key: Path, value: Any, said: Path) -> None:
    for name in key[:-1]:
        section = target.setdefault(name, {})
        if not isinstance(section, dict):
            raise BadSpelling(f"`{'.'.join(said)}` and `{name}` say the same thing")
        target[name] = target = dict(section)
    if target.setdefault(key[-1], value) != value:
        raise BadSpelling(f"`{'.'.join(said)}` says otherwise than `{'.'.join(key)}`")


def _nearest(path: Path) -> str:
    names = [".".join(alias) for alias in _SPELLED if alias[0] == path[0]]
    nearest = difflib.get_close_matches(".".join(path), names, n=1)
    return f" (did you mean `{nearest[0]}`?)" if nearest else ""
