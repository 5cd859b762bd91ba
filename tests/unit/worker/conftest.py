from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from config import Settings
from tests.deployments import default_config, make_settings
from tests.unit.worker.workers import LEASE, MODEL, Configure


@pytest.fixture
def configure(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Configure:
    def make(lease: float = LEASE, **model: Any) -> Settings:
        config = default_config()
        config["queue"]["lease"] = lease
        config["queue"]["drain_timeout"] = 60
        config["models"][MODEL] |= model
        return make_settings(tmp_path, mongod_uri, database.name, config)

    return make
