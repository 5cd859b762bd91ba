"""The promises hold, and jobs flow again by themselves, when the replica set under the load loses its primary."""

from pathlib import Path

import pytest

from tests.failover.replica_set import ReplicaSet
from tests.failover.scenarios import ENOUGH, TROUBLES, endure

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.mark.parametrize("name", TROUBLES)
async def test_nothing_acknowledged_is_lost_when(name: str, replicas: ReplicaSet, tmp_path: Path) -> None:
    outcome = await endure(replicas, TROUBLES[name], tmp_path)
    print(name, outcome)
    assert outcome.acknowledged >= 3 * ENOUGH
    assert (outcome.completed, outcome.lost) == (outcome.acknowledged, 0)
