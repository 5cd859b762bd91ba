"""The bound on places under many submitters, several gateway processes and a worker that is killed."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from pymongo.asynchronous.database import AsyncDatabase

from tests.deployments import default_config
from tests.system import System


async def _submit_all(url: str, token: str, count: int) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=count)
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, limits=limits, headers=headers, timeout=60.0) as http:
        return await asyncio.gather(*(http.post("/api/chat", json={"message": str(n)}) for n in range(count)))


def test_two_hundred_submissions_at_once_take_exactly_twenty_places(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> None:
    config = default_config() | {"server": {"workers": 2}}
    with System(tmp_path, mongod_uri, database.name, config) as system:
        system.gateway()
        system.sign_in()
        token = system.http.headers["Authorization"].removeprefix("Bearer ")
        for _ in range(2):  # after the first twenty have completed, all twenty places are free again
            responses = asyncio.run(_submit_all(system.url, token, 200))
            assert Counter(response.status_code for response in responses) == {202: 20, 503: 180}
            assert all(r.headers["retry-after"] for r in responses if r.status_code == 503)
            accepted = {r.json()["request_id"] for r in responses if r.status_code == 202}
            assert system.http.get("/admin/queue/simulator").json()["waiting"] == 20
            worker = system.start("worker")
            jobs = [system.ended(job_id) for job_id in accepted]
            assert Counter(job["status"] for job in jobs) == {"completed": 20}
            worker.terminate()
            assert worker.wait(30) == 0
