"""The catalog of models: what each is made of, who vouches for it, and whether it may be used (ORCH-3060..3073)."""

from enum import StrEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from llorch_shared import url_credentials
from llorch_shared.wire.objects import Digest
from llorch_shared.wire.task import Name

LIST_MAX: Final = 200
ENTRY_BYTES_MAX: Final = 64 * 1024
SOURCE_CHARS_MAX: Final = 512

Tag = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$(?!\n)")]
Registry = Annotated[str, Meta(min_length=1, max_length=255)]
DrainMs = Annotated[int, Meta(ge=0, le=86_400_000)]


class ModelState(StrEnum):
    """Lifecycle of a model; the moves stand in the gateway's `core.catalog`."""

    DRAFT = "Draft"
    ACTIVE = "Active"
    CANARY = "Canary"
    DEPRECATED = "Deprecated"
    RETIRED = "Retired"


class TrustMode(StrEnum):
    STRICT = "strict"
    PERMISSIVE = "permissive"


class TrustPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a model must bring. A model's own policy may ask for more than the deployment's, never for less."""

    mode: TrustMode = TrustMode.PERMISSIVE
    """`strict` refuses what no trusted key has signed; `permissive` takes it with a warning."""
    allowed_registries: tuple[Registry, ...] = ()
    """Where models may come from: the host of a URL, else its scheme (`hf`, `pypi`, `file`). Empty: from anywhere."""
    require_signature: bool = False
    """In either mode."""
    require_sbom: bool = False
    ca_roots: tuple[Annotated[str, Meta(pattern=r"^ed25519:[A-Za-z0-9+/]{43}=$(?!\n)")], ...] = ()
    """Public keys whose signatures count: `ed25519:` and the 32 bytes of the key in base64."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    digest: Digest
    size_bytes: Annotated[int, Meta(ge=0, le=2**53)]


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Of the model's digest as text, `sha256:<hex>`."""

    signer: Annotated[str, Meta(min_length=1, max_length=256)]
    algo: Annotated[str, Meta(min_length=1, max_length=64)]
    """`ed25519`. Others are kept, and are not verified."""
    signature: Annotated[str, Meta(max_length=4096)] = ""
    """In base64."""
    verified: bool = False
    """Whether this gateway has verified it with a trusted key, whatever was sent."""
    timestamp_ms: Annotated[int, Meta(ge=0, le=2**53)] = 0


class Sbom(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    uri: Annotated[str, Meta(min_length=1, max_length=2048)]
    digest: Digest | None = None


class CatalogModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model as it is entered. The body of POST /v1/catalog/models."""

    id: Name
    digest: Digest
    """Of the model file. It does not change: other bytes are another model."""
    source_url: Annotated[str, Meta(min_length=1, max_length=SOURCE_CHARS_MAX)]
    """The model_ref that pools name."""
    tags: Annotated[tuple[Tag, ...], Meta(max_length=32)] = ()
    """Each names one model at a time; a later model takes it over. `model_ref` `catalog:<tag>` asks for its holder."""
    manifests: Annotated[tuple[Manifest, ...], Meta(max_length=256)] = ()
    signatures: Annotated[tuple[Signature, ...], Meta(max_length=16)] = ()
    sbom: Sbom | None = None
    trust_policy: TrustPolicy | None = None
    state: Literal["Draft", "Active"] = "Active"
    """A Draft takes no tasks until it is moved on."""

    def __post_init__(self) -> None:
        url_credentials.check("source_url", self.source_url)
        if self.sbom is not None:
            url_credentials.check("sbom.uri", self.sbom.uri)


class VerifyResult(StrEnum):
    PASS = "pass"  # noqa: S105  (an outcome, not a secret)
    WARN = "warn"
    FAIL = "fail"


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What a node has found that holds the model."""

    result: VerifyResult
    reason: str
    """Empty when all is well; else `unsigned`, `digest_mismatch`, `policy`, `unreadable`."""
    message: str
    node_id: str
    digest: str
    """As computed from the file there."""
    verified_ms: int


class CatalogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A model as it is kept, `model.<id>` in the catalog bucket. Times are Unix milliseconds."""

    id: Name
    digest: Digest
    source_url: str
    tags: tuple[str, ...]
    manifests: tuple[Manifest, ...]
    signatures: tuple[Signature, ...]
    sbom: Sbom | None
    trust_policy: TrustPolicy
    """In effect when it was entered: the deployment's and its own."""
    state: ModelState
    warnings: tuple[str, ...]
    """What is missing that the policy in effect tolerates."""
    created_ms: int
    changed_ms: int
    drain_deadline_ms: int | None = None
    """Until when a retired model's running tasks may end."""
    last_verified_ms: int | None = None
    verification: Verification | None = None


class CatalogList(msgspec.Struct, frozen=True, kw_only=True):
    """One page, by id."""

    models: tuple[CatalogEntry, ...]
    cursor: str | None
    """Where the next page begins; None at the end."""


class StateChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    state: ModelState
    deadline_ms: DrainMs = 0
    """Of a retirement: milliseconds from now in which running tasks may end."""


class VerifyStarted(msgspec.Struct, frozen=True, kw_only=True):
    """`status` is `started`; the outcome stands in the entry."""

    status: str = "started"


class StateAccepted(msgspec.Struct, frozen=True, kw_only=True):
    status: str = "accepted"


class VerifyModel(msgspec.Struct, frozen=True, kw_only=True):
    """`prov.<node>.model.verify`: read the model's file, compare, and write the outcome into the catalog."""

    catalog_id: Name
    model_ref: str
    digest: Digest
    engine: str = ""
    result: VerifyResult = VerifyResult.PASS
    """What the gateway has found of signatures and policy; the node may only make it worse."""
    reason: str = ""
    message: str = ""


class VerifyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the node has that model and has begun."""

    started: bool
    problem: str = ""


ENTRY_DECODER: Final = msgspec.json.Decoder(CatalogEntry)
VERIFY_DECODER: Final = msgspec.json.Decoder(VerifyModel)
VERIFY_ANSWER_DECODER: Final = msgspec.json.Decoder(VerifyAnswer)
