"""`python -m llorch_poold`: the node agent."""

import os
import sys

from llorch_poold.service import serve
from llorch_shared import lifecycle, logs, settings


def main() -> int:
    loaded = settings.load()
    logs.configure("poold", level=loaded.log_level, style=loaded.log_format)
    password = settings.secret("NATS_PASSWORD")
    return lifecycle.run(lambda stop: serve(loaded, os.environ, password, stop))


if __name__ == "__main__":
    sys.exit(main())
