"""Digests, flags and what pip prints: small rules on text."""

import pytest

from llorch_provisioner.core import pip_output, trust
from llorch_provisioner.core.failure import Failure, Untrusted
from llorch_provisioner.core.flags import normalise
from llorch_provisioner.core.pip_output import Progress
from llorch_provisioner.core.refs import Package
from llorch_shared.wire.task import Engine

A = "a" * 64
B = "b" * 64


@pytest.mark.parametrize("text", [A, A.upper(), f"sha256:{A}"])
def test_a_digest_is_read_in_its_usual_spellings(text: str) -> None:
    assert trust.parse_digest(text) == A


@pytest.mark.parametrize("text", ["md5:abc", "a" * 63, "sha256:", "g" * 64, f"sha512:{A}"])
def test_what_is_not_a_sha256_is_refused(text: str) -> None:
    with pytest.raises(Failure, match="is not a sha256"):
        trust.parse_digest(text)


def test_a_digest_that_differs_is_untrusted_and_names_both() -> None:
    with pytest.raises(Untrusted, match=r"^UNTRUSTED_ARTIFACT: ") as error:
        trust.verified("model.gguf", A, (B,))
    assert A in str(error.value)
    assert B in str(error.value)


def test_no_digest_is_unverified_and_one_of_several_is_verified() -> None:
    assert trust.verified("x", A, ()) is False
    assert trust.verified("x", A, (B, A)) is True


def test_old_flags_get_todays_names_and_keep_their_values() -> None:
    assert normalise(Engine.LLAMACPP, ("-ngl", "99", "--gpu-layers=7", "-c", "512")) == (
        "--n-gpu-layers",
        "99",
        "--n-gpu-layers=7",
        "-c",
        "512",
    )
    assert normalise(Engine.VLLM, ("-ngl", "1")) == ("-ngl", "1")


def test_raw_progress_is_read_and_nothing_else_is() -> None:
    assert pip_output.progress("Progress 262144 of 33827498") == Progress(262144, 33827498)
    assert pip_output.progress("Progress 5 of 0") == Progress(5, 0)
    for line in ("Progress", "Progress x of y", "Collecting a==1", "progress 1 of 2", "Progress 1 of 2 more"):
        assert pip_output.progress(line) is None


def test_why_pip_failed_is_said_with_a_remedy() -> None:
    package = Package("xllamacpp", "9.9")
    none = pip_output.explain(package, ["ERROR: No matching distribution found for xllamacpp==9.9"], 1)
    assert "no wheel of xllamacpp==9.9 fits" in str(none)
    assert "external" in none.hint
    full = pip_output.explain(package, ["ERROR: Could not install: [Errno 28] No space left on device"], 1)
    assert "disk is full" in str(full)
    mute = pip_output.explain(package, [], -9)
    assert "-9" in str(mute)
    assert "said nothing" in str(mute)


@pytest.mark.parametrize(
    ("warning", "said", "remedy"),
    [
        (
            "NewConnectionError('<pip._vendor.urllib3.connection.HTTPSConnection object>: Failed to establish a new "
            "connection: [Errno -2] Name or service not known')",
            "cannot be reached",
            "network and proxy",
        ),
        ("ReadTimeoutError(\"HTTPSConnectionPool(host='i', port=443): Read timed out.\")", "not answer", "network"),
        ("ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 403'))", "cannot be", "proxy"),
        ("SSLError(SSLCertVerificationError(1, 'certificate verify failed'))", "certificate", "PIP_CERT"),
    ],
)
def test_an_index_that_cannot_be_reached_is_not_a_wheel_that_does_not_fit(warning: str, said: str, remedy: str) -> None:
    package = Package("xllamacpp", "9.9")
    broken = f"WARNING: Retrying (Retry(total=0)) after connection broken by '{warning}': /simple/xllamacpp/"
    none = [
        "ERROR: Could not find a version that satisfies the requirement xllamacpp==9.9 (from versions: none)",
        "ERROR: No matching distribution found for xllamacpp==9.9",
    ]
    failure = pip_output.explain(package, [broken, *none], 1)
    assert said in str(failure)
    assert remedy in failure.hint
    named = [none[0].replace("none)", "1.0, 2.0)"), none[1]]
    assert "no wheel of xllamacpp==9.9 fits" in str(pip_output.explain(package, [broken, *named], 1))
    assert "no wheel of xllamacpp==9.9 fits" in str(pip_output.explain(package, none, 1))


def test_the_release_a_wheel_states_is_read_from_its_name() -> None:
    name = "xllamacpp-2026.10.11549-cp310-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64.whl"
    assert pip_output.wheel_package(name) == Package("xllamacpp", "2026.10.11549")
    assert pip_output.wheel_package("My_Pkg-1.0-1-py3-none-any.whl") == Package("my-pkg", "1.0")
    for wrong in ("a-1.0.tar.gz", "a.whl", "a-1-b.whl"):
        with pytest.raises(Failure):
            pip_output.wheel_package(wrong)
