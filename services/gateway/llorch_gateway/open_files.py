"""How many connections this process can hold: each is an open file, and the system bounds those.

The server would spin on a connection that it cannot open, so it is given fewer connections than there are files.
"""

import logging
import resource
from typing import Final, NamedTuple

log = logging.getLogger(__name__)

BESIDE_CONNECTIONS: Final = 128
"""Open files for everything else: bus, logs, libraries."""
STREAMS_SHARE: Final = 0.75
"""Of the connections, where they are short: the rest are for requests."""


class Connections(NamedTuple):
    total: int
    streams_max: int


def connections(wanted: int) -> Connections:
    """Raises the limit of open files as far as it may, and says so where that is not enough for `wanted`."""
    files = _raised() or wanted + BESIDE_CONNECTIONS
    held = fitting(wanted, files)
    if held.total < wanted:
        log.warning(
            "this process may open %d files, so it takes %d connections and serves %d streams at once; for "
            "gateway.streams_max as configured it needs %d (ulimit -Hn, LimitNOFILE= of systemd, ulimits: of compose)",
            files,
            held.total,
            held.streams_max,
            wanted + BESIDE_CONNECTIONS,
        )
    return held


def _raised() -> int:
    """Files that may be open now; 0 where nothing bounds them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:
            log.info("the limit of open files stays at %d: %s", soft, error)
            hard = soft
    return 0 if hard == resource.RLIM_INFINITY else hard


def fitting(wanted: int, files: int) -> Connections:
    """At least one, however few files there are."""
    total = min(wanted, max(1, files - BESIDE_CONNECTIONS))
    return Connections(total, total if total == wanted else max(1, int(total * STREAMS_SHARE)))
