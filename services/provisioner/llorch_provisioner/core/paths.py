"""Which file names are safe to take out of an archive or to follow inside a folder.

Rules only, on text: nothing here looks at a disk. Symbolic links are judged where the disk is, in adapters/files.py.
"""

from pathlib import PurePosixPath
from typing import Final

from llorch_provisioner.core.failure import Failure

PATH_LENGTH_MAX: Final = 512
NAME_BYTES_MAX: Final = 255
DEPTH_MAX: Final = 32


def relative(text: str, what: str = "path") -> PurePosixPath:
    """`text` as a path that stays inside the folder it is joined to. Raises Failure."""
    _plain(text, what)
    if text.startswith("/"):
        raise Failure(f"the {what} {text!r} is absolute", "name it relative to its folder")
    if "\\" in text or (len(text) > 1 and text[1] == ":"):
        raise Failure(f"the {what} {text!r} is not a POSIX path", "use '/' between folders")
    parts = text.split("/")
    if len(parts) > DEPTH_MAX:
        raise Failure(f"the {what} has {len(parts)} folders, more than {DEPTH_MAX}")
    for part in parts:
        if part in ("", ".", ".."):
            raise Failure(f"the {what} {text!r} leaves its folder or is not normal", "remove '.', '..' and '//'")
        if len(part.encode()) > NAME_BYTES_MAX:
            raise Failure(f"the {what} has a name longer than {NAME_BYTES_MAX} bytes")
    return PurePosixPath(text)


def absolute(text: str, what: str = "path") -> PurePosixPath:
    """`text` as an absolute path without detours. Raises Failure."""
    _plain(text, what)
    if not text.startswith("/"):
        raise Failure(f"the {what} {text!r} is not absolute", "start it with '/'")
    if ".." in text.split("/"):
        raise Failure(f"the {what} {text!r} contains '..'", "write the path it leads to")
    return PurePosixPath("/" + text.lstrip("/"))


def _plain(text: str, what: str) -> None:
    if not text:
        raise Failure(f"the {what} is empty")
    if len(text) > PATH_LENGTH_MAX:
        raise Failure(f"the {what} is longer than {PATH_LENGTH_MAX} characters")
    if not text.isprintable():
        raise Failure(f"the {what} {text!r} contains control characters")
