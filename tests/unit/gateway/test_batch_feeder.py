"""What a feeder of batches reads of a file, and how it ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo.asynchronous.database import AsyncDatabase

from broker.batch import Batch, NewBatch
from broker.broker import Broker
from broker.database import ensure_schema
from broker.errors import QueueFull
from broker.job import NewJob
from gateway.app import create_app
from gateway.v1.batches.feeder import MOST_BYTES, BatchFeeder
from tests.deployments import make_settings

CHAT = "/v1/chat/completions"


@pytest.fixture
async def feeder(
    tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]
) -> AsyncIterator[BatchFeeder]:
    """One that takes no steps by itself."""
    settings = make_settings(tmp_path, mongod_uri, database.name)
    broker = await Broker.open(settings)
    await ensure_schema(broker.database, retention=3600.0)
    yield BatchFeeder(create_app(settings, broker).state.context)
    await broker.database.close()


def line(number: int) -> bytes:
    body = {"model": "simulator", "messages": [{"role": "user", "content": "hello"}]}
    content = {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": body}
    return json.dumps(content).encode() + b"\n"


async def submitted(feeder: BatchFeeder, content: bytes) -> Batch:
    broker, upload_id = feeder._broker, ObjectId()
    async with broker.files.writer(upload_id, "in.jsonl") as stream:
        await stream.write(content)
    return await broker.batches.create(NewBatch("ann", "user", CHAT, upload_id, stream.id, 3600.0))


async def in_progress(feeder: BatchFeeder, content: bytes, total: int) -> Batch:
    batch = await submitted(feeder, content)
    assert await feeder._batches.begin(batch, "simulator", total)
    return await again(feeder, batch)


async def again(feeder: BatchFeeder, batch: Batch) -> Batch:
    return await feeder._batches.get(batch.public_id, None)


async def test_blank_lines_before_a_line_that_finds_no_place_are_not_read_again(
    feeder: BatchFeeder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(new: NewJob) -> None:
        raise QueueFull(new.model, 1, 1)

    batch = await in_progress(feeder, b"\n \n" + line(0) + b"\n\n" + line(1), total=2)
    with monkeypatch.context() as patched:
        patched.setattr(feeder._broker, "submit", full)
        await feeder.feed(batch, 2)
    waiting = await again(feeder, batch)
    assert (waiting.fed, waiting.offset) == (0, 3)
    await feeder.feed(waiting, 1)
    after = await again(feeder, batch)
    assert (after.fed, after.offset) == (1, 3 + len(line(0)))
    await feeder.feed(after, 1)
    assert (await again(feeder, batch)).fed == 2


async def test_blank_lines_count_as_bytes_that_are_read_at_once(feeder: BatchFeeder) -> None:
    blank = b" " * (MOST_BYTES // 2) + b"\n"
    batch = await in_progress(feeder, line(0) + blank + line(1) + blank + line(2) + line(3), total=4)
    found = await feeder._next_lines(batch, 4)
    assert [one.data for one in found] == [one.rstrip() for one in (line(0), line(1), line(2))]


async def test_nothing_is_read_any_more_when_a_feeder_has_closed(
    feeder: BatchFeeder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also not by a step that is taken as it closes."""
    batches = [await submitted(feeder, line(number)) for number in range(2)]
    begun: list[asyncio.Task[None]] = []

    async def close() -> None:
        feeder._read(batches[1])
        begun.append(feeder.reading[batches[1].id])
        await close_duty()

    close_duty = feeder._duty.close
    monkeypatch.setattr(feeder._duty, "close", close)
    feeder._read(batches[0])
    begun.append(feeder.reading[batches[0].id])
    await feeder.close()
    assert all(task.done() for task in begun)
    assert feeder.reading == {}
