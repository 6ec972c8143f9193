"""A cluster on an in-memory bus with one ready pool, and the door of a gateway in it."""

from collections.abc import AsyncIterator

import pytest

from support.gateways import Cluster, Door, cluster_of


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that is played by the test answers, however busy the machine."""
    monkeypatch.setattr("llorch_gateway.enqueue.APPOINT_TIMEOUT_S", 15.0)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with cluster_of() as one:
        yield one


@pytest.fixture
async def door(cluster: Cluster) -> Door:
    return await cluster.gateway()
