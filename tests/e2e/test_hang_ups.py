"""Clients who hang up, at each stage of their request."""

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from typing import Any, TypeAlias
from uuid import uuid4

import httpx
import pytest
from bson import ObjectId
from pymongo import AsyncMongoClient, MongoClient
from pymongo.asynchronous.database import AsyncDatabase

from tests.conditions import eventually
from tests.e2e.streams import (
    PATH,
    SERVED,
    Reader,
    body,
    client,
    data_of,
    ended,
    result_of,
    served,
    so_many,
    status,
    system,
)
from tests.system import System

# Seconds within which a job whose client has gone is cancelled: one on a quiet machine, which this one need not be.
# By itself none of the jobs here would end within minutes.
SOON = 10.0
Worker: TypeAlias = subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, mongod_uri: str) -> Iterator[System]:
    """With a gateway. For which of the tests a worker serves SERVED, they say."""
    name = f"test_{uuid4().hex}"
    with system(tmp_path_factory.mktemp("hang-ups"), mongod_uri, name) as running:
        running.gateway()
        running.sign_in()
        yield running
    with MongoClient[dict[str, Any]](mongod_uri) as database:
        database.drop_database(name)


@pytest.fixture(scope="module")
def worker(running: System) -> subprocess.Popen[bytes]:
    return running.start("worker", "--models", ",".join(SERVED))


async def is_cancelled(http: httpx.AsyncClient, job: str) -> None:
    """Soon."""

    async def cancelled() -> bool:
        return await status(http, job) == "cancelled"

    await eventually(cancelled, within=SOON)


async def jobs(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await http.get("/api/jobs")).json()["jobs"]
    return found


async def raw(running: System, text: bytes, of: int) -> asyncio.StreamWriter:
    """A connection on which ``text`` was sent of a body of ``of`` bytes."""
    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
    head = f"POST {PATH} HTTP/1.1\r\nHost: roundhouse\r\nContent-Type: application/json\r\n"
    head += f"Authorization: {running.http.headers['Authorization']}\r\nContent-Length: {of}\r\n\r\n"
    writer.write(head.encode() + text)
    await writer.drain()
    return writer


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


def content(*given: Any, **more: Any) -> bytes:
    return httpx.Request("POST", "http://roundhouse", json=body(*given, **more)).content


async def newest(http: httpx.AsyncClient, before: list[dict[str, Any]], *statuses: str) -> str:
    """The id of the one job more than ``before``, once it has one of ``statuses``."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        found[:] = (await jobs(http))[: -len(before) or None]
        return bool(found) and found[0]["status"] in statuses

    await eventually(there)
    (job,) = found
    return str(job["request_id"])


async def place_is_free(http: httpx.AsyncClient, model: str) -> None:
    async def free() -> bool:
        queue = (await http.get(f"/admin/queue/{model}")).json()
        return bool(queue["waiting"] == queue["processing"] == 0)

    await eventually(free, within=SOON)


async def test_before_the_body_is_whole_nothing_is_accepted(running: System) -> None:
    """That the gateway has seen it go the next request shows, which it accepts."""
    text = content("forgotten")
    async with client(running) as http:
        before = await jobs(http)
        await hang_up(await raw(running, text[:-10], len(text)))
        writer = await raw(running, text, len(text))
        job = await newest(http, before, "queued")
        await hang_up(writer)
        await is_cancelled(http, job)
        assert len(await jobs(http)) == len(before) + 1


@pytest.mark.parametrize("stream", [True, False])
async def test_while_the_job_is_queued(running: System, stream: bool) -> None:
    text = content("forgotten", stream=stream)
    async with client(running) as http:
        before = await jobs(http)
        writer = await raw(running, text, len(text))
        job = await newest(http, before, "queued")
        await hang_up(writer)
        await is_cancelled(http, job)
        await place_is_free(http, "forgotten")


async def test_before_the_first_token(running: System, worker: Worker) -> None:
    text = content("single")
    async with client(running) as http:
        await served(http, "single")
        worker.send_signal(signal.SIGSTOP)
        before = await jobs(http)
        writer = await raw(running, text, len(text))
        job = await newest(http, before, "queued", "processing")
        await hang_up(writer)
        await is_cancelled(http, job)
        worker.send_signal(signal.SIGCONT)
        await runs_at_once(http)


async def runs_at_once(http: httpx.AsyncClient) -> None:
    """The one place to run of ``single`` is free: another job of it says something and is gone."""
    async with http.stream("POST", PATH, json=body("single")) as response:
        await Reader(response).until(so_many(2))


async def test_in_mid_stream_the_engine_stops(running: System, worker: Worker, mongod_uri: str) -> None:
    name = running.environ["ROUNDHOUSE__MONGODB__DATABASE"]
    async with client(running) as http, AsyncMongoClient[dict[str, Any]](mongod_uri) as database:
        await served(http, "single")
        async with http.stream("POST", PATH, json=body("single")) as response:
            reader = Reader(response)
            await reader.until(so_many(5))
        await is_cancelled(http, reader.job)
        await runs_at_once(http)
        pieces = await stored(database[name], reader.job)
        await runs_at_once(http)
        assert await stored(database[name], reader.job) == pieces < 1500, "of 10,000"


async def stored(database: AsyncDatabase[dict[str, Any]], job: str) -> int:
    """Events of the job's answer."""
    return sum([len(chunk["events"]) async for chunk in database["chunks"].find({"_id.job": ObjectId(job)})])


async def test_while_a_whole_answer_is_waited_for(running: System, worker: Worker) -> None:
    text = content("single", stream=False)
    async with client(running) as http:
        await served(http, "single")
        before = await jobs(http)
        writer = await raw(running, text, len(text))
        job = await newest(http, before, "processing")
        await hang_up(writer)
        await is_cancelled(http, job)
        await runs_at_once(http)


async def test_after_the_last_event_nothing_is_cancelled(running: System, worker: Worker) -> None:
    async with client(running) as http:
        await served(http, "talker")
        async with http.stream("POST", PATH, json=body(max_tokens=3)) as response:
            reader = Reader(response)
            await reader.until(lambda reader: b"[DONE]" in reader.whole_events)
        assert data_of(reader.text)[-1] == "[DONE]"
        assert await status(http, reader.job) == "completed"


async def test_who_wants_it_to_go_on_gets_it_later(running: System, worker: Worker) -> None:
    """By the model's configuration, or because an Idempotency-Key says that somebody will come back."""
    keyed = {"Idempotency-Key": "again"}
    async with client(running) as http:
        await served(http, "steadfast")
        readers = []
        for asked, headers in ((body("steadfast"), {}), (body("talker"), keyed)):
            async with http.stream("POST", PATH, json=asked, headers=headers) as response:
                readers.append(Reader(response))
                await readers[-1].until(so_many(3))
        whole = [await ended(http, reader.job) for reader in readers]
        assert [job["status"] for job in whole] == ["completed", "completed"]
        async with http.stream("POST", PATH, json=body("talker"), headers=keyed) as response:
            again = Reader(response)
            await again.to_the_end()
        assert again.job == readers[1].job
        assert again.text.startswith(readers[1].whole_events)
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in data_of(again.text)[:-1])
        assert text == result_of(whole[1])
