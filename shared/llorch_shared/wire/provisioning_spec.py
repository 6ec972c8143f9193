"""How a pool's engine and model come to its nodes, as an operator writes it (REQUIREMENTS section 3). Unknown keys are
refused."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from llorch_shared import url_credentials

Text = Annotated[str, Meta(min_length=1, max_length=2048)]
Port = Annotated[int, Meta(ge=1, le=65_535)]


class ProvisioningMode(StrEnum):
    EXTERNAL = "external"
    SOURCE = "source"
    CONTAINER = "container"
    PACKAGE = "package"
    BINARY = "binary"


class PackageSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    version: str = ""
    repo: Literal["pip"] = "pip"
    sha256: tuple[str, ...] = ()
    """Accepted wheel digests, lower-case hex; given ones are enforced."""


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cache_dir: str = ""
    checksum: str = ""
    """`sha256:<hex>` of the model file; a mismatch is always fatal."""


class BuildSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cmake_flags: tuple[str, ...] = ()
    generator: str = ""
    cache_dir: str = ""


class SourceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    repo: Text
    ref: Text
    """A commit's full hash pins it; a branch or a tag may move."""
    submodules: bool = False
    build: BuildSpec = BuildSpec()


class ContainerSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    image: Text
    tag: str = ""
    digest: str = ""
    """`sha256:<hex>`; a tag may move."""


class BinarySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: Text
    checksum: Text
    """`sha256:<hex>` of what the URL gives."""
    install_dir: str = ""


class ProvisioningSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    mode: ProvisioningMode = ProvisioningMode.EXTERNAL
    allow_package_installs: bool = False
    allow_binary_downloads: bool = False
    package: PackageSpec | None = None
    source: SourceSpec | UnsetType = UNSET
    """Since version 3 of specifications, as `container`, `binary` and `ports`. A node whose provisioner does not have
    engines in this way says so, and starts none."""
    container: ContainerSpec | UnsetType = UNSET
    binary: BinarySpec | UnsetType = UNSET
    model: ModelSpec = ModelSpec()
    command: tuple[str, ...] = ()
    """external: the engine binary (a path, or a name on PATH). Empty means the engine's usual name."""
    env: dict[str, str] = {}
    flags: tuple[str, ...] = ()
    ports: Annotated[tuple[Port, ...], Meta(min_length=1, max_length=256)] | UnsetType = UNSET
    """Those that its engines may listen on, one each; absent: the node chooses."""

    def __post_init__(self) -> None:
        for argument in (*self.command, *self.flags, *self._addresses()):
            url_credentials.check("provisioning", argument)
        for mode in (ProvisioningMode.SOURCE, ProvisioningMode.CONTAINER, ProvisioningMode.BINARY):
            if getattr(self, mode) is not UNSET and self.mode is not mode:
                raise ValueError(f"provisioning.{mode} is only read in mode {mode}, and the mode is {self.mode}")

    @property
    def is_new(self) -> bool:
        """It says something that only version 3 can say."""
        return any(each is not UNSET for each in (self.source, self.container, self.binary, self.ports))

    def _addresses(self) -> tuple[str, ...]:
        return (
            "" if self.source is UNSET else self.source.repo,
            "" if self.container is UNSET else self.container.image,
            "" if self.binary is UNSET else self.binary.url,
        )
