"""One gateway process: does it live, can it serve, what does it count, which contracts does it keep."""

from typing import Any, Final, Literal

import msgspec

from llorch_shared.errors import ErrorCode
from llorch_shared.http_api.operation import METRICS_TEXT, Operation, Parameter, Plane, Reply


class Liveness(msgspec.Struct, frozen=True, kw_only=True):
    """GET /healthz: this process answers."""

    live: Literal[True] = True


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """GET /readyz: whether this process can admit and relay, and if not, why."""

    ready: bool
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What should be mended although it serves: a token file that cannot be used, with an earlier one in effect."""
    instance: str = ""
    """Which of the processes that may share the port has answered, once it serves."""


PROCESS: Final[tuple[Operation, ...]] = (
    Operation(
        method="GET",
        path="/metrics",
        operation_id="getMetrics",
        plane=Plane.CONTROL,
        requirements=("ORCH-3028", "ORCH-3460"),
        summary="Metrics of this gateway process for Prometheus",
        replies=(Reply(status=200, description="Prometheus text", body=str, media_type=METRICS_TEXT),),
    ),
    Operation(
        method="GET",
        path="/healthz",
        operation_id="getLiveness",
        plane=Plane.CONTROL,
        requirements=("ORCH-3500",),
        summary="This process lives",
        replies=(Reply(status=200, description="It answers", body=Liveness),),
        authenticated=False,
    ),
    Operation(
        method="GET",
        path="/readyz",
        operation_id="getReadiness",
        plane=Plane.CONTROL,
        requirements=("ORCH-3500",),
        summary="This process can admit and relay",
        replies=(
            Reply(status=200, description="Ready", body=Readiness),
            Reply(status=503, description="Not ready; the reasons say why", body=Readiness),
        ),
    ),
    Operation(
        method="GET",
        path="/openapi/{plane}",
        operation_id="getContract",
        plane=Plane.CONTROL,
        requirements=("FR-CT-001",),
        summary="This contract as OpenAPI JSON: `data.json` or `control.json`",
        parameters=(
            Parameter(
                name="plane",
                where="path",
                type=str,
                description="Which of the two documents",
                required=True,
            ),
        ),
        replies=(Reply(status=200, description="OpenAPI document", body=dict[str, Any]),),
        errors=((404, ErrorCode.INVALID_PARAMS),),
    ),
    Operation(
        method="GET",
        path="/openapi",
        operation_id="listContracts",
        plane=Plane.CONTROL,
        requirements=("FR-CT-001",),
        summary="Where the OpenAPI documents of this process are",
        replies=(Reply(status=200, description="Plane to path", body=dict[str, str]),),
    ),
)
