"""Every operation of the system as data: the gateway's routes, their twins on the bus and contracts/openapi are made
from these rows, one module for each topic.

A route that is not here does not exist, and a test compares the two. Field names and headers are those of REQUIREMENTS
section 2.
"""

from typing import Final

from llorch_shared.http_api.anthropic import ANTHROPIC
from llorch_shared.http_api.artifacts import ARTIFACTS
from llorch_shared.http_api.audit import AUDIT
from llorch_shared.http_api.catalog import CATALOG
from llorch_shared.http_api.openai import OPENAI
from llorch_shared.http_api.operation import (
    API_VERSION,
    BACKOFF_HEADER,
    BUDGET_HEADERS,
    CORRELATION,
    CORRELATION_HEADER,
    COST_REMAINING_HEADER,
    EVENT_STREAM,
    HEADER_NOTES,
    JSON,
    LAST_EVENT_ID_HEADER,
    METRICS_TEXT,
    RETRY_AFTER_HEADER,
    STATUS_HEADERS,
    TIME_REMAINING_HEADER,
    TOKENS_REMAINING_HEADER,
    Operation,
    Parameter,
    Plane,
    Reply,
)
from llorch_shared.http_api.pools import POOLS
from llorch_shared.http_api.process import PROCESS, Liveness, Readiness
from llorch_shared.http_api.sessions import SESSIONS
from llorch_shared.http_api.tasks import TASKS
from llorch_shared.http_api.tenants import TENANTS

__all__ = [
    "API_VERSION",
    "BACKOFF_HEADER",
    "BUDGET_HEADERS",
    "CORRELATION",
    "CORRELATION_HEADER",
    "COST_REMAINING_HEADER",
    "EVENT_STREAM",
    "HEADER_NOTES",
    "JSON",
    "LAST_EVENT_ID_HEADER",
    "METRICS_TEXT",
    "OPERATIONS",
    "RETRY_AFTER_HEADER",
    "STATUS_HEADERS",
    "TIME_REMAINING_HEADER",
    "TOKENS_REMAINING_HEADER",
    "Liveness",
    "Operation",
    "Parameter",
    "Plane",
    "Readiness",
    "Reply",
]

OPERATIONS: Final[tuple[Operation, ...]] = (
    *TASKS,
    *SESSIONS,
    *OPENAI,
    *ANTHROPIC,
    *POOLS,
    *TENANTS,
    *ARTIFACTS,
    *AUDIT,
    *CATALOG,
    *PROCESS,
)
