"""A small memory disk under a folder, and a file that fills it. Mounting one needs the right to (root)."""

import errno
import os
import subprocess
from pathlib import Path
from typing import Final

FILL_TRIES: Final = 100


def mount(folder: Path, *, mib: int) -> bool:
    """False where this process may not."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def unmount(folder: Path) -> None:
    """Also while somebody has files open there."""
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Until nothing more fits, although others write meanwhile."""
    with path.open("wb", buffering=0) as file:
        for _ in range(FILL_TRIES):
            disk = os.statvfs(path)
            if not disk.f_bavail:
                return
            try:
                os.posix_fallocate(file.fileno(), file.tell(), disk.f_bavail * disk.f_frsize)
                file.seek(0, os.SEEK_END)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
