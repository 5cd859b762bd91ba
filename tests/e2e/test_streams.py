"""Streams while one process after the other is killed, and many at once."""

import asyncio
import os
import signal
import socket
import statistics
import subprocess
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pymongo.asynchronous.database import AsyncDatabase

from broker.mongod import EmbeddedMongod
from tests.conditions import eventually
from tests.e2e.streams import (
    DONE,
    PATH,
    Reader,
    body,
    client,
    data_of,
    ended,
    events,
    last_id,
    memory,
    other_gateway,
    result_of,
    said,
    served,
    so_many,
    system,
)
from tests.system import System, kill

MB = 2**20


@pytest.fixture
async def running(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> AsyncIterator[System]:
    with system(tmp_path, mongod_uri, database.name) as running:
        yield running


async def test_a_stream_whose_gateway_is_killed_goes_on_at_another_byte_for_byte(running: System) -> None:
    gateway = running.gateway()
    running.sign_in()
    running.start("worker")
    url = other_gateway(running)
    async with client(running) as http, client(running, url) as other:
        await served(other, "lengthy")
        async with http.stream("POST", PATH, json=body("lengthy")) as response:
            broken = Reader(response)
            await broken.until(so_many(10))
            again = {"stream": "true"}
            async with other.stream("GET", f"{PATH}/{broken.job}", params=again) as unbroken_response:
                unbroken = Reader(unbroken_response)
                await broken.until(so_many(20))
                kill_all(gateway)
                with pytest.raises(httpx.TransportError):
                    await broken.to_the_end()
                told = broken.whole_events
                assert DONE not in told
                rest = await other.get(f"{PATH}/{broken.job}", params=again, headers={"Last-Event-ID": last_id(told)})
                assert events(told) + events(rest.content) == events(await unbroken.to_the_end())
        job = await ended(other, broken.job)
        assert said(unbroken.text) == result_of(job)
        assert data_of(unbroken.text)[-1] == "[DONE]"


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """``kill -9`` of a gateway's server and then of its supervisor, which would end it politely."""
    for server in psutil.Process(process.pid).children():
        server.kill()
    kill(process)


async def test_a_stream_whose_worker_is_killed_says_that_it_is_generated_anew(running: System) -> None:
    running.gateway()
    running.sign_in()
    worker = running.start("worker")
    async with client(running) as http:
        await served(http, "lengthy")
        async with http.stream("POST", PATH, json=body("lengthy")) as response:
            reader = Reader(response)
            await reader.until(so_many(5))
            kill(worker)
            running.start("worker")
            *_, last = data_of(await reader.to_the_end())
        assert last["error"]["code"] == "stream_restarted"
        job = await ended(http, reader.job)
        assert job["status"] == "completed"
        anew = await http.get(f"{PATH}/{reader.job}", params={"stream": "true"})
        assert said(anew.content) == result_of(job)
        assert data_of(anew.content)[-1] == "[DONE]"


async def test_a_stream_whose_worker_is_killed_before_it_said_anything_is_just_later(running: System) -> None:
    running.gateway()
    running.sign_in()
    worker = running.start("worker")
    async with client(running) as http:
        await served(http, "talker")
        worker.send_signal(signal.SIGSTOP)
        async with http.stream("POST", PATH, json=body()) as response:
            reader = Reader(response)
            kill(worker)
            running.start("worker")
            text = await reader.to_the_end()
        assert data_of(text)[-1] == "[DONE]"
        assert said(text) == result_of(await ended(http, reader.job))


async def test_a_stream_goes_on_when_a_killed_mongod_is_back(tmp_path: Path) -> None:
    with system(tmp_path, None, "streams") as running:
        running.gateway()
        running.sign_in()
        running.start("worker")
        mongod = EmbeddedMongod(tmp_path / "state")
        try:
            async with client(running) as http:
                await served(http, "lengthy")
                async with http.stream("POST", PATH, json=body("lengthy")) as response:
                    reader = Reader(response)
                    await reader.until(so_many(20))
                    pid = mongod.status().pid
                    assert pid is not None
                    os.kill(pid, signal.SIGKILL)
                    text = await reader.to_the_end()
                assert mongod.status().pid != pid
                job = await ended(http, reader.job)
                assert (said(text), job["attempts"]) == (result_of(job), 1)
                whole = await http.get(f"{PATH}/{reader.job}", params={"stream": "true"})
                assert events(whole.content) == events(text)
        finally:
            running.close()
            await mongod.stop(timeout=5)


async def test_200_streams_at_once_are_each_like_their_result_and_take_little_memory(running: System) -> None:
    gateway = running.gateway()
    running.sign_in()
    running.start("worker")

    async def ask(http: httpx.AsyncClient, number: int) -> tuple[str, bytes]:
        async with http.stream("POST", PATH, json=body(text=f"question {number}")) as response:
            reader = Reader(response)
            return reader.job, await reader.to_the_end()

    async with client(running) as http:
        await served(http, "talker")
        before = memory(gateway.pid)
        answers = await asyncio.gather(*(ask(http, number) for number in range(200)))
        after = memory(gateway.pid)
        for job, text in answers:
            assert data_of(text)[-1] == "[DONE]"
            assert said(text) == result_of(await ended(http, job))
    assert len({said(text) for _, text in answers}) == 200
    assert after - before < 60 * MB


class SlowReader:
    """Takes a byte a second, and has next to no buffer."""

    def __init__(self, running: System, text: bytes) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self._socket.connect(("127.0.0.1", running.port))
        head = f"POST {PATH} HTTP/1.1\r\nHost: roundhouse\r\nContent-Type: application/json\r\n"
        head += f"Authorization: {running.http.headers['Authorization']}\r\nContent-Length: {len(text)}\r\n\r\n"
        self._socket.sendall(head.encode() + text)
        self._socket.setblocking(False)
        self.head = b""
        self.taken = 0

    async def read(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.head.endswith(b"\r\n\r\n"):
            self.head += await loop.sock_recv(self._socket, 1)
        while True:
            self.taken += len(await loop.sock_recv(self._socket, 1))
            await asyncio.sleep(1)

    @property
    def job(self) -> str:
        lines = dict(line.split(": ", 1) for line in self.head.decode().split("\r\n")[1:] if line)
        return lines["x-request-id"]

    def close(self) -> None:
        self._socket.close()


async def test_a_reader_of_a_byte_a_second_costs_little_memory_and_slows_nobody(running: System) -> None:
    gateway = running.gateway()
    running.sign_in()
    running.start("worker")
    async with client(running) as http:
        await served(http, "torrent")
        alone = await _gap(http)
        before = memory(gateway.pid)
        text = httpx.Request("POST", running.url, json=body("torrent")).content
        slow = SlowReader(running, text)
        reading = asyncio.create_task(slow.read())

        async def has_begun() -> bool:
            return slow.taken > 0

        await eventually(has_begun)
        job = await ended(http, slow.job)
        beside = await _gap(http)
        after = memory(gateway.pid)
        assert not reading.done()
        reading.cancel()
        slow.close()
        assert job["status"] == "completed"
        assert len(result_of(job)) > 50_000
    assert after - before < 16 * MB
    # Whoever had to wait for him would wait for seconds; the rest is what else the machine does.
    assert beside < max(3 * alone, alone + 0.2)


async def _gap(http: httpx.AsyncClient) -> float:
    """Seconds between what comes: of three runs, the one in the middle."""
    return statistics.median([await _gaps(http) for _ in range(3)])


async def _gaps(http: httpx.AsyncClient) -> float:
    """Seconds: the 90th percentile of the gaps between what comes, of ten streams at once."""
    loop = asyncio.get_running_loop()

    async def ask(number: int) -> list[float]:
        async with http.stream("POST", PATH, json=body(text=f"question {number}", max_tokens=50)) as response:
            times = [loop.time() async for _ in response.aiter_raw()]
        return [later - sooner for sooner, later in pairwise(times[:-1])]

    gaps = sorted(gap for some in await asyncio.gather(*map(ask, range(10))) for gap in some)
    return gaps[int(len(gaps) * 0.9)]


async def test_a_stream_without_news_says_that_it_is_there(running: System) -> None:
    running.gateway()
    running.sign_in()
    async with client(running) as http, http.stream("POST", PATH, json=body()) as response:
        reader = Reader(response)
        await reader.until(lambda reader: reader.text.count(b":\n") >= 3)
        assert events(reader.text) == []
        running.start("worker")
        text = await reader.to_the_end()
        assert said(text) == result_of(await ended(http, reader.job))
