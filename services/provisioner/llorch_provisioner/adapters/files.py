"""Files on this node: hashed, made durable, moved into place at once or not at all.

Everything is made in a staging folder of its own beside the final place, on the same disk, and renamed. What a killed
process left in staging is never used and is swept at the next start.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from llorch_provisioner.core.failure import Failure

CHUNK_BYTES: Final = 1024 * 1024
FREE_MARGIN_BYTES: Final = 64 * 1024 * 1024
"""Left free on the disk, for the index files and everybody else's logs."""
STAGING: Final = ".staging"

Advance = Callable[[int, int], None]
"""(bytes done, bytes in all). What it raises stops the work."""


def sha256_of(path: Path, advance: Advance) -> str:
    """Hex digest of a file, read once. Blocks; OSError when it cannot be read."""
    digest = hashlib.sha256()
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            advance(done, total)
    return digest.hexdigest()


def regular_file(path: Path) -> Path:
    """The file that `path` leads to, symbolic links resolved. Raises Failure."""
    try:
        found = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise Failure(f"there is no file {path}", "correct the path, or put the file there") from error
    if not found.is_file():
        raise Failure(f"{path} is not a regular file")
    return found


def inside(folder: Path, relative: PurePosixPath) -> Path:
    """A file of `folder`; a symbolic link that leads out of it is refused. Raises Failure."""
    found = regular_file(folder / relative)
    if not found.is_relative_to(folder.resolve()):
        raise Failure(f"{relative} leads out of {folder}", "name the file by its absolute path")
    return found


def make_folder(path: Path) -> Path:
    """Create a folder, for this user only when it is new. Raises Failure."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(
            f"cannot create {path}: {error.strerror}", "choose another provisioner.cache_dir, or make it writable"
        ) from error
    return path


@contextmanager
def staging(root: Path, label: str) -> Iterator[Path]:
    """A fresh folder on the disk of `root`, gone afterwards. While it is in use it is locked, so that no sweep takes it
    away; the kernel gives the lock up when this process is killed."""
    parent = make_folder(root / STAGING)
    path = Path(tempfile.mkdtemp(prefix=f"{label}-", dir=parent))
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def sweep(root: Path) -> int:
    """Remove what ended processes left in staging; how many leftovers there were."""
    parent = root / STAGING
    return sum(_sweep_one(path) for path in parent.iterdir()) if parent.is_dir() else 0


def _sweep_one(path: Path) -> bool:
    try:
        lock = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    shutil.rmtree(path, ignore_errors=True)
    return True


def move_file(staged: Path, final: Path) -> None:
    """Put a finished file into place, replacing an older one. Durable when it returns."""
    final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    sync_file(staged)
    staged.replace(final)
    sync_folder(final.parent)


def move_folder(staged: Path, final: Path) -> None:
    """Put a finished folder into place. Raises FileExistsError or OSError when something is there already."""
    for folder, _, names in os.walk(staged):
        for name in names:
            path = Path(folder) / name
            if not path.is_symlink():
                sync_file(path)
        sync_folder(Path(folder))
    final.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staged.rename(final)
    sync_folder(final.parent)


def write_file(path: Path, data: bytes) -> None:
    """Replace a small file at once and durably."""
    staged = path.with_name(f".{path.name}.new")
    with staged.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
    sync_folder(path.parent)


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raises Failure when the disk of `folder` cannot take `needed_bytes` and keep a margin."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + FREE_MARGIN_BYTES:
        raise Failure(
            f"{folder} has {free // 2**20} MiB free, {(needed_bytes + FREE_MARGIN_BYTES) // 2**20} MiB are needed",
            "free some space or set provisioner.cache_dir to a bigger disk",
        )


def sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """A rename is durable only once its folder is."""
    sync_file(path)
