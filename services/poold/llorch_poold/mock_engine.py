"""The mock engine: a process that speaks llama-server's HTTP protocol, at a set pace and with faults on demand.

It is a test double and a load source; it never pretends to be a model. Its routes are in `mock_connection.py`, its
options in `mock_options.py`.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

from llorch_poold.mock_connection import Connection
from llorch_poold.mock_log import GenerationLog
from llorch_poold.mock_options import Options, parse_options
from llorch_poold.mock_slots import MockEngine
from llorch_shared.lifecycle import Stop, run
from llorch_shared.with_parent import die_with_parent

MISSING_MODEL: Final = "mock:missing"
"""The model that is not there."""


async def serve(options: Options, stop: Stop) -> int:
    engine = MockEngine(
        slots=options.slots,
        ctx=options.ctx,
        rate=options.rate,
        prefill_s=options.prefill_ms / 1000,
        prefill_rate=options.prefill_rate,
        batch=options.batch,
        stamp=options.stamp,
        log=GenerationLog(Path(options.log)) if options.log else None,
    )
    connections: set[Connection] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(engine, options, connections), options.host, options.port, backlog=1024
    )
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(f'{{"listening":"http://{options.host}:{port}"}}\n')
    sys.stdout.flush()
    await stop.wait()
    server.close()
    for connection in list(connections):
        connection.cut()
    return 0


def main() -> int:
    die_with_parent()
    options = parse_options(sys.argv[1:], os.environ)
    if options.model == MISSING_MODEL:
        sys.stderr.write(f"error: the model {options.model} cannot be loaded: no such file\n")
        return 1
    return run(lambda stop: serve(options, stop))


if __name__ == "__main__":
    sys.exit(main())
