"""Sessions: hold one to a budget, look it up, end it."""

from typing import Final

from llorch_shared.http_api.operation import (
    BAD_ID,
    BODY_ERRORS,
    BUS_AWAY,
    UNKNOWN,
    Operation,
    Parameter,
    Plane,
    Reply,
)
from llorch_shared.wire.session import SessionInfo, SessionRequest
from llorch_shared.wire.task import TaskId

_SESSION: Final = Parameter(
    name="id", where="path", type=TaskId, description="session_id", required=True, twin="session_id"
)

SESSIONS: Final[tuple[Operation, ...]] = (
    Operation(
        method="PUT",
        path="/v1/sessions/{id}",
        operation_id="putSession",
        twin="sessions.put",
        plane=Plane.DATA,
        requirements=("ORCH-3099", "OC-CTRL-2005", "ORCH-1023"),
        summary="Hold a session to a time to live, a number of turns and budgets, within its tenant's policy",
        parameters=(_SESSION,),
        request=SessionRequest,
        replies=(Reply(status=200, description="The session as it stands", body=SessionInfo),),
        errors=(*BAD_ID, *BODY_ERRORS, *BUS_AWAY),
    ),
    Operation(
        method="GET",
        path="/v1/sessions/{id}",
        operation_id="getSession",
        twin="sessions.get",
        plane=Plane.DATA,
        requirements=("ORCH-2004", "ORCH-3009", "ORCH-3099"),
        summary="What a session has used and has left",
        parameters=(_SESSION,),
        replies=(Reply(status=200, description="The session as it stands", body=SessionInfo),),
        errors=(*UNKNOWN, *BUS_AWAY),
    ),
    Operation(
        method="DELETE",
        path="/v1/sessions/{id}",
        operation_id="deleteSession",
        twin="sessions.delete",
        plane=Plane.DATA,
        requirements=("ORCH-2005", "ORCH-3009"),
        summary="End a session; its tasks under way go on, its next place is not chosen for its cache",
        parameters=(_SESSION,),
        replies=(Reply(status=204, description="It has ended"),),
        errors=(*UNKNOWN, *BUS_AWAY),
    ),
)
