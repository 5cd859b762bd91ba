"""What ``python -m tests.fuzz_api`` does for ten minutes: for two in CI, and for a while wherever all tests are run."""

import os
from pathlib import Path

from tests.fuzz_api import config, fuzz_all
from tests.system import System

SECONDS = 120 if os.environ.get("CI") else 30


def test_whatever_is_sent_is_answered_as_described(tmp_path: Path, mongod_uri: str) -> None:
    with System(tmp_path, mongod_uri, "fuzz_api", config()) as system:
        assert fuzz_all(system, SECONDS, seed=1) == []
