"""What a mock engine generated, as JSON lines: the engine's own word against which streams are compared.

Each engine process writes one file, a line when a generation begins and one when it ends. Lines are written at once,
so a killed engine leaves its beginnings. The text is not written: it follows from prompt and seed
(`mock_text.text_of`).
"""

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec


class LogEvent(StrEnum):
    BEGIN = "begin"
    END = "end"


class LogLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`number` counts the generations of one process, and joins the two lines of one."""

    event: LogEvent
    number: int
    at: float
    """Unix seconds."""
    prompt: str = ""
    seed: int = 0
    total: int = 0
    """Tokens that it will generate unless it is stopped."""
    sent: int = 0
    """Tokens that it has generated, told at the end."""


LINE_DECODER: Final = msgspec.json.Decoder(LogLine)


class GenerationLog:
    """Appends to `<folder>/<pid>.jsonl`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file: Final = (folder / f"{os.getpid()}.jsonl").open("ab", buffering=0)
        self._begun = 0

    def begun(self, *, prompt: str, seed: int, total: int) -> int:
        """Returns the number of the generation."""
        self._begun += 1
        line = LogLine(event=LogEvent.BEGIN, number=self._begun, at=time.time(), prompt=prompt, seed=seed, total=total)
        self._write(line)
        return self._begun

    def ended(self, number: int, sent: int) -> None:
        self._write(LogLine(event=LogEvent.END, number=number, at=time.time(), sent=sent))

    def _write(self, line: LogLine) -> None:
        self._file.write(msgspec.json.encode(line) + b"\n")
