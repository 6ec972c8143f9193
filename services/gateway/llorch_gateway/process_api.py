"""Operations on this one process: does it live, can it serve, what has it counted, which contracts does it keep."""

from collections.abc import Callable

import msgspec

from llorch_gateway.operations import Answer, Ask, Handlers
from llorch_shared.contracts import openapi
from llorch_shared.errors import not_found
from llorch_shared.http_api import METRICS_TEXT, Liveness, Plane, Readiness
from llorch_shared.metrics import Metrics

Ready = Callable[[], Readiness]
"""Whether this process can serve now."""


def handlers(metrics: Metrics, readiness: Ready) -> Handlers:
    paths = {plane.value: f"/openapi/{plane}.json" for plane in Plane}
    documents = {f"{plane}.json": msgspec.json.encode(openapi.document(plane)) for plane in Plane}

    async def get_metrics(_ask: Ask) -> Answer:
        return Answer(metrics.render(), media_type=METRICS_TEXT)

    async def get_liveness(_ask: Ask) -> Answer:
        return Answer(Liveness())

    async def get_readiness(_ask: Ask) -> Answer:
        told = readiness()
        return Answer(told, 200 if told.ready else 503)

    async def list_contracts(_ask: Ask) -> Answer:
        return Answer(paths)

    async def get_contract(ask: Ask) -> Answer:
        document = documents.get(ask.given["plane"])
        if document is None:
            raise not_found(f"the contract {ask.given['plane']!r}")
        return Answer(document)

    return {
        "getMetrics": get_metrics,
        "getLiveness": get_liveness,
        "getReadiness": get_readiness,
        "listContracts": list_contracts,
        "getContract": get_contract,
    }
