"""A cluster on an in-memory bus with one ready pool, and the door of a gateway in it."""

from collections.abc import AsyncIterator

import pytest

from support.gateways import Cluster, Door, cluster_of


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with cluster_of() as one:
        yield one


@pytest.fixture
async def door(cluster: Cluster) -> Door:
    return await cluster.gateway()
