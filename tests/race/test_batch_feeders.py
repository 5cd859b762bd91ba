"""Feeders of batches that die between any two writes, and several that act at the same time."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo.asynchronous.database import AsyncDatabase

from broker.batch import NewBatch
from broker.broker import Broker
from broker.database import ensure_schema
from broker.job import Job
from broker.uploads import public_id
from config import Settings
from gateway.app import create_app
from gateway.v1.batches.feeder import BatchFeeder
from tests.conditions import eventually
from tests.deployments import default_config, make_settings, worker_on

CHAT = "/v1/chat/completions"
LINES = 24
# Every write that a feeder makes goes through one of these.
_WRITES = {
    "batches": ("begin", "reject", "advance", "settle", "close", "expire", "assembled", "end"),
    "uploads": ("add",),
    "queue": ("submit", "submit_refused", "cancel_batch"),
    "files": ("delete",),
}


class Killed(BaseException):
    """As nothing of a process goes on that was killed."""


class Mortal:
    """A feeder of a process that dies at its ``lives``-th write, ``late``: when that is done, but not heard of."""

    def __init__(self, settings: Settings, broker: Broker, lives: int, *, late: bool) -> None:
        self._left = lives
        self._late = late
        self.dead = False
        for part, names in _WRITES.items():
            for name in names:
                owner = getattr(broker, part)
                setattr(owner, name, self._mortal(getattr(owner, name)))
        app = create_app(settings, broker)
        self.feeder = BatchFeeder(app.state.context)

    def _mortal(self, write: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def written(*arguments: Any, **named: Any) -> Any:
            if self.dead:
                raise Killed
            self._left -= 1
            if self._left < 0:
                self.dead = True
                if self._late:
                    await write(*arguments, **named)
                raise Killed
            return await write(*arguments, **named)

        return written


@pytest.fixture
def settings(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Settings:
    config = default_config()
    config["models"]["simulator"] |= {"tokens": 2, "max_concurrent": 6, "max_waiting": 6}
    return make_settings(tmp_path, mongod_uri, database.name, config)


@asynccontextmanager
async def process(settings: Settings) -> AsyncIterator[Broker]:
    """What a gateway has of the database, without its background work."""
    broker = await Broker.open(settings)
    try:
        yield broker
    finally:
        await broker.database.close()


def request(number: int) -> bytes:
    body: dict[str, Any] = {"model": "simulator", "messages": [{"role": "user", "content": f"line {number}"}]}
    if number % 6 == 4:
        body["simulate"] = {"fault": "reject"}
    line = {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": body}
    return json.dumps(line).encode() + b"\n"


async def submit(broker: Broker) -> str:
    await ensure_schema(broker.database, retention=3600.0)
    upload_id = ObjectId()
    async with broker.files.writer(upload_id, "in.jsonl") as stream:
        for number in range(LINES):
            await stream.write(request(number))
    upload = await broker.uploads.add(upload_id, "ann", "in.jsonl", "batch", 1, stream.id)
    made = NewBatch("ann", "user", CHAT, upload.id, upload.content, 3600.0)
    return (await broker.batches.create(made)).public_id


async def lines_of(broker: Broker, batch_id: str, kind: str) -> list[dict[str, Any]]:
    outputs = (await broker.batches.get(batch_id, None)).outputs or {}
    upload = await broker.uploads.get(public_id(outputs[kind].id), "ann")
    return [json.loads(line) for line in (await broker.files.get(upload.content)).splitlines()]


async def check(broker: Broker, batch_id: str) -> None:
    """Every line was answered once."""
    batch = await broker.batches.get(batch_id, None)
    failed = [f"line-{number}" for number in range(LINES) if number % 6 == 4]
    answered = [f"line-{number}" for number in range(LINES) if number % 6 != 4]
    assert batch.status == "completed"
    assert [line["custom_id"] for line in await lines_of(broker, batch_id, "output")] == answered
    assert [line["custom_id"] for line in await lines_of(broker, batch_id, "errors")] == failed
    counts = await broker.batches.counts(batch)
    assert (counts.total, counts.completed, counts.failed) == (LINES, len(answered), len(failed))
    jobs = [Job.from_document(job) async for job in broker.database.jobs.find({})]
    assert Counter(job.batch.line for job in jobs if job.batch) == Counter(range(LINES))
    assert await broker.database.jobs.count_documents({"place": {"$exists": True}}) == 0
    uploads, more = await broker.uploads.listed("ann")
    assert (len(uploads), more) == (3, False)


async def is_open(broker: Broker) -> bool:
    return bool(await broker.batches.open())


async def live(feeder: BatchFeeder, broker: Broker, mortal: Mortal | None = None) -> None:
    """Takes steps until the batch has ended, or the feeder has died."""
    while await is_open(broker) and not (mortal and mortal.dead):
        await feeder.step()
        if reading := list(feeder.reading.values()):
            await asyncio.wait(reading)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(4))
async def test_feeders_that_are_killed_again_and_again_have_each_line_answered_once(
    settings: Settings, seed: int
) -> None:
    chance = random.Random(seed)
    deaths = 0
    async with process(settings) as watcher:
        batch_id = await submit(watcher)
        async with worker_on(settings):
            while await is_open(watcher):
                async with process(settings) as broker:
                    mortal = Mortal(settings, broker, chance.randrange(14), late=chance.random() < 0.5)
                    try:
                        await live(mortal.feeder, watcher, mortal)
                    except Killed:
                        assert mortal.dead
                deaths += mortal.dead
        await check(watcher, batch_id)
    assert deaths >= 3


async def test_several_feeders_at_the_same_time_have_each_line_answered_once(settings: Settings) -> None:
    async with process(settings) as watcher, process(settings) as first, process(settings) as second:
        batch_id = await submit(watcher)
        feeders = [BatchFeeder(create_app(settings, broker).state.context) for broker in (first, second, second)]
        async with worker_on(settings):
            await asyncio.gather(*(live(feeder, watcher) for feeder in feeders))
        await check(watcher, batch_id)


async def test_jobs_that_were_let_in_after_the_end_are_cancelled(settings: Settings) -> None:
    async with process(settings) as broker, process(settings) as late:
        batch_id = await submit(broker)
        feeder = BatchFeeder(create_app(settings, broker).state.context)
        slow = BatchFeeder(create_app(settings, late).state.context)

        async def fed() -> bool:
            await feeder.step()
            return bool(await broker.batches.inside("simulator"))

        await eventually(fed)
        [seen] = await late.batches.open()
        await broker.batches.cancel(batch_id, None)
        await live(feeder, broker)
        # It has not noticed, and lets the next ones in.
        await slow.feed(seen, 3)
        assert len(await broker.batches.inside("simulator")) == 3
        other = await submit(broker)

        async def dropped() -> bool:
            await feeder.step()
            held = await broker.batches.inside("simulator")
            return bool(held) and {f"batch_{batch}" for batch, _ in held} == {other}

        await eventually(dropped)
        ended = await broker.batches.get(batch_id, None)
        assert (ended.status, ended.failed) == ("cancelled", LINES)
