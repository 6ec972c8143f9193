"""The release before, whose messages are version 1: its frozen schemas, and its code to be run beside today's."""

import json
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema

PREVIOUS_RELEASE: Final = "9b17d50"
"""Its commit. The frozen messages and schemas were written by it."""
REPOSITORY: Final = Path(__file__).parents[2]
V1: Final = REPOSITORY / "tests" / "shared" / "wire" / "v1"
PARTS: Final = ("shared", *(f"services/{name}" for name in ("gateway", "scheduler", "poold", "provisioner")))


class NotInThisClone(Exception):
    """The history that was cloned does not reach back to the previous release."""


@cache
def _validator(type_name: str) -> jsonschema.Draft202012Validator:
    schemas = json.loads((V1 / "schemas.json").read_text())
    return jsonschema.Draft202012Validator({**schemas, "$ref": f"#/$defs/{type_name}"})


def conforms(type_name: str, value: Any) -> None:
    """Raises ValidationError when the release before would not take `value`."""
    _validator(type_name).validate(value)


def unpack_previous(folder: Path) -> str:
    """Put its code into `folder`. Returns the PYTHONPATH with which Python runs it. Raises NotInThisClone."""
    archive = folder / "previous.zip"
    folder.mkdir(parents=True)
    git = ["git", "-C", str(REPOSITORY), "archive", "--format", "zip", "--output", str(archive), PREVIOUS_RELEASE]
    made = subprocess.run([*git, "shared", "services"], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise NotInThisClone(f"git archive {PREVIOUS_RELEASE}: {made.stderr.strip()}")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    path = ":".join(str(folder / part) for part in PARTS)
    question = [
        sys.executable,
        "-P",
        "-c",
        "import llorch_shared as a, llorch_poold as b; print(a.__file__, b.__file__)",
    ]
    told = subprocess.run(question, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True).stdout
    assert told.count(str(folder)) == 2, f"the previous release does not come first: {told}"
    return path
