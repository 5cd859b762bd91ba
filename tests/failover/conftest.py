"""One replica set for all tests of this package, whole again after each."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.failover.replica_set import ReplicaSet


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def shared() -> AsyncIterator[ReplicaSet]:
    async with ReplicaSet() as replicas:
        yield replicas


@pytest_asyncio.fixture(loop_scope="package")
async def replicas(shared: ReplicaSet) -> AsyncIterator[ReplicaSet]:
    yield shared
    await shared.repair()
