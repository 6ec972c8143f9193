"""What an OpenAPI document takes away from clients of an earlier one: each such change needs a new major version.

A client of the earlier document sends what that permits and reads what that promises. So a request may only widen and
an answer only gain. What cannot be decided (a pattern that is written differently) is let pass. Errors may come and go:
their codes are one list, which clients read by.
"""

from collections.abc import Iterator
from typing import Any, Final

Document = dict[str, Any]

_AT_LEAST: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_AT_MOST: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_OPTIONS: Final = ("anyOf", "oneOf")
_WIDER: Final = {("integer", "number")}


def breaking(old: Document, new: Document) -> list[str]:
    """One line for each thing that a client of `old` may rely on and `new` does not keep."""
    return [
        problem
        for path, methods in old["paths"].items()
        for method, operation in methods.items()
        for problem in _Comparison(old, new, f"{method.upper()} {path}").operation(
            operation, new["paths"].get(path, {}).get(method)
        )
    ]


def major(document: Document) -> int:
    """Of `info.version`."""
    return int(str(document["info"]["version"]).partition(".")[0])


class _Comparison:
    """Of one operation. `where` leads to the place in a problem's line."""

    def __init__(self, old: Document, new: Document, name: str) -> None:
        self._old: Final = old
        self._new: Final = new
        self._name: Final = name
        self._under_way: set[tuple[str, str, bool]] = set()

    def operation(self, old: Document, new: Document | None) -> Iterator[str]:
        if new is None:
            yield f"{self._name}: it is gone"
            return
        yield from self._parameters(old.get("parameters", []), new.get("parameters", []))
        yield from self._request(old.get("requestBody"), new.get("requestBody"))
        for status, reply in old["responses"].items():
            if status.startswith("2"):
                yield from self._reply(status, reply, new["responses"].get(status))

    def _parameters(self, old: list[Document], new: list[Document]) -> Iterator[str]:
        before = {(each["in"], each["name"]): each for each in old}
        after = {(each["in"], each["name"]): each for each in new}
        for place, was in before.items():
            where = f"parameter {place[1]}"
            if place not in after:
                yield f"{self._name}: {where} is gone"
                continue
            if after[place].get("required") and not was.get("required"):
                yield f"{self._name}: {where} is required now"
            yield from self._schema(was["schema"], after[place]["schema"], where, sent=True)
        for place in after.keys() - before.keys():
            if after[place].get("required"):
                yield f"{self._name}: parameter {place[1]} is new and required"

    def _request(self, old: Document | None, new: Document | None) -> Iterator[str]:
        if old is None:
            if new is not None and new.get("required"):
                yield f"{self._name}: a body is required now"
            return
        for media, content in old["content"].items():
            if new is None or media not in new["content"]:
                yield f"{self._name}: it takes no {media} any more"
                continue
            yield from self._schema(content["schema"], new["content"][media]["schema"], "body", sent=True)

    def _reply(self, status: str, old: Document, new: Document | None) -> Iterator[str]:
        if new is None:
            yield f"{self._name}: it does not answer {status} any more"
            return
        for media, content in old.get("content", {}).items():
            if media not in new.get("content", {}):
                yield f"{self._name}: {status} is no {media} any more"
                continue
            yield from self._schema(content["schema"], new["content"][media]["schema"], status, sent=False)

    def _schema(self, old: Document, new: Document, where: str, *, sent: bool) -> Iterator[str]:
        """`sent`: by the client; else it is read by it."""
        names = (old.get("$ref", ""), new.get("$ref", ""), sent)
        if all(names[:2]):
            if names in self._under_way:
                return
            self._under_way.add(names)
        old, new = _resolved(self._old, old), _resolved(self._new, new)
        if any(key in schema for key in _OPTIONS for schema in (old, new)):
            yield from self._options(old, new, where, sent=sent)
            return
        yield from (f"{self._name}: {where}{problem}" for problem in _narrowed(old, new, sent=sent))
        yield from self._properties(old, new, where, sent=sent)
        if isinstance(old.get("items"), dict) and isinstance(new.get("items"), dict):
            yield from self._schema(old["items"], new["items"], f"{where}[]", sent=sent)

    def _options(self, old: Document, new: Document, where: str, *, sent: bool) -> Iterator[str]:
        """What was permitted finds its like; what was promised is still among what may come."""
        before, after = _options_of(old), _options_of(new)
        for was in before:
            if all(any(True for _ in self._schema(was, now, where, sent=sent)) for now in after):
                yield f"{self._name}: {where}: one of its forms is gone"

    def _properties(self, old: Document, new: Document, where: str, *, sent: bool) -> Iterator[str]:
        before, after = old.get("properties", {}), new.get("properties", {})
        closed = new.get("additionalProperties") is False
        for name, was in before.items():
            if name in after:
                yield from self._schema(was, after[name], f"{where}.{name}", sent=sent)
            elif closed or not sent:
                yield f"{self._name}: {where}.{name} is gone"
        was_required, is_required = set(old.get("required", ())), set(new.get("required", ()))
        for name in sorted(is_required - was_required if sent else was_required - is_required):
            yield f"{self._name}: {where}.{name} is {'required now' if sent else 'not always there any more'}"


def _narrowed(old: Document, new: Document, *, sent: bool) -> Iterator[str]:
    was, now = old.get("type"), new.get("type")
    if was != now and was and now and ((was, now) if sent else (now, was)) not in _WIDER:
        yield f" is {now}, was {was}"
    if old.get("nullable", False) is not new.get("nullable", False) and bool(new.get("nullable")) is not sent:
        yield " may not be null any more" if sent else " may be null now"
    if not sent:
        return
    if "enum" in new and (gone := [each for each in old.get("enum", ()) if each not in new["enum"]]):
        yield f" does not take {gone[0]!r} any more"
    if "pattern" in new and "pattern" not in old:
        yield " has a pattern now"
    for keys, tighter in ((_AT_LEAST, 1), (_AT_MOST, -1)):
        for key in keys:
            if key in new and (key not in old or (new[key] - old[key]) * tighter > 0):
                yield f": {key} is {new[key]}, was {old.get(key, 'open')}"


def _options_of(schema: Document) -> list[Document]:
    return next((schema[key] for key in _OPTIONS if key in schema), [schema])


def _resolved(document: Document, schema: Document) -> Document:
    while "$ref" in schema:
        node: Any = document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            node = node[step]
        schema = node
    if len(schema.get("allOf", ())) == 1:
        return {**_resolved(document, schema["allOf"][0]), **{k: v for k, v in schema.items() if k != "allOf"}}
    return schema
