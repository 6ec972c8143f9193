"""Child processes that end: their lines are read as they come, and none outlives its job.

A child is the leader of its own process group and dies with this process (`with_parent`); the whole group is
killed when the job is cancelled or its time is over.
"""

import asyncio
import contextlib
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from llorch_provisioner.core.failure import Failure
from llorch_shared.with_parent import with_parent

LINES_KEPT: Final = 40
LINE_BYTES_MAX: Final = 8 * 1024
_READ_BYTES: Final = 64 * 1024
_LINE_END: Final = re.compile(rb"[\r\n]+")


class Ended(msgspec.Struct, frozen=True):
    """How a child ended: exit code, and the last lines of its output and errors together."""

    code: int
    lines: tuple[str, ...]


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    timeout_s: float,
    on_line: Callable[[str], None] | None = None,
) -> Ended:
    """Run a program to its end. What `on_line` raises kills the child. Raises Failure after `timeout_s` and OSError
    when it cannot be started."""
    child = await asyncio.create_subprocess_exec(
        *with_parent(argv),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
    )
    kept: deque[str] = deque(maxlen=LINES_KEPT)
    try:
        async with asyncio.timeout(timeout_s):
            assert child.stdout is not None
            await _read_lines(child.stdout, kept, on_line)
            code = await child.wait()
    except TimeoutError as error:
        last = kept[-1] if kept else "nothing"
        raise Failure(
            f"{Path(argv[0]).name} did not end within {timeout_s:.0f} s; it last said: {last[:200]}",
            "try again; raise provisioner.download_timeout_s for a slow link",
        ) from error
    finally:
        await _end_group(child)
    return Ended(code=code, lines=tuple(kept))


async def _read_lines(stream: asyncio.StreamReader, kept: deque[str], on_line: Callable[[str], None] | None) -> None:
    rest = b""
    while chunk := await stream.read(_READ_BYTES):
        *lines, rest = _LINE_END.split(rest + chunk)
        rest = rest[-LINE_BYTES_MAX:]
        for line in lines:
            _take(line, kept, on_line)
    _take(rest, kept, on_line)


def _take(line: bytes, kept: deque[str], on_line: Callable[[str], None] | None) -> None:
    text = line[:LINE_BYTES_MAX].decode(errors="replace").strip()
    if text:
        kept.append(text)
        if on_line is not None:
            on_line(text)


async def _end_group(child: asyncio.subprocess.Process) -> None:
    """Leave nothing behind: also grandchildren that outlived an orderly end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    await child.wait()
