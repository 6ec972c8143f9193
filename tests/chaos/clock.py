"""The wall clock of a process under test, which a fault may set: the interpreter of the process adds what is written
here to every reading (`jumping_clock/sitecustomize.py`)."""

import os
import struct
from pathlib import Path
from typing import Final

CODE: Final = Path(__file__).parent / "jumping_clock"
_SECONDS: Final = struct.Struct("<d")


class JumpingClock:
    """Of one process; right from the start. `environment` is what the process has to be started with."""

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_SECONDS.pack(0.0))
        others = os.environ.get("PYTHONPATH", "")
        self.environment: Final = {
            "CHAOS_CLOCK": str(path),
            "PYTHONPATH": f"{CODE}{os.pathsep}{others}" if others else str(CODE),
        }

    def set(self, ahead_s: float) -> None:
        """Seconds by which it is ahead from now on; in place, because the process has the file mapped."""
        with self._path.open("r+b", buffering=0) as file:
            file.write(_SECONDS.pack(ahead_s))
