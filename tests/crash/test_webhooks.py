"""Webhooks when what tells them is killed at the worst of moments, with real processes and a receiver that counts."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.mongod import EmbeddedMongod
from tests.conditions import eventually
from tests.deployments import default_config
from tests.ports import free_port
from tests.receivers import Message, Receiver, Reply, receiver
from tests.system import System

OUTBOUND = {"webhooks": True, "allow_private_hosts": ["127.0.0.1"]}


class Held:
    """Keeps each message waiting for its answer until it is let go."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, _: Message) -> Reply:
        await self.open.wait()
        return 204, {}, b""


@pytest.fixture
async def hook() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


def config() -> dict[str, Any]:
    """A slow job takes four seconds: time enough to kill what it runs beside."""
    config = default_config() | {"outbound": OUTBOUND}
    config["models"]["simulator"]["tokens_per_second"] = 50
    return config


@pytest.fixture
def system(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Iterator[System]:
    with System(tmp_path, mongod_uri, database.name, config()) as made:
        yield made


async def told(hook: Receiver, number: int) -> None:
    async def enough() -> bool:
        return len(hook.messages) >= number

    await eventually(enough, within=60)


def _logs(home: Path) -> str:
    return "".join(log.read_text() for log in home.glob("*-gateway.log"))


async def delivered(system: System, job: str) -> dict[str, Any]:
    """The job's one delivery, once it has succeeded."""
    found: list[dict[str, Any]] = []

    async def done() -> bool:
        answer = await asyncio.to_thread(system.http.get, f"/api/jobs/{job}/deliveries")
        found[:] = answer.json()["deliveries"]
        return [delivery["status"] for delivery in found] == ["delivered"]

    await eventually(done, within=60, every=0.1)
    return found[0]


async def start(system: System) -> Any:
    gateway = await asyncio.to_thread(system.gateway)
    await asyncio.to_thread(system.sign_in)
    return gateway


async def killed(gateway: Any) -> None:
    """``kill -9`` of all its processes at once: none is told by another one's end that it should stop in good order."""
    root = psutil.Process(gateway.pid)
    family = [root, *root.children(recursive=True)]
    for process in family:
        process.kill()
    await asyncio.to_thread(gateway.wait)
    await asyncio.to_thread(psutil.wait_procs, family)


async def secret(system: System) -> str:
    return str((await asyncio.to_thread(system.http.get, "/api/webhook-secret")).json()["secret"])


async def test_a_job_that_ends_while_no_gateway_lives_is_told_of_by_the_next_one(
    system: System, hook: Receiver, database: AsyncDatabase[dict[str, Any]]
) -> None:
    """kill -9 between a job's submit and its end: the worker ends it, and nobody is there to tell."""
    gateway = await start(system)
    system.start("worker")
    job = await asyncio.to_thread(system.chat, webhook_url=hook.url(), simulate={"fault": "slow"})
    await asyncio.to_thread(system.until, job, "processing")
    await killed(gateway)

    async def ended() -> bool:
        return await database.jobs.count_documents({"status": "completed", "webhook_due": True}) == 1

    await eventually(ended, within=60)
    assert hook.messages == []
    await start(system)
    done = await delivered(system, job)
    [message] = hook.messages
    assert message.id == done["id"] == f"msg_{job}_completed"
    assert message.verified(await secret(system))["data"]["request_id"] == job


async def test_a_message_on_its_way_when_its_gateway_is_killed_is_sent_again_under_the_same_id(
    system: System, hook: Receiver
) -> None:
    held = Held()
    hook.reply = held
    gateway = await start(system)
    system.start("worker")
    job = await asyncio.to_thread(system.chat, webhook_url=hook.url())
    await told(hook, 1)
    await killed(gateway)
    held.open.set()
    await start(system)
    done = await delivered(system, job)
    first, *others = hook.messages
    assert others, "it is not known to whoever comes next that the first one arrived"
    assert {message.id for message in hook.messages} == {done["id"]}
    assert {message.body for message in hook.messages} == {first.body}
    for message in hook.messages:
        message.verified(await secret(system))


async def test_of_two_gateways_one_tells_and_the_other_one_takes_over(system: System, hook: Receiver) -> None:
    teller = await start(system)
    system.start("worker")
    port = free_port()
    system.environ["SERVER_PORT"] = str(port)
    system.http.base_url = system.http.base_url.copy_with(port=port)
    await start(system)
    jobs = [await asyncio.to_thread(system.chat, webhook_url=hook.url()) for _ in range(10)]
    for job in jobs:
        await delivered(system, job)
    await killed(teller)
    jobs.append(await asyncio.to_thread(system.chat, webhook_url=hook.url()))
    await delivered(system, jobs[-1])
    assert sorted(message.id for message in hook.messages) == sorted(f"msg_{job}_completed" for job in jobs)


async def test_an_outcome_is_kept_in_mind_until_the_database_is_back(tmp_path: Path, hook: Receiver) -> None:
    """mongod is killed while a receiver makes up its mind: that it was told once is not forgotten."""
    held = Held()
    hook.reply = held
    mongod = EmbeddedMongod(tmp_path / "elsewhere")
    uri = await mongod.ensure()
    try:
        with System(tmp_path, uri, "roundhouse", config()) as system:
            await start(system)
            system.start("worker")
            job = await asyncio.to_thread(system.chat, webhook_url=hook.url())
            await told(hook, 1)
            pid = mongod.status().pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            held.open.set()

            async def waits() -> bool:
                return f"the outcome of webhook msg_{job}_completed waits for the database" in _logs(tmp_path)

            await eventually(waits, within=60, every=0.1)
            await mongod.ensure()
            done = await delivered(system, job)
            assert (len(hook.messages), len(done["attempts"])) == (1, 1)
    finally:
        await mongod.stop()
