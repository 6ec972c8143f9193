"""The catalog of models. Only callers that are bound to no tenant change it."""

from typing import Annotated, Final, Literal

from msgspec import Meta

from llorch_shared.errors import ErrorCode
from llorch_shared.http_api.operation import (
    BAD_ID,
    BODY_ERRORS,
    BUS_AWAY,
    UNKNOWN,
    Operation,
    Parameter,
    Plane,
    Reply,
    usual,
)
from llorch_shared.wire.catalog import (
    LIST_MAX,
    CatalogEntry,
    CatalogList,
    CatalogModel,
    StateAccepted,
    StateChange,
    Tag,
    VerifyStarted,
)
from llorch_shared.wire.task import Name

TRUST_POLICY_HEADER: Final = "X-Trust-Policy"
ETAG_HEADER: Final = "ETag"

_ID: Final = Parameter(
    name="id", where="path", type=Name, description="id of the model in the catalog", required=True, twin="model_id"
)
_UNCHANGED: Final = Parameter(
    name="If-None-Match",
    where="header",
    type=Annotated[str, Meta(max_length=1024)],
    description="ETag of what the caller has: 304 when it is still so",
)
_FORBIDDEN: Final = ((403, ErrorCode.INVALID_PARAMS),)
_CONFLICT: Final = ((409, ErrorCode.INVALID_PARAMS),)
_SAME: Final = Reply(status=304, description="As the caller has it")

CATALOG: Final[tuple[Operation, ...]] = (
    Operation(
        method="POST",
        path="/v1/catalog/models",
        operation_id="createCatalogModel",
        twin="catalog.create",
        plane=Plane.CONTROL,
        requirements=("ORCH-3060", "ORCH-3061", "ORCH-3062", "CP-001"),
        summary="Enter a model, if the trust policy takes it. The same one again is no error",
        parameters=(
            Parameter(
                name=TRUST_POLICY_HEADER,
                where="header",
                type=Literal["strict", "permissive"],
                description="`strict` refuses what no trusted key has signed, whatever the deployment permits",
            ),
        ),
        request=CatalogModel,
        replies=(Reply(status=201, description="Entered, and Active", body=CatalogEntry),),
        errors=(
            *BAD_ID,
            *usual(ErrorCode.UNTRUSTED_ARTIFACT),
            *_FORBIDDEN,
            *_CONFLICT,
            *BODY_ERRORS,
            *BUS_AWAY,
        ),
    ),
    Operation(
        method="GET",
        path="/v1/catalog/models",
        operation_id="listCatalogModels",
        twin="catalog.list",
        plane=Plane.CONTROL,
        requirements=("ORCH-3470", "CP-001"),
        summary="Models, by id",
        parameters=(
            Parameter(name="tag", where="query", type=Tag, description="only with this tag"),
            Parameter(name="cursor", where="query", type=Name, description="`cursor` of the page before"),
            Parameter(
                name="limit",
                where="query",
                type=Annotated[int, Meta(ge=1, le=LIST_MAX)],
                description="How many at most; 50 when absent",
            ),
            _UNCHANGED,
        ),
        replies=(Reply(status=200, description="One page, with an ETag", body=CatalogList), _SAME),
        errors=(*BAD_ID, *BUS_AWAY),
    ),
    Operation(
        method="GET",
        path="/v1/catalog/models/{id}",
        operation_id="getCatalogModel",
        twin="catalog.get",
        plane=Plane.CONTROL,
        requirements=("ORCH-3060", "ORCH-3470"),
        summary="A model, with the outcome of its last verification",
        parameters=(_ID, _UNCHANGED),
        replies=(Reply(status=200, description="The entry, with an ETag", body=CatalogEntry), _SAME),
        errors=(*UNKNOWN, *BUS_AWAY),
    ),
    Operation(
        method="DELETE",
        path="/v1/catalog/models/{id}",
        operation_id="deleteCatalogModel",
        twin="catalog.delete",
        plane=Plane.CONTROL,
        requirements=("ORCH-3060",),
        summary="Forget an entry. Files on nodes stay",
        parameters=(_ID,),
        replies=(Reply(status=204, description="It is gone"),),
        errors=(*UNKNOWN, *_FORBIDDEN, *_CONFLICT, *BUS_AWAY),
    ),
    Operation(
        method="POST",
        path="/v1/catalog/models/{id}/verify",
        operation_id="verifyCatalogModel",
        twin="catalog.verify",
        plane=Plane.CONTROL,
        requirements=("ORCH-3037", "ORCH-3064", "CP-001"),
        summary="Have the nodes that hold the model compare its file with the catalog; the outcome stands in the entry",
        parameters=(_ID,),
        replies=(Reply(status=202, description="A node has begun", body=VerifyStarted),),
        errors=(*UNKNOWN, *_FORBIDDEN, *BUS_AWAY),
    ),
    Operation(
        method="POST",
        path="/v1/catalog/models/{id}/state",
        operation_id="setCatalogModelState",
        twin="catalog.state",
        plane=Plane.CONTROL,
        requirements=("ORCH-3069", "ORCH-3070", "ORCH-3072", "CP-001"),
        summary="Move a model through its life: an Active or Canary one takes tasks; a Retired one's pools rest",
        parameters=(_ID,),
        request=StateChange,
        replies=(Reply(status=202, description="It is so; pools follow", body=StateAccepted),),
        errors=(*UNKNOWN, *_FORBIDDEN, *_CONFLICT, *BODY_ERRORS, *BUS_AWAY),
    ),
)
