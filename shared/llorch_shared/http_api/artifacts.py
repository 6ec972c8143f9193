"""Artifacts: plans, summaries, diffs, traces; each under the digest of what it says."""

from typing import Annotated, Final

from msgspec import Meta

from llorch_shared.http_api.operation import BAD_ID, BODY_ERRORS, BUS_AWAY, UNKNOWN, Operation, Parameter, Plane, Reply
from llorch_shared.wire.artifacts import (
    LIST_MAX,
    Artifact,
    ArtifactKind,
    ArtifactList,
    ArtifactRef,
    StoredArtifact,
    Tag,
)
from llorch_shared.wire.objects import Digest

_ID: Final = Parameter(
    name="id", where="path", type=Digest, description="id of the artifact", required=True, twin="artifact_id"
)
CURSOR: Final = Parameter(
    name="cursor",
    where="query",
    type=Annotated[str, Meta(pattern=r"^[0-9]{1,18}$(?!\n)")],
    description="`cursor` of the page before",
)
LIMIT: Final = Parameter(
    name="limit",
    where="query",
    type=Annotated[int, Meta(ge=1, le=LIST_MAX)],
    description="How many at most; 50 when absent",
)

ARTIFACTS: Final[tuple[Operation, ...]] = (
    Operation(
        method="POST",
        path="/v1/artifacts",
        operation_id="createArtifact",
        twin="artifacts.create",
        plane=Plane.CONTROL,
        requirements=("ORCH-3097", "OC-CTRL-2065", "AR-001"),
        summary="Keep an artifact for seven days. The same one again is the same artifact",
        request=Artifact,
        replies=(Reply(status=201, description="Kept under its id", body=ArtifactRef),),
        errors=(*BAD_ID, *BODY_ERRORS, *BUS_AWAY),
    ),
    Operation(
        method="GET",
        path="/v1/artifacts",
        operation_id="listArtifacts",
        twin="artifacts.list",
        plane=Plane.CONTROL,
        requirements=("ORCH-3098", "AR-001"),
        summary="Artifacts without their content, oldest first",
        parameters=(
            Parameter(name="kind", where="query", type=ArtifactKind, description="only of this kind"),
            Parameter(name="tag", where="query", type=Tag, description="only with this tag, as `task:<id>`"),
            CURSOR,
            LIMIT,
        ),
        replies=(Reply(status=200, description="One page", body=ArtifactList),),
        errors=(*BAD_ID, *BUS_AWAY),
    ),
    Operation(
        method="GET",
        path="/v1/artifacts/{id}",
        operation_id="getArtifact",
        twin="artifacts.get",
        plane=Plane.CONTROL,
        requirements=("ORCH-3098", "OC-CTRL-2066"),
        summary="An artifact, whole",
        parameters=(_ID,),
        replies=(Reply(status=200, description="As it was given", body=StoredArtifact),),
        errors=(*UNKNOWN, *BUS_AWAY),
    ),
)
