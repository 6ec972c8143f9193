"""Wire types as JSON Schema 2020-12, one file each, and the settings as one draft-07 schema.

msgspec knows the types; the sentence under a field in the source becomes its description here. Enumerations keep the
order of the code, which msgspec would sort.
"""

import ast
import enum
import functools
import inspect
import itertools
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final

import msgspec

from llorch_shared import errors
from llorch_shared.http_api import process
from llorch_shared.settings import Settings
from llorch_shared.wire import (
    anthropic,
    artifacts,
    audit,
    catalog,
    desired,
    frames,
    objects,
    openai,
    openai_responses,
    openai_results,
    provision,
    registry,
    run,
    session,
    spec,
    task,
)

Schema = dict[str, Any]

WIRE_MODULES: Final[tuple[ModuleType, ...]] = (
    task,
    run,
    frames,
    registry,
    spec,
    desired,
    provision,
    audit,
    anthropic,
    openai,
    openai_responses,
    openai_results,
    objects,
    artifacts,
    session,
    catalog,
    process,
)


def wire_types() -> dict[str, type[msgspec.Struct]]:
    """Every Struct that crosses a boundary, by name."""
    found: dict[str, type[msgspec.Struct]] = {"ErrorBody": errors.ErrorBody}
    for module in WIRE_MODULES:
        for name, value in vars(module).items():
            if _is_struct(value) and value.__module__ == module.__name__:
                found[name] = value
    return dict(sorted(found.items()))


def files() -> dict[str, Schema]:
    """File stem → schema; types refer to each other by file."""
    _, components = described(wire_types().values(), "{name}.json")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {name: head | _without_discriminator(components[name]) for name in sorted(components)}


def config() -> Schema:
    """The config file, keys as in TOML."""
    _, components = described([Settings], "#/definitions/{name}")
    top = components.pop("Settings")
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **top,
        "title": "Config",
        "definitions": {name: _without_discriminator(components[name]) for name in sorted(components)},
    }


def described(types: Iterable[Any], ref_template: str) -> tuple[tuple[Schema, ...], dict[str, Schema]]:
    """(schema of each type, components by name), with what the source says about each field."""
    listed = list(types)
    made, components = msgspec.json.schema_components(listed, ref_template=ref_template)
    named = _named_types(listed)
    return tuple(_plain(schema) for schema in made), {
        name: _describe(_plain(schema), named.get(name)) for name, schema in components.items()
    }


def _named_types(types: Iterable[Any]) -> dict[str, Any]:
    """Structs and enumerations reachable from `types`, by name."""
    found: dict[str, Any] = {}

    def visit(node: Any) -> None:
        if isinstance(node, msgspec.inspect.StructType | msgspec.inspect.EnumType):
            if node.cls.__name__ in found:
                return
            found[node.cls.__name__] = node.cls
        for value in _children(node):
            visit(value)

    for kind in types:
        visit(msgspec.inspect.type_info(kind))
    return found


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field):
        for name in node.__struct_fields__:
            value = getattr(node, name)
            if isinstance(value, tuple):
                yield from value
            elif isinstance(value, msgspec.inspect.Type | msgspec.inspect.Field):
                yield value


def _describe(schema: Schema, kind: Any) -> Schema:
    if kind is None:
        return schema
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        schema["enum"] = [member.value for member in kind]
        return schema
    notes = _field_notes(kind)
    for name, field in schema.get("properties", {}).items():
        if name in notes:
            field["description"] = notes[name]
    return schema


@functools.cache
def _field_notes(kind: type) -> dict[str, str]:
    """The string under each field in the body of the class, or of one it inherits from."""
    notes: dict[str, str] = {}
    for parent in reversed(kind.__bases__):
        if issubclass(parent, msgspec.Struct) and parent is not msgspec.Struct:
            notes |= _field_notes(parent)
    classes = ast.parse(inspect.getsource(sys.modules[kind.__module__])).body
    body = next((node.body for node in classes if isinstance(node, ast.ClassDef) and node.name == kind.__name__), [])
    for node, after in itertools.pairwise(body):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            notes[node.target.id] = _one_line(after.value.value)
    return notes


def _plain(schema: Any) -> Any:
    """Typed enumerations, one-line descriptions, ECMA patterns, and no default that breaks its pattern."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {key: value if key in ("default", "enum") else _plain(value) for key, value in schema.items()}
    if isinstance(tidy.get("description"), str):
        tidy["description"] = _one_line(tidy["description"])
    if isinstance(tidy.get("enum"), list) and "type" not in tidy:
        tidy = {"type": _json_type(tidy["enum"]), **tidy}
    if isinstance(tidy.get("pattern"), str):
        tidy["pattern"] = ecma(tidy["pattern"])
        if tidy.get("default") == "":
            del tidy["default"]
    return tidy


def ecma(pattern: str) -> str:
    """The same pattern for readers whose `$` matches only at the very end, which Python's does not."""
    return pattern.replace(r"(?!\n)", "")


def _json_type(values: list[Any]) -> str:
    if all(isinstance(value, bool) for value in values):
        return "boolean"
    return "integer" if all(isinstance(value, int) for value in values) else "string"


def _without_discriminator(schema: Any) -> Any:
    """OpenAPI's `discriminator` is no JSON Schema; the tag enumerations say the same."""
    if isinstance(schema, dict):
        return {key: _without_discriminator(value) for key, value in schema.items() if key != "discriminator"}
    return [_without_discriminator(item) for item in schema] if isinstance(schema, list) else schema


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _is_struct(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, msgspec.Struct)
