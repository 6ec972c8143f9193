"""All contract files by relative path, and their comparison with a folder. What is in them is decided elsewhere."""

import difflib
import json
from pathlib import Path
from typing import Any

import yaml

from llorch_shared.contracts import asyncapi, compatibility, lists, openapi, schemas
from llorch_shared.contracts.compatibility import major
from llorch_shared.http_api import Plane

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_OWNED = ("openapi/*.yaml", "schemas/*.json", "config-schema/*.json", "*.yaml", "*.json", "*.md")
"""What the generator may delete when the code no longer makes it."""


def render() -> dict[str, str]:
    """Every file's text by its path below the contracts folder."""
    rendered = {f"openapi/{plane}.yaml": to_yaml(openapi.document(plane)) for plane in Plane}
    rendered["asyncapi.yaml"] = to_yaml(asyncapi.document())
    rendered |= {f"schemas/{name}.json": to_json(schema) for name, schema in schemas.files().items()}
    rendered["errors.md"] = lists.errors_table()
    rendered["metrics.lint.json"] = to_json(lists.metrics_lint())
    rendered["config-schema/Config.json"] = to_json(schemas.config())
    return rendered


def write(folder: Path) -> None:
    """Make `folder` hold exactly the rendered files; other people's files in it stay."""
    rendered = render()
    for stale in _existing(folder) - rendered.keys():
        (folder / stale).unlink()
    for name, text in rendered.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def difference(folder: Path) -> str:
    """A unified diff from the files to the code, empty when they are equal."""
    rendered = render()
    parts: list[str] = []
    for name in sorted(rendered.keys() | _existing(folder)):
        path = folder / name
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        parts += difflib.unified_diff(
            before.splitlines(keepends=True),
            rendered.get(name, "").splitlines(keepends=True),
            f"{folder}/{name}",
            "from the code",
        )
    return "".join(parts)


def taken_away(folder: Path) -> list[str]:
    """What the operations of the code do not keep of those in the files, where the major version is still the same."""
    problems: list[str] = []
    for plane in Plane:
        path, new = folder / f"openapi/{plane}.yaml", openapi.document(plane)
        if path.exists():
            old = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  (a safe loader)
            problems += compatibility.breaking(old, new) if major(new) <= major(old) else []
    return problems


def _existing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for pattern in _OWNED for path in folder.glob(pattern)}


def to_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


class _Dumper(yaml.SafeDumper):
    """Block style for texts with line breaks, and no anchors: equal parts are written out."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(value: Any) -> str:
    head = "# Written by `make contracts` from the code; do not edit.\n"
    return head + yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
