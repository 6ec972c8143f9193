"""A pool's specification as dotted keys: `queue.capacity`, `admission.fairness.tenants.team-a.weight`.

The keys come from the type itself, so whatever a pool can be told has one. Entries of a list that have a name (`id` of
tenants, `name` of priorities) are reached by it. Pure.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import inspect

from llorch_shared.pool_policy import CLASSES, class_capacity, class_weight
from llorch_shared.wire.policy import PrioritySpec
from llorch_shared.wire.spec import PoolSpec

HIDDEN: Final = "(hidden)"
SECRET_PREFIX: Final = "provisioning.env."  # noqa: S105  (a key, not a secret)
"""Environment of an engine: the only values of a pool that may be secrets."""
FIXED: Final = frozenset({"id"})
_IDENTITY: Final = ("id", "engine", "model")
_WORDS: Final[dict[str, Any]] = {"null": None, "true": True, "false": False}

_ABSENT: Final = frozenset(
    field.encode_name for field in msgspec.structs.fields(PoolSpec) if field.default is msgspec.UNSET
)
"""Keys that are left out where they say nothing, which null is as good as."""

Plain = dict[str, Any]


class BadAssignment(ValueError):
    """What was given is not KEY=VALUE, names no key, or is no value of it."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One key before and after, as JSON; null where it does not exist. Values that may be secrets are hidden."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"


def assigned(pool: PoolSpec, assignments: Sequence[str]) -> PoolSpec:
    """`pool` with every KEY=VALUE applied at once. Raises BadAssignment."""
    plain: Plain = msgspec.to_builtins(pool)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise BadAssignment(f"{assignment!r} is not KEY=VALUE, for example queue.capacity=64")
        if key in FIXED:
            raise BadAssignment(f"{key!r} cannot change: it names the pool")
        value = _parsed(text)
        if value is None and key in _ABSENT:
            plain.pop(key, None)
        else:
            _put(plain, key, value)
    try:
        return msgspec.convert(plain, PoolSpec, strict=False)
    except msgspec.ValidationError as error:
        raise BadAssignment(str(error).replace("`$.", "`")) from error


def without_secrets(pool: PoolSpec) -> PoolSpec:
    """For people to read: values that may be secrets are hidden."""
    env = dict.fromkeys(pool.provisioning.env, HIDDEN)
    return msgspec.structs.replace(pool, provisioning=msgspec.structs.replace(pool.provisioning, env=env))


class Row(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    value: Any
    was_set: bool
    """By an operator; else it is the default."""


def rows(pool: PoolSpec, *, with_defaults: bool) -> list[Row]:
    """What was set; with defaults every key with what is in effect, those of both classes and of sections that are off
    among them. Values that may be secrets are hidden."""
    unset = PoolSpec(id=pool.id, engine=pool.engine, model=pool.model)
    was_set = {*_IDENTITY, *(change.key for change in changes(unset, pool))}
    found = dict(_flat(msgspec.to_builtins(without_secrets(pool))))
    for priority in CLASSES:
        key = f"admission.priorities.{priority}"
        in_effect = {"weight": class_weight(pool, priority), "queue_capacity": class_capacity(pool, priority)}
        for name in PrioritySpec.__struct_fields__[1:]:
            if found.get(f"{key}.{name}") is None:
                found[f"{key}.{name}"] = in_effect.get(name)
    found.setdefault("workloads", pool.serves)
    for key in known_keys():
        if "<name>" not in key:
            found.setdefault(key, None)
    sections = {key[:at] for key in found for at, letter in enumerate(key) if letter == "."}
    return [
        Row(key=key, value=value, was_set=key in was_set)
        for key, value in sorted(found.items(), key=lambda item: (item[0] not in _IDENTITY, item[0]))
        if key in was_set or (with_defaults and key not in sections)
    ]


def changes(before: PoolSpec | None, after: PoolSpec | None) -> list[Change]:
    """What differs, key by key; None stands for a pool that is not there."""
    old, new = _filled(before), _filled(after)
    return [
        Change(key=key, old=_masked(key, old.get(key)), new=_masked(key, new.get(key)))
        for key in (*old, *(key for key in new if key not in old))
        if old.get(key) != new.get(key)
    ]


def _filled(pool: PoolSpec | None) -> Plain:
    """An empty list or section is as good as none."""
    flat = _flat(msgspec.to_builtins(pool)) if pool is not None else ()
    return {key: value for key, value in flat if value not in ((), {})}


def known_keys() -> list[str]:
    """Every key, with `<name>` for what the operator names."""
    return [key for key in _keys(inspect.type_info(PoolSpec)) if key not in FIXED]


def _put(plain: Plain, key: str, value: Any) -> None:
    """Set one key in the plain form. Raises BadAssignment for a key that the type does not have."""
    target: Any = plain
    at: inspect.Type = inspect.type_info(PoolSpec)
    parts = key.split(".")
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        at = _struct_in(at)
        if isinstance(at, inspect.VarTupleType) and isinstance(at.item_type, inspect.StructType):
            name = _name_field(at.item_type)
            held = next((entry for entry in target if entry[name] == part), None)
            if last:
                if value is not None:
                    raise BadAssignment(f"{key!r} is an entry: set one of its keys, or null to remove it")
                target[:] = [entry for entry in target if entry is not held]
                return
            if held is None:
                held = {name: part}
                target.append(held)
            target, at = held, at.item_type
            continue
        at = _below(at, part, key)
        if last:
            target[part] = value
            return
        if not isinstance(target.get(part), dict | list | tuple):
            target[part] = {}
        if isinstance(target[part], tuple):
            target[part] = list(target[part])
        target = target[part]


def _below(at: inspect.Type, part: str, key: str) -> inspect.Type:
    if isinstance(at, inspect.StructType):
        for field in at.fields:
            if field.encode_name == part:
                return field.type
    elif isinstance(at, inspect.DictType) and part:
        return at.value_type
    raise BadAssignment(f"a pool has no key {key!r}{_nearest(key)}")


def _nearest(key: str) -> str:
    known = known_keys()
    by_last: dict[str, list[str]] = {}
    for each in known:
        by_last.setdefault(each.rpartition(".")[2], []).append(each)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    close = close or [
        each for last in difflib.get_close_matches(key, by_last, n=1, cutoff=0.75) for each in by_last[last][:1]
    ]
    return f"; did you mean {close[0]!r}?" if close else ""


def _keys(at: inspect.Type, prefix: str = "") -> Iterator[str]:
    at = _struct_in(at)
    if isinstance(at, inspect.StructType):
        for field in at.fields:
            yield from _keys(field.type, f"{prefix}.{field.encode_name}".lstrip("."))
    elif isinstance(at, inspect.VarTupleType) and isinstance(at.item_type, inspect.StructType):
        named = _name_field(at.item_type)
        yield from (key for key in _keys(at.item_type, f"{prefix}.<name>") if not key.endswith(f".<name>.{named}"))
    elif isinstance(at, inspect.DictType):
        yield f"{prefix}.<name>"
    else:
        yield prefix


def _struct_in(at: inspect.Type) -> inspect.Type:
    """The section an optional key holds."""
    if isinstance(at, inspect.UnionType):
        return next((each for each in at.types if isinstance(each, inspect.StructType)), at)
    return at


def _name_field(item: inspect.StructType) -> str:
    return item.fields[0].encode_name if item.fields[0].encode_name in ("id", "name") else "id"


def _parsed(text: str) -> Any:
    """JSON for lists and sections, else the word itself: the key's type makes a number of it."""
    if text[:1] in ("[", "{", '"'):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise BadAssignment(f"{text!r} is not JSON: {error}") from error
    return _WORDS.get(text, text)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from _flat(below, f"{prefix}.{key}".lstrip("."))
    elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        for entry in value:
            name = "id" if "id" in entry else "name"
            rest = {key: below for key, below in entry.items() if key != name}
            yield from _flat(rest, f"{prefix}.{entry[name]}")
    else:
        yield prefix, value


def _masked(key: str, value: Any) -> Any:
    return HIDDEN if value is not None and key.startswith(SECRET_PREFIX) else value


def _shown(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()
