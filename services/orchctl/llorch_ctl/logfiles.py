"""Log lines of supervised processes: kept in files of bounded size, shown to people as sentences.

A child's lines arrive here as bytes. The file gets them unchanged (JSON Lines), the terminal gets time, service and
sentence, or the raw line with `--json-logs`. nats-server writes its own text format; its lines are kept the same way
and shown from a warning on.
"""

import contextlib
import errno
import os
import re
import time
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
from rich.console import Console
from rich.text import Text

FILE_BYTES_MAX: Final = 10 * 1024 * 1024
FILES_KEPT: Final = 3
TAIL_LINES: Final = 30

_COLOURS: Final = {
    "nats-server": "bright_black",
    "gateway": "cyan",
    "scheduler": "magenta",
    "poold": "green",
    "provisioner": "yellow",
    "orchctl": "bold",
}
_LEVELS: Final = {"warning": "yellow", "error": "bold red", "critical": "bold red"}
_NATS_LINE: Final = re.compile(rb"^\[\d+\] \S+ \S+ \[(?P<level>\w+)\] (?P<text>.*)$")
_NATS_LEVELS: Final = {b"WRN": "info", b"ERR": "error", b"FTL": "critical"}


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What a person sees of one log line."""

    level: str
    text: str


class LogFile:
    """One service's log: appended, rotated by size, its last lines at hand for an error message.

    A disk that takes no line costs that line, which is counted in the file when it takes lines again: whoever writes
    the lines must not stand still because nobody reads them. Without `path` there are only the last lines.
    """

    def __init__(self, path: Path | None, *, bytes_max: int = FILE_BYTES_MAX, kept: int = FILES_KEPT) -> None:
        self.path: Final = path
        self.missing = 0
        """Lines in a row that could not be written."""
        self._torn = False
        self._bytes_max = bytes_max
        self._kept = kept
        self._file: BinaryIO | None = None
        self._size = 0
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    def write(self, line: bytes) -> None:
        shown = read_line(line)
        self.tail.append(shown.text if shown else line.decode(errors="replace"))
        if self.path is None:
            return
        try:
            file = self._opened(self.path, len(line) + 1)
            if self.missing:
                self._append(file, b"\n" * self._torn + b"(%d lines could not be written)\n" % self.missing)
                self.missing, self._torn = 0, False
            self._append(file, line + b"\n")
        except OSError:
            self.missing += 1
            self.close()

    def _opened(self, path: Path, more: int) -> BinaryIO:
        if self._file is not None and self._size + more > self._bytes_max:
            self._rotate(path)
        if self._file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            self._size = path.stat().st_size
        return self._file

    def _append(self, file: BinaryIO, data: bytes) -> None:
        """Raises OSError when not all of it is written."""
        written = file.write(data)
        self._size += written
        if written < len(data):
            self._torn = self._torn or written > 0
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _rotate(self, path: Path) -> None:
        self.close()
        for number in range(self._kept - 1, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            newer = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_line(line: bytes) -> Line | None:
    """A JSON line of ours or a line of nats-server; None for anything else (a traceback, an engine's print)."""
    if line.startswith(b"{"):
        try:
            fields: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            return None
        text = str(fields.get("human", fields))
        if exception := fields.get("exception"):
            text += f"\n{exception}"
        return Line(level=str(fields.get("level", "info")), text=text)
    if found := _NATS_LINE.match(line):
        level = _NATS_LEVELS.get(found["level"], "debug")
        return Line(level=level, text=found["text"].decode(errors="replace"))
    return None


class LogView:
    """Shows lines on the terminal. `raw` passes them on as they are; `quiet` shows only warnings and worse of
    the processes."""

    def __init__(self, console: Console, *, raw: bool = False, quiet: bool = False) -> None:
        self._console = console
        self._raw = raw
        self._quiet = quiet
        self.stopping = False
        """While everything ends, only errors of the processes are worth showing."""

    def show(self, service: str, line: bytes) -> None:
        if self._raw:
            self._console.file.write(line.decode(errors="replace") + "\n")
            return
        read = read_line(line)
        if self.stopping and self._quiet and (read is None or read.level not in ("error", "critical")):
            return
        if read is None:
            if not self._quiet and line.strip():
                self._print(service, "", line.decode(errors="replace"))
        elif read.level != "debug" and (not self._quiet or read.level in _LEVELS):
            self._print(service, read.level, read.text)

    def say(self, text: str, level: str = "info") -> None:
        """A sentence of the supervisor itself."""
        if self._raw:
            line = msgspec.json.encode({"level": level, "service": "orchctl", "human": text})
            self._console.file.write(line.decode() + "\n")
        else:
            self._print("orchctl", level, text)

    def _print(self, service: str, level: str, text: str) -> None:
        shown = Text(time.strftime("%H:%M:%S "), style="bright_black")
        shown.append(f"{service:<12}", style=_COLOURS.get(service, ""))
        shown.append(text, style=_LEVELS.get(level, ""))
        self._console.print(shown, soft_wrap=True)
