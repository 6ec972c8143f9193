"""Compiles the scheduler's core and its simulator into the wheel, for builds that ask for it. Any other build is pure.

    HATCH_BUILD_HOOK_ENABLE_CUSTOM=true pip install .

needs a C compiler and Python's headers, takes a minute or two, and makes the same decisions in about half the time. The
sources stay what they are: mypyc compiles typed Python, and the interpreted modules lie beside the compiled ones.
"""

import ast
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_GROUP: Final = "llorch_scheduler"
"""Names the library that all compiled modules share."""


class CompiledCore(BuildHookInterface):  # type: ignore[type-arg]
    """Its table in pyproject.toml says what is compiled: every module of `folders` but the `interpreted` ones."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raises SystemExit when a module has a type error, and CompileError when the compiler has one."""
        if version != "standard":
            return
        root = Path(self.root)
        modules = [path for folder in self.config["folders"] for path in sorted((root / folder).glob("*.py"))]
        self._made = tempfile.TemporaryDirectory(prefix="llorch-compiled-")
        target = Path(self._made.name)
        named = self.config["interpreted"]
        wanted = [path for path in modules if path.name not in named and not _stays_interpreted(path)]
        with _inside(root):
            _compile([str(path.relative_to(root)) for path in wanted], target)
        built = target / "lib"
        for library in built.rglob("*.*"):
            build_data["force_include"][str(library)] = str(library.relative_to(built))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel has what was built."""
        if version == "standard":
            self._made.cleanup()


def _stays_interpreted(module: Path) -> bool:
    """Packages, programs, and modules that define msgspec structs: mypyc knows nothing of a metaclass's arguments."""
    if module.name.startswith("__"):
        return True
    classes = [node for node in ast.walk(ast.parse(module.read_text("utf-8"))) if isinstance(node, ast.ClassDef)]
    return any(ast.unparse(base) == "msgspec.Struct" for each in classes for base in each.bases)


def _compile(modules: list[str], target: Path) -> None:
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    options = ["--strict", "--config-file=pyproject.toml", f"--cache-dir={target / 'types'}"]
    extensions = mypycify([*options, *modules], target_dir=str(target / "c"), group_name=_GROUP)
    command = build_ext(Distribution({"name": _GROUP, "ext_modules": extensions}))
    command.build_lib, command.build_temp = str(target / "lib"), str(target / "objects")
    command.parallel = os.cpu_count()
    command.ensure_finalized()
    command.run()


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Module names follow from paths relative to here, as mypy's configuration has them."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
