"""The machine's own pip, asked for exactly one wheel.

Which index, proxy and certificates are used is the machine's pip configuration and stays there. The child's
environment carries what pip needs and none of our secrets; its temporary files lie in the staging folder.
"""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from llorch_provisioner.adapters import process
from llorch_provisioner.adapters.files import Advance
from llorch_provisioner.core import pip_output
from llorch_provisioner.core.failure import Failure
from llorch_provisioner.core.refs import Package
from llorch_shared.logs import redact

_PIP: Final = (sys.executable, "-P", "-m", "pip", "--no-input", "--no-color", "--disable-pip-version-check")
_NAMES: Final = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "NETRC",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "XDG_CONFIG_HOME",
        "XDG_CONFIG_DIRS",
        "VIRTUAL_ENV",
        "SOURCE_DATE_EPOCH",
        "LD_LIBRARY_PATH",
    }
)
_PIP_DROPPED: Final = frozenset(
    {
        *("PIP_QUIET", "PIP_VERBOSE", "PIP_LOG", "PIP_DEST", "PIP_REQUIREMENT"),
        *("PIP_PYTHON", "PIP_PYTHON_VERSION", "PIP_PLATFORM", "PIP_IMPLEMENTATION", "PIP_ABI"),
    }
)
"""pip settings that would hide the progress or change what is fetched."""


def child_environment(base: Mapping[str, str], temporary: Path, *, configured: bool) -> dict[str, str]:
    """Environment of a child. `configured` keeps the machine's pip configuration; without it pip reads none."""
    env = {name: value for name, value in base.items() if name.upper() in _NAMES}
    if configured:
        env |= {name: value for name, value in base.items() if name.startswith("PIP_") and name not in _PIP_DROPPED}
    else:
        env["PIP_CONFIG_FILE"] = "/dev/null"
    return env | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1"}


def require_pip() -> None:
    """Raises Failure when this Python has no pip."""
    if importlib.util.find_spec("pip") is None:
        raise Failure("this Python has no pip", f"run `{sys.executable} -m ensurepip`, or install python3-pip")


async def download(
    package: Package,
    *,
    into: Path,
    base: Mapping[str, str],
    timeout_s: float,
    bytes_max: int,
    advance: Advance,
    room_for: Callable[[int], None],
) -> Path:
    """Fetch the one wheel of `package` that fits this machine into the empty folder `into`. `room_for(bytes)` is asked
    as soon as the size is known and may raise. Raises Failure."""
    temporary = into.parent / "tmp"
    temporary.mkdir(exist_ok=True)
    known = 0

    def on_line(line: str) -> None:
        nonlocal known
        if (seen := pip_output.progress(line)) is None:
            return
        if max(seen.total, seen.done) > bytes_max:
            raise Failure(
                f"{package.requirement} has {seen.total} bytes, the limit is {bytes_max}",
                "raise provisioner.artifact_bytes_max if it is meant to be that big",
            )
        if seen.total > known:
            known = seen.total
            room_for(known)
        advance(seen.done, seen.total)

    ended = await process.run(
        [
            *(*_PIP, "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--progress-bar", "raw"),
            *("--dest", str(into), package.requirement),
        ],
        env=child_environment(base, temporary, configured=True),
        cwd=into.parent,
        timeout_s=timeout_s,
        on_line=on_line,
    )
    if ended.code != 0:
        raise pip_output.explain(package, [redact(line) for line in ended.lines], ended.code)
    wheel = _only_wheel(into, package)
    size = wheel.stat().st_size
    if size > bytes_max:
        raise Failure(f"{wheel.name} has {size} bytes, the limit is {bytes_max}")
    advance(size, size)
    return wheel


async def install(wheel: Path, python: Path, *, base: Mapping[str, str], timeout_s: float) -> None:
    """Install one wheel, and nothing else, into the environment of `python`. No network, no configuration."""
    temporary = wheel.parent.parent / "tmp"
    temporary.mkdir(exist_ok=True)
    ended = await process.run(
        [
            *(*_PIP, "--python", str(python), "install", "--no-deps", "--no-index", "--no-cache-dir"),
            *("--progress-bar", "off", str(wheel)),
        ],
        env=child_environment(base, temporary, configured=False),
        cwd=wheel.parent,
        timeout_s=timeout_s,
    )
    if ended.code != 0:
        said = " / ".join(ended.lines[-3:])
        raise Failure(f"pip could not install {wheel.name}, exit code {ended.code}: {said[-400:]}")


def _only_wheel(folder: Path, package: Package) -> Path:
    found = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
    if len(found) != 1:
        raise Failure(f"pip left {len(found)} files for {package.requirement}, one wheel is expected")
    stated = pip_output.wheel_package(found[0].name)
    if stated.name != package.name:
        raise Failure(f"asked for {package.requirement}, got {found[0].name}")
    return found[0]
