"""The examples of the contracts, told again: a gateway must answer each as it is written there."""

from pathlib import Path

import pytest

from contract.story import recorded, text_of
from llorch_shared.contracts import examples
from llorch_shared.http_api import OPERATIONS, Operation


async def test_the_examples_are_what_a_gateway_answers(tmp_path: Path) -> None:
    told = text_of(await recorded(tmp_path))
    assert told == examples.RECORD.read_text(encoding="utf-8"), (
        "the answers changed: PYTHONPATH=tests python -m contract.story && make contracts"
    )


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.operation_id)
def test_every_operation_has_examples_of_each_kind_that_it_can_have(operation: Operation) -> None:
    """Well and not well, without a token, and too often (OC-CTRL-2067, 2069)."""
    statuses = {example["status"] for example in examples.of_operation(operation.operation_id)}
    assert statuses & {200, 201, 202, 204}
    if operation.authenticated:
        assert {401, 429} <= statuses
    if operation.request is not None:
        assert 400 in statuses
    if any(parameter.where == "path" for parameter in operation.parameters):
        assert statuses & {400, 404}
