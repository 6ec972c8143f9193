"""`python -m llorch_provisioner`: settings, logs, run."""

import os
import sys

from llorch_provisioner import service
from llorch_shared import lifecycle, logs, settings_loading
from llorch_shared.settings import SettingsError


def main() -> int:
    """Exit code 0 after a wish to stop, 1 for an unusable cache, 2 for wrong settings, 3 for a bus lost for good."""
    try:
        chosen = settings_loading.load()
        password = settings_loading.secret("NATS_PASSWORD")
        logs.configure("provisioner", level=chosen.log_level, style=chosen.log_format)
        return lifecycle.run(lambda stop: service.run(chosen, os.environ, password, stop))
    except SettingsError as error:
        sys.stderr.write(f"provisioner: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
