"""A whole run in half a minute: three gateways, two schedulers and two nodes under every kind of fault but one."""

from pathlib import Path

import pytest

from chaos.plan import FaultKind
from chaos.report import text
from chaos.run import run

SEED = 1
SECONDS = 20
KINDS = tuple(kind for kind in FaultKind if kind is not FaultKind.DISK_FULL)
"""A small disk needs the right to mount one."""


@pytest.mark.system
@pytest.mark.timeout(240)
async def test_a_short_run_under_faults_breaks_no_promise(tmp_path: Path) -> None:
    told = await run(tmp_path / "run", seed=SEED, seconds=SECONDS, kinds=KINDS)
    assert not told.violations, text(told)
    assert sum(recovery.made for recovery in told.faults.values()) >= 5
    assert told.tasks["done"] > 50
    assert told.tokens_read > 1_000
