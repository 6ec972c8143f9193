"""KEY=VALUE of the command line as a config file would say it. Pure."""

import tomllib
from collections.abc import Sequence
from typing import Any

from llorch_shared.settings import SettingsError


def assigned(assignments: Sequence[str]) -> dict[str, Any]:
    """Nested as in the file, later ones over earlier. A value is TOML where it is that (`3`, `true`, `["a"]`), else the
    text as it stands. Raises SettingsError."""
    nested: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        names = key.split(".")
        if not equals or not all(names):
            raise SettingsError(f"{assignment!r} is not KEY=VALUE, for example gateway.addr=127.0.0.1:9000")
        section = nested
        for name in names[:-1]:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise SettingsError(f"{assignment!r}: {name} was given a value of its own")
        section[names[-1]] = _value(text)
    return nested


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
