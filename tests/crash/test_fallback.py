"""A job whose worker is killed, and which another model takes over."""

from pathlib import Path
from typing import Any

from pymongo.asynchronous.database import AsyncDatabase

from tests.deployments import default_config
from tests.system import System, kill


def test_a_job_whose_last_attempt_died_with_its_worker_is_done_by_another_model(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    config = default_config()
    slow = {"task": "chat", "engine": "simulator", "tokens_per_second": 0.1, "max_retries": 0}
    config["models"]["slow"] = slow | {"max_concurrent": 1, "max_waiting": 0, "fallbacks": ["simulator"]}
    with System(tmp_path, mongod_uri, database.name, config) as system:
        system.gateway()
        system.sign_in()
        worker = system.start("worker")
        job_id = system.chat(model="slow")
        system.until(job_id, "processing")
        kill(worker)
        system.start("worker")
        job = system.ended(job_id)
        assert (job["status"], job["model"], job["attempts"]) == ("completed", "simulator", 1)
        assert [(hop["model"], hop["code"]) for hop in job["hops"]] == [("slow", "lease_expired")]
        # The place that it has left is free, and was never taken twice.
        assert system.http.get("/admin/queue/slow").json()["waiting"] == 0
        system.until(system.chat(model="slow"), "processing")
