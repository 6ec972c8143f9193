"""A drill from end to end, very small: its figures are read from a real system's audit, records and leases."""

from pathlib import Path

import pytest

from chaos.drill import drill_text, run_drill


@pytest.mark.system
@pytest.mark.timeout(120)
async def test_twenty_ids_sent_to_three_gateways_at_once_are_twenty_tasks(tmp_path: Path) -> None:
    result = await run_drill("ids", tmp_path / "run", scale=0.002)
    assert result.reached, drill_text(result)
    assert {goal.what: goal.got for goal in result.goals}["submissions"] == "60"
