"""`python -m llorch_gateway`: settings, logs, run. Exit code 78 means that the configuration must be changed first."""

import sys

from llorch_gateway.service import run
from llorch_shared import lifecycle, logs, settings_loading
from llorch_shared.auth import NonLoopbackWithoutToken
from llorch_shared.settings import SettingsError
from llorch_shared.token_file import TokenFileError

CONFIG_EXIT = 78


def main() -> int:
    try:
        loaded = settings_loading.load()
        token, password = settings_loading.secret("AUTH_TOKEN"), settings_loading.secret("NATS_PASSWORD")
        logs.configure("gateway", level=loaded.log_level, style=loaded.log_format)
        return lifecycle.run(lambda stop: run(loaded, token, stop, bus_password=password))
    except (SettingsError, NonLoopbackWithoutToken, TokenFileError) as error:
        sys.stderr.write(f"gateway: {error}\n")
        return CONFIG_EXIT


if __name__ == "__main__":
    sys.exit(main())
