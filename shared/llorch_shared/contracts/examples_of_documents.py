"""Examples of artifacts and of the catalog of models."""

import hashlib
from typing import Any, Final

from llorch_shared.errors import ErrorBody, ErrorCode
from llorch_shared.wire.artifacts import Artifact, ArtifactKind, ArtifactList, ArtifactRef, StoredArtifact, canonical
from llorch_shared.wire.catalog import (
    CatalogEntry,
    CatalogList,
    CatalogModel,
    ModelState,
    StateAccepted,
    StateChange,
    TrustPolicy,
    VerifyStarted,
)

_AT_MS: Final = 1_760_000_000_000
ARTIFACT: Final = Artifact(
    kind=ArtifactKind.PLAN,
    content={"steps": ["read the logs", "name the cause"]},
    tags=("incident:17",),
    metadata={"author": "planner"},
)
_DOCUMENT: Final = canonical(ARTIFACT)
_ID: Final = f"sha256:{hashlib.sha256(_DOCUMENT).hexdigest()}"
REF: Final = ArtifactRef(
    id=_ID,
    kind=ARTIFACT.kind,
    digest=_ID,
    created_ms=_AT_MS,
    tags=ARTIFACT.tags,
    parent=None,
    bytes=len(_DOCUMENT),
)
_STORED: Final = StoredArtifact(
    id=_ID,
    kind=ARTIFACT.kind,
    digest=_ID,
    created_ms=_AT_MS,
    tags=ARTIFACT.tags,
    parent=None,
    metadata=ARTIFACT.metadata,
    content=ARTIFACT.content,
)
MODEL: Final = CatalogModel(
    id="smollm2",
    digest="sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    source_url="file:/models/smollm2.gguf",
    tags=("stable",),
)
ENTRY: Final = CatalogEntry(
    id=MODEL.id,
    digest=MODEL.digest,
    source_url=MODEL.source_url,
    tags=MODEL.tags,
    manifests=(),
    signatures=(),
    sbom=None,
    trust_policy=TrustPolicy(),
    state=ModelState.ACTIVE,
    warnings=("the model is not signed",),
    created_ms=_AT_MS,
    changed_ms=_AT_MS,
)


def _refusal(
    message: str, code: ErrorCode = ErrorCode.INVALID_PARAMS, *, retry_after_ms: int | None = None
) -> ErrorBody:
    return ErrorBody(code=code, message=message, retriable=retry_after_ms is not None, retry_after_ms=retry_after_ms)


_NO_MODEL: Final = _refusal("model smollm3 is not known here")
_BOUND: Final = _refusal("this token is bound to a tenant and may not operate the system")

OPERATION_EXAMPLES: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "createArtifact": (
        {"name": "kept", "request": ARTIFACT, "status": 201, "response": REF},
        {
            "name": "unknown parent",
            "request": {"kind": "diff", "content": {}, "parent": f"sha256:{'0' * 64}"},
            "status": 400,
            "response": _refusal(f"parent: artifact sha256:{'0' * 64} is not known here"),
        },
    ),
    "listArtifacts": ({"name": "one page", "status": 200, "response": ArtifactList(artifacts=(REF,), cursor=None)},),
    "getArtifact": (
        {"name": "whole", "status": 200, "response": _STORED},
        {"name": "unknown", "status": 404, "response": _refusal(f"artifact sha256:{'0' * 64} is not known here")},
    ),
    "createCatalogModel": (
        {"name": "entered", "request": MODEL, "status": 201, "response": ENTRY},
        {
            "name": "unsigned under a strict policy",
            "request": MODEL,
            "status": 400,
            "response": _refusal("signatures: the model is not signed", ErrorCode.UNTRUSTED_ARTIFACT),
        },
        {"name": "bound to a tenant", "request": MODEL, "status": 403, "response": _BOUND},
    ),
    "listCatalogModels": (
        {"name": "one page", "status": 200, "response": CatalogList(models=(ENTRY,), cursor=None)},
        {"name": "as the caller has it", "status": 304},
    ),
    "getCatalogModel": (
        {"name": "entered", "status": 200, "response": ENTRY},
        {"name": "unknown", "status": 404, "response": _NO_MODEL},
    ),
    "deleteCatalogModel": (
        {"name": "gone", "status": 204},
        {"name": "unknown", "status": 404, "response": _NO_MODEL},
    ),
    "verifyCatalogModel": (
        {"name": "begun", "status": 202, "response": VerifyStarted()},
        {
            "name": "nobody has it",
            "status": 503,
            "response": _refusal(
                "no node that holds model smollm2 answers", ErrorCode.POOL_UNAVAILABLE, retry_after_ms=1_000
            ),
        },
    ),
    "setCatalogModelState": (
        {
            "name": "retired",
            "request": StateChange(state=ModelState.RETIRED, deadline_ms=60_000),
            "status": 202,
            "response": StateAccepted(),
        },
        {
            "name": "no such move",
            "request": StateChange(state=ModelState.DRAFT),
            "status": 409,
            "response": _refusal("state: model smollm2 is Active; from there it becomes Canary, Deprecated, Retired"),
        },
    ),
}
