"""Long payloads: in files beside their jobs, one for each that is of use, and none for what finds no place."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo.asynchronous.database import AsyncDatabase

from broker.broker import Broker
from broker.cleanup import Cleaner
from broker.errors import IdempotencyConflict, QueueFull
from broker.job import BatchLine, Idempotency, Job, NewJob
from broker.payloads import INLINE_LIMIT, unstow
from tests.deployments import default_config, make_settings

DAY = 86_400.0
MESSAGES = [{"role": "user", "content": "x" * (INLINE_LIMIT + 1)}]


@pytest.fixture
async def broker(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> AsyncIterator[Broker]:
    config = default_config()
    config["models"]["simulator"] |= {"max_concurrent": 2, "max_waiting": 0}
    opened = await Broker.open(make_settings(tmp_path, mongod_uri, database.name, config))
    opened.start()
    await opened.ready.wait()
    yield opened
    await opened.close()


def long(**more: Any) -> NewJob:
    return NewJob("chat", "simulator", "ann", {"messages": MESSAGES, "temperature": 0}, **more)


async def files(broker: Broker) -> int:
    return await broker.database.handle["files.files"].count_documents({})


async def test_long_parts_are_kept_in_a_file(broker: Broker) -> None:
    job = await broker.submit(long())
    stored = await broker.reader.get(str(job.id), None)
    assert stored.payload == {"temperature": 0}
    assert await unstow(broker.files, stored) == {"messages": MESSAGES, "temperature": 0}
    assert await files(broker) == 1


async def test_nothing_is_stored_for_what_finds_no_place(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    put = []

    async def stored(_: Any, job: ObjectId, *__: Any) -> None:
        put.append(job)

    for _ in range(2):
        await broker.queue.submit(NewJob("chat", "simulator", "ann", {}))
    monkeypatch.setattr(type(broker.files), "put", stored)
    for batch in (None, BatchLine(ObjectId(), 0)):
        with pytest.raises(QueueFull):
            await broker.submit(long(batch=batch))
    assert put == []


async def test_a_line_that_is_let_in_twice_has_one_file(broker: Broker) -> None:
    new = long(batch=BatchLine(ObjectId(), 0), id=ObjectId())
    first, second = await broker.submit(new), await broker.submit(new)
    assert first.payload_file == second.payload_file
    assert await files(broker) == 1


async def test_a_request_that_comes_again_leaves_no_file(broker: Broker) -> None:
    key = Idempotency("once", "a")
    first = await broker.submit(long(idempotency=key))
    assert (await broker.submit(long(idempotency=key))).id == first.id
    with pytest.raises(IdempotencyConflict):
        await broker.submit(long(idempotency=Idempotency("once", "b")))
    assert await files(broker) == 1


async def test_what_an_earlier_answer_answers_shares_its_payload_for_as_long_as_either_is_kept(broker: Broker) -> None:
    first = await _answered(broker)
    second = await broker.submit(long(fingerprint="f", reuse=True))
    assert (second.pages_of, second.payload_file) == (first.id, first.payload_file)
    assert await files(broker) == 1
    cleaner = Cleaner(broker.database, broker.files, broker.pages, 15 * DAY)
    for going, left in ((first, 1), (second, 0)):
        older = {"$subtract": ["$finished_at", round(16 * DAY * 1000)]}
        await broker.database.jobs.update_one({"_id": going.id}, [{"$set": {"finished_at": older}}])
        assert await cleaner.clean() == 1
        assert await files(broker) == left


async def _answered(broker: Broker) -> Job:
    """A job whose answer may be used again."""
    await broker.submit(long(fingerprint="f"))
    [claimed] = (await broker.queue.claim("simulator", "worker-1")).jobs
    claimed = replace(claimed, fingerprint="f")
    await broker.answers.add(claimed, {"choices": []})
    assert await broker.queue.complete(claimed, {"result": {"choices": []}})
    return await broker.reader.get(str(claimed.id), None)
