"""A request for a model that is full is refused before its body is read, which may be large and slow to come."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.job import NewJob
from tests.deployments import default_config, gateway_on, make_settings


class Body:
    """A body that tells whether anybody has asked for it."""

    def __init__(self) -> None:
        self.read = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.read = True
        yield b"{"


@pytest.mark.parametrize(("task", "full", "named"), [("ocr", "tesseract", True), ("chat", "simulator", False)])
async def test_a_full_model_is_told_before_the_body_is_read(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]], task: str, full: str, named: bool
) -> None:
    """Where the request does not name its model, all models of the task are full."""
    config = default_config()
    config["models"][full] |= {"max_concurrent": 1, "max_waiting": 1}
    if named:
        config["models"]["other"] = {"task": task, "engine": config["models"][full]["engine"]}
    query = {"model": full} if named else {}
    async with gateway_on(make_settings(tmp_path, mongod_uri, database.name, config)) as gateway:
        jobs = [await gateway.broker.queue.submit(NewJob(task, full, "ann", {})) for _ in range(2)]
        body = Body()
        refused = await gateway.http.post(f"/api/{task}", params=query, content=body)
        assert (refused.status_code, refused.json()["code"], body.read) == (503, "queue_full", False)
        assert int(refused.headers["retry-after"]) > 0
        await gateway.broker.queue.cancel(jobs[0].id, None)
        looked_at = await gateway.http.post(f"/api/{task}", params=query, content=body)
        assert (looked_at.status_code in (400, 415), body.read) == (True, True), "there is a place again"
