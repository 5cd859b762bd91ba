"""Many calls at once on one client."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from itertools import count

import httpx
import pytest

from roundhouse import AsyncClient, DeadlinePassed, RoundhouseApiError
from tests.unit.roundhouse.fake import JOB, async_client, client, problem

MANY = 20
ADA = {"token": None, "username": "ada", "password": "pw"}
QUEUED = {"request_id": JOB, "status": "queued", "task": "chat", "model": "m", "priority": "normal"}


class Tokens:
    """A gateway that grants tokens, each of which it takes until the next."""

    def __init__(self) -> None:
        self.grants = 0
        self.refused = False

    def grant(self) -> httpx.Response:
        self.grants += 1
        if self.refused:
            return problem(400, "invalid_credentials")
        return httpx.Response(200, json={"access_token": f"a{self.grants}", "refresh_token": f"r{self.grants}"})

    def answer(self, request: httpx.Request) -> httpx.Response:
        good = request.headers["authorization"] == f"Bearer a{self.grants}"
        return httpx.Response(200, json=QUEUED) if good else problem(401, "token_expired")

    async def slowly(self, request: httpx.Request) -> httpx.Response:
        """Each call has come so far before the first is answered."""
        for _ in range(MANY):
            await asyncio.sleep(0)
        return self.grant() if request.url.path == "/auth/token" else self.answer(request)


async def test_many_calls_sign_in_once_and_once_more_when_the_token_is_over() -> None:
    gateway = Tokens()
    async with async_client(httpx.MockTransport(gateway.slowly), **ADA) as api:
        await asyncio.gather(*(api.job(JOB) for _ in range(MANY)))
        assert gateway.grants == 1
        gateway.grants += 1
        await asyncio.gather(*(api.job(JOB) for _ in range(MANY)))
        assert gateway.grants == 3


async def test_who_waited_for_a_sign_in_that_failed_does_not_try_it_again() -> None:
    gateway = Tokens()
    gateway.refused = True
    async with async_client(httpx.MockTransport(gateway.slowly), **ADA) as api:
        told = await asyncio.gather(*(api.job(JOB) for _ in range(MANY)), return_exceptions=True)
        assert {getattr(error, "code", None) for error in told} == {"invalid_credentials"}
        assert gateway.grants == 1
        with pytest.raises(RoundhouseApiError, match="invalid_credentials"):
            await api.job(JOB)
        assert gateway.grants == 2


async def test_who_waits_for_anothers_sign_in_does_so_for_as_long_as_he_has_time() -> None:
    gateway, asked, go_on = Tokens(), asyncio.Event(), asyncio.Event()

    async def held(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/auth/token":
            asked.set()
            await go_on.wait()
            return gateway.grant()
        return gateway.answer(request)

    async with async_client(httpx.MockTransport(held), **ADA) as api:
        left = asyncio.create_task(api.job(JOB))
        await asked.wait()
        with pytest.raises(DeadlinePassed):
            await api.submit_chat("m", "hello", timeout=0.05)
        waiting = asyncio.create_task(api.job(JOB))
        left.cancel()
        go_on.set()
        assert (await waiting).id == JOB
        assert gateway.grants == 1
        with suppress(asyncio.CancelledError):
            await left


def test_many_threads_sign_in_once() -> None:
    gateway, together = Tokens(), threading.Barrier(MANY)

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/auth/token":
            return gateway.answer(request)
        # All of them would meet here, were they let in.
        with suppress(threading.BrokenBarrierError):
            together.wait(0.2)
        return gateway.grant()

    with client(httpx.MockTransport(answer), **ADA) as api, ThreadPoolExecutor(MANY) as threads:
        assert {job.id for job in threads.map(api.job, [JOB] * MANY)} == {JOB}
    assert gateway.grants == 1


def test_a_thread_too_waits_for_anothers_sign_in_for_as_long_as_it_has_time() -> None:
    gateway, asked, go_on = Tokens(), threading.Event(), threading.Event()

    def held(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/auth/token":
            return gateway.answer(request)
        asked.set()
        assert go_on.wait(20.0)
        return gateway.grant()

    with client(httpx.MockTransport(held), **ADA) as api, ThreadPoolExecutor(1) as threads:
        first = threads.submit(api.job, JOB)
        assert asked.wait(20.0)
        with pytest.raises(DeadlinePassed):
            api.submit_chat("m", "hello", timeout=0.05)
        go_on.set()
        assert first.result().id == JOB


Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(connected: Connected) -> AsyncIterator[str]:
    server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=256)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_as_many_calls_are_on_their_way_at_once_as_there_are() -> None:
    number, most, all_there = count(1), 105, asyncio.Event()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if next(number) == most:
            all_there.set()
        await all_there.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        writer.close()
        await writer.wait_closed()

    async with listening(connected) as url, AsyncClient(url, token="t") as api:
        assert all(await asyncio.gather(*(api.healthy() for _ in range(most))))
