"""The whole system as a fixture: one of each service, and a pool of mock engines."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.system import System


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    async with System(tmp_path) as running:
        yield running
