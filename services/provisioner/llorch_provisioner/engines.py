"""Orders for engines, fulfilled: the operator's own program, or a wheel in an environment of its own."""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from llorch_provisioner.adapters import external, files, pip, venv
from llorch_provisioner.adapters.catalog import EngineEntry
from llorch_provisioner.cache import Cache
from llorch_provisioner.core import trust
from llorch_provisioner.core.plan import EngineOrder, InstallPackage, ProbeExternal
from llorch_provisioner.reporter import Limits, Reporter
from llorch_shared.wire.provision import PreparedEngine
from llorch_shared.wire.provisioning_spec import ProvisioningMode

log: Final = logging.getLogger(__name__)

UNPACKED_RATIO: Final = 4
"""Disk asked for per byte of wheel: the wheel, its unpacked files and pip's copy of them while installing."""


def cached_engine(order: EngineOrder, cache: Cache, base: Mapping[str, str]) -> PreparedEngine | None:
    """The engine when it is here and sound: looked at on disk, not hashed again. An operator's program is asked for its
    version each time. Raises Failure when that program is missing."""
    if isinstance(order, ProbeExternal):
        external.find(order.engine, order.command[0], base)
        return None
    entry = cache.engines.find(lambda known: _serves(order, known))
    if entry is not None:
        return _prepared(order, Path(entry.artifacts[0]), entry.digest)
    return None


def present_engines(cache: Cache) -> tuple[PreparedEngine, ...]:
    """Every registered engine that is still whole."""
    return tuple(
        entry.prepared for entry in cache.engines.all() if entry.artifacts and venv.receipt(Path(entry.artifacts[0]))
    )


def adopt(order: InstallPackage, cache: Cache, now_ms: int) -> PreparedEngine | None:
    """A finished environment whose registration was cut short: register it now."""
    for folder in sorted(cache.engines_folder.glob(f"{order.package.name}-{order.package.version}-*")):
        found = venv.receipt(folder)
        if found is None or (found.package, found.version) != (order.package.name, order.package.version):
            continue
        if folder == cache.engine_folder(order, found.digest) and _acceptable(order, found.digest):
            return _register(order, cache, folder, found.digest, now_ms)
    return None


async def fulfil_engine(
    order: EngineOrder, cache: Cache, report: Reporter, base: Mapping[str, str], limits: Limits
) -> PreparedEngine:
    """Raises Failure, OSError."""
    if isinstance(order, ProbeExternal):
        return await _probe(order, report, base)
    return await _install(order, cache, report, base, limits)


async def _probe(order: ProbeExternal, report: Reporter, base: Mapping[str, str]) -> PreparedEngine:
    report.begin("check")
    program = external.find(order.engine, order.command[0], base)
    entry = (str(program), *order.command[1:])
    return PreparedEngine(
        engine=order.engine,
        mode=ProvisioningMode.EXTERNAL,
        entry=entry,
        env=order.env,
        flags=order.flags,
        engine_version=await external.version(order.engine, entry, base, order.env),
    )


async def _install(
    order: InstallPackage, cache: Cache, report: Reporter, base: Mapping[str, str], limits: Limits
) -> PreparedEngine:
    report.begin("check")
    if adopted := adopt(order, cache, report.now_ms()):
        return adopted
    pip.require_pip()
    files.require_space(cache.root, 0)
    with files.staging(cache.root, order.package.name) as stage:
        report.begin("download")
        wheel = await pip.download(
            order.package,
            into=files.make_folder(stage / "wheel"),
            base=base,
            timeout_s=limits.download_timeout_s,
            bytes_max=limits.artifact_bytes_max,
            advance=report.advance,
            room_for=lambda size: files.require_space(cache.root, UNPACKED_RATIO * size),
        )
        report.begin("verify")
        digest = await asyncio.to_thread(files.sha256_of, wheel, report.advance)
        report.verified(trust.verified(wheel.name, digest, order.accepted), wheel.name)
        report.begin("install")
        environment = stage / "environment"
        await venv.make(environment, wheel, order.package, digest, base=base)
        report.begin("move")
        final = cache.engine_folder(order, digest)
        await asyncio.to_thread(_place, environment, final)
    report.begin("register")
    return _register(order, cache, final, digest, report.now_ms())


def _place(environment: Path, final: Path) -> None:
    """An unusable folder of that name (its Python is gone, or it has no receipt) makes way."""
    if venv.receipt(final) is not None:
        return
    if final.exists():
        final.rename(environment.with_name("unusable"))
    files.move_folder(environment, final)


def _register(order: InstallPackage, cache: Cache, folder: Path, digest: str, now_ms: int) -> PreparedEngine:
    prepared = _prepared(order, folder, trust.written(digest))
    cache.engines.put(
        EngineEntry(
            id=prepared.engine_catalog_id,
            engine=order.engine,
            version=order.package.version,
            created_ms=now_ms,
            build_ref=f"pypi:{order.package.requirement}",
            digest=prepared.engine_digest,
            artifacts=(str(folder),),
            python=venv.python_tag(),
            prepared=prepared,
        )
    )
    return prepared


def _prepared(order: InstallPackage, folder: Path, digest: str) -> PreparedEngine:
    return PreparedEngine(
        engine=order.engine,
        mode=ProvisioningMode.PACKAGE,
        entry=(str(venv.interpreter(folder)),),
        env=order.env,
        flags=order.flags,
        workdir=str(folder),
        engine_version=f"{order.package.name} {order.package.version}",
        engine_digest=digest,
        engine_catalog_id=f"{order.engine}-{folder.name}",
    )


def _serves(order: InstallPackage, entry: EngineEntry) -> bool:
    if (entry.engine, entry.build_ref) != (order.engine, f"pypi:{order.package.requirement}") or not entry.artifacts:
        return False
    digest = trust.parse_digest(entry.digest)
    found = venv.receipt(Path(entry.artifacts[0])) if entry.python == venv.python_tag() else None
    return found is not None and found.digest == digest and _acceptable(order, digest)


def _acceptable(order: InstallPackage, digest: str) -> bool:
    return not order.accepted or digest in order.accepted
