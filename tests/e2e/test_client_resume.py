"""Streams of the client while gateways are killed under them: what it hands out is what the job has stored."""

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pymongo.asynchronous.database import AsyncDatabase

from roundhouse import AsyncClient, Client, End, Piece, Text, Unreachable
from tests.deployments import PASSWORD, patient_config
from tests.ports import free_port
from tests.system import System

TOKENS = 150
AS = {"username": "admin", "password": PASSWORD}
# Pieces after which a gateway is killed; the answer takes ten seconds, so that it goes on while nobody listens.
KILLS = (3, 40, 90)


@pytest.fixture
def system(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Iterator[System]:
    config = patient_config()
    config["models"]["simulator"] |= {"tokens": TOKENS, "tokens_per_second": 15}
    with System(tmp_path, mongod_uri, database.name, config) as system:
        yield system


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """``kill -9`` of a gateway with its supervisor, so that nobody listens any more."""
    supervisor = psutil.Process(process.pid)
    supervisor.suspend()
    for child in supervisor.children():
        child.kill()
    process.kill()
    process.wait()


def check(system: System, job_id: str | None, pieces: list[Piece]) -> None:
    assert job_id is not None
    system.sign_in()
    job = system.ended(job_id)
    assert "".join(piece.text for piece in pieces if isinstance(piece, Text)) == job["result"]["message"]["content"]
    assert len(pieces) == TOKENS + 2  # the simulator's name before them, and the end after them
    assert isinstance(pieces[-1], End)
    assert job["attempts"] == 1


def killed_and_started_again(system: System) -> Callable[[], None]:
    gateways = [system.gateway()]

    def fault() -> None:
        kill_group(gateways.pop())
        gateways.append(system.start("gateway"))

    return fault


def killed_under_its_supervisor(system: System) -> Callable[[], None]:
    supervisor = system.gateway()

    def fault() -> None:
        deadline = time.monotonic() + 60
        # After the fault before, while the client reads what it had been sent until then, there may be none yet.
        while not (children := psutil.Process(supervisor.pid).children()):
            assert time.monotonic() < deadline, "the supervisor starts no gateway"
            time.sleep(0.05)
        [child] = children
        child.kill()

    return fault


def stopped_politely(system: System) -> Callable[[], None]:
    gateways = [system.gateway()]

    def fault() -> None:
        gateways[0].terminate()
        assert gateways.pop().wait(30) == 0
        # One that is told to stop before it has begun has not learnt to do so politely.
        gateways.append(system.gateway())

    return fault


FAULTS = [killed_and_started_again, killed_under_its_supervisor, stopped_politely]


@pytest.mark.parametrize("prepare", FAULTS, ids=lambda fault: fault.__name__)
def test_a_stream_outlives_its_gateway(system: System, prepare: Callable[[System], Callable[[], None]]) -> None:
    fault = prepare(system)
    system.start("worker")
    pieces: list[Piece] = []
    with Client(system.url, **AS) as client, client.stream("simulator", "hello", timeout=120) as stream:
        for piece in stream:
            pieces.append(piece)
            if len(pieces) in KILLS:
                fault()
    system.healthy()
    check(system, stream.job_id, pieces)


async def test_many_streams_of_one_client_outlive_their_gateway(system: System) -> None:
    fault = await asyncio.to_thread(killed_and_started_again, system)
    system.start("worker")
    begun = 0

    async def follow(client: AsyncClient, number: int) -> tuple[str | None, list[Piece]]:
        nonlocal begun
        pieces: list[Piece] = []
        async with client.stream("simulator", f"question {number}", timeout=120) as stream:
            async for piece in stream:
                pieces.append(piece)
                begun += len(pieces) == 20
                if begun == 8 and len(pieces) == 20:
                    await asyncio.to_thread(fault)
        return stream.job_id, pieces

    async with AsyncClient(system.url, **AS) as client:
        followed = await asyncio.gather(*(follow(client, number) for number in range(8)))
    await asyncio.to_thread(system.healthy)
    for job_id, pieces in followed:
        await asyncio.to_thread(check, system, job_id, pieces)


async def test_a_stream_goes_on_at_a_second_gateway(system: System) -> None:
    first = await asyncio.to_thread(system.gateway)
    first_url, port = system.url, free_port()
    system.environ["SERVER_PORT"] = str(port)
    system.http.base_url = f"http://127.0.0.1:{port}"
    await asyncio.to_thread(system.gateway)
    system.start("worker")
    pieces: list[Piece] = []
    async with (
        AsyncClient([first_url, f"http://127.0.0.1:{port}"], **AS) as client,
        client.stream("simulator", "hello", timeout=120) as stream,
    ):
        async for piece in stream:
            pieces.append(piece)
            if len(pieces) == KILLS[1]:
                await asyncio.to_thread(kill_group, first)
        assert client.url.endswith(str(port))
    await asyncio.to_thread(check, system, stream.job_id, pieces)


def test_a_gateway_that_stays_away_is_given_up_and_the_job_is_found_later(system: System) -> None:
    gateway = system.gateway()
    system.start("worker")
    pieces: list[Piece] = []
    with Client(system.url, **AS, patience=1.0) as client:
        stream = client.stream("simulator", "hello")
        pieces.append(next(stream))
        kill_group(gateway)
        with pytest.raises(Unreachable) as raised:
            pieces.extend(stream)
        system.gateway()
        job = client.wait(raised.value.job_id or "", timeout=60)
    assert job.status == "completed"
    assert job.text is not None
    assert job.text.startswith("".join(piece.text for piece in pieces if isinstance(piece, Text)))
