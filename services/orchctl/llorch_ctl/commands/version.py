"""`orchctl version`"""

import platform
from importlib.metadata import version as installed

from llorch_ctl.embedded import server_version
from llorch_ctl.terminal import OUT, JsonOption, write_json
from llorch_shared.http_api import API_VERSION


def version(as_json: JsonOption = False) -> None:
    """Versions of llama-orch, its API, Python and the embedded nats-server."""
    found = {
        "llama-orch": installed("llama-orch"),
        "api": API_VERSION,
        "python": platform.python_version(),
        "nats-server": server_version(),
    }
    if as_json:
        write_json(found)
        return
    for name, value in found.items():
        OUT.print(f"{name:<12} {value}")
