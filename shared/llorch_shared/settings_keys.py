"""Keys of a config file that nobody knows, each with the known name that was probably meant. Pure."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from msgspec import inspect


class UnknownKey(NamedTuple):
    """`path` leads to the key from the top: names, and numbers in lists."""

    path: tuple[str | int, ...]
    nearest: str
    """Known name of the same section, or empty when none is like it."""

    def __str__(self) -> str:
        meant = f" (did you mean {self.nearest!r}?)" if self.nearest else ""
        return f"`{dotted(self.path)}`{meant}"


def dotted(path: tuple[str | int, ...]) -> str:
    """`$.pools[0].queue`, as validation errors write it."""
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def unknown_keys(raw: Mapping[str, Any], kind: type[Any]) -> tuple[UnknownKey, ...]:
    """Every key in `raw`, at whatever depth, that the Struct `kind` has no field for, in the order of the file."""
    return tuple(_unknown(raw, inspect.type_info(kind), ()))


def without(raw: dict[str, Any], unknown: tuple[UnknownKey, ...]) -> dict[str, Any]:
    """`raw` with those keys taken out of it."""
    for key in unknown:
        target: Any = raw
        for part in key.path[:-1]:
            target = target[part]
        del target[key.path[-1]]
    return raw


def _unknown(value: Any, kind: inspect.Type, path: tuple[str | int, ...]) -> Iterator[UnknownKey]:
    if isinstance(kind, inspect.UnionType):
        # A union holds at most one table and at most one list; whichever fits the value describes it.
        for one in kind.types:
            yield from _unknown(value, one, path)
    elif isinstance(kind, inspect.StructType) and isinstance(value, Mapping):
        fields = {field.encode_name: field.type for field in kind.fields}
        for name, item in value.items():
            if name in fields:
                yield from _unknown(item, fields[name], (*path, name))
            else:
                nearest = difflib.get_close_matches(str(name), fields, n=1)
                yield UnknownKey((*path, name), nearest[0] if nearest else "")
    elif isinstance(kind, inspect.VarTupleType | inspect.ListType) and isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _unknown(item, kind.item_type, (*path, number))
    elif isinstance(kind, inspect.DictType) and isinstance(value, Mapping):
        for name, item in value.items():
            yield from _unknown(item, kind.value_type, (*path, name))
