"""The import rules hold, and a planted violation makes them fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    *(f"services/{name}" for name in ("gateway", "scheduler", "poold", "provisioner", "orchctl")),
    "shared",
]

PLANTED = {
    "a service imports another": ("services/gateway/llorch_gateway/planted.py", "import llorch_scheduler\n"),
    "shared code imports a service": ("shared/llorch_shared/planted.py", "import llorch_poold\n"),
    "orchctl imports a service": ("services/orchctl/llorch_ctl/planted.py", "from llorch_gateway import core\n"),
    "a core reads the clock": ("services/scheduler/llorch_scheduler/core/planted.py", "import time\n"),
    "a core talks to the bus": ("services/poold/llorch_poold/core/planted.py", "import nats\n"),
    "the core of orchctl runs a loop": ("services/orchctl/llorch_ctl/core/planted.py", "import asyncio\n"),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The sources and the rules, without the editable install's paths."""
    for source in SOURCES:
        shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    paths = os.pathsep.join(str(tree / source) for source in SOURCES)
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def test_the_tree_as_it_is_keeps_the_rules(tree: Path) -> None:
    said = lint(tree)
    assert said.returncode == 0, said.stdout


@pytest.mark.parametrize(("path", "code"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_violation_fails(tree: Path, path: str, code: str) -> None:
    (tree / path).write_text(code)
    said = lint(tree)
    assert said.returncode != 0
    assert "planted" in said.stdout
