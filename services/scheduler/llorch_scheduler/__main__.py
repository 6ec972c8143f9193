"""`python -m llorch_scheduler`: settings, logs, run."""

import sys

from llorch_scheduler.service import main
from llorch_shared import lifecycle, logs
from llorch_shared.settings import SettingsError
from llorch_shared.settings_loading import load


def start() -> int:
    """Exit code 0 after a wish to stop, 1 when the bus is lost for good, 2 for wrong settings."""
    try:
        settings = load()
        logs.configure("scheduler", level=settings.log_level, style=settings.log_format)
        return lifecycle.run(lambda stop: main(settings, stop))
    except SettingsError as error:
        sys.stderr.write(f"scheduler: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(start())
