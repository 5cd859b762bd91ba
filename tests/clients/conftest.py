"""One gateway and one worker as real processes, which all clients here ask over HTTP, and nothing else."""

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import httpx
import openai
import pytest
from pymongo import MongoClient

from tests.clients.offline import loopback_only
from tests.clients.published import AsyncChecking, Checking
from tests.deployments import patient_config
from tests.system import System

# Seconds of silence after which a test is given up: clients wait for ten minutes by themselves.
TIMEOUT = 30.0


class Site:
    """Where clients find the system: ``url`` is what they take for OpenAI's, ``key`` what they take for its key."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.url = f"{system.url}/v1"
        self.key = system.http.headers["Authorization"].removeprefix("Bearer ")

    def jobs(self, client: str) -> list[dict[str, Any]]:
        """Of those that were sent with the X-Client-ID ``client``."""
        response = self.system.http.get("/api/jobs", params={"client": client})
        assert response.status_code == 200, response.text
        return list(response.json()["jobs"])

    def job(self, client: str) -> dict[str, Any]:
        """The one of ``client``, once it is stored: who waits no longer may be gone before."""
        deadline = time.monotonic() + TIMEOUT
        while not (jobs := self.jobs(client)):
            assert time.monotonic() < deadline, "there is no job"
            time.sleep(0.05)
        [job] = jobs
        return job

    def ready(self, within: float = 120.0) -> None:
        """Returns when the worker serves every model."""
        deadline = time.monotonic() + within
        while {model["state"] for model in self.system.http.get("/v1/models").json()["data"]} != {"ready"}:
            assert time.monotonic() < deadline, "some model is not ready"
            time.sleep(0.05)


def site_config() -> dict[str, Any]:
    config = patient_config()
    # Within reach of nobody here, so that the headers that tell of limits are sent.
    config["rate_limit"] = {"enabled": True, "requests_per_minute": 600_000, "burst": 10_000}
    config["models"] |= {
        "vectors": {"task": "embedding", "engine": "simulator"},
        # 50 s of an answer, for those who do not wait for its end.
        "slow": {"task": "chat", "engine": "simulator", "tokens_per_second": 20, "tokens": 1000},
        # Tried once, so that it fails at once.
        "frail": {"task": "chat", "engine": "simulator", "max_retries": 0, "faults": True},
    }
    return config


@pytest.fixture(scope="session")
def site(mongod_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    database = f"test_{uuid4().hex}"
    with System(tmp_path_factory.mktemp("clients"), mongod_uri, database, site_config()) as system:
        system.start("worker")
        system.gateway()
        system.sign_in()
        site = Site(system)
        site.ready()
        yield site
    with MongoClient[dict[str, Any]](mongod_uri) as client:
        client.drop_database(database)


@pytest.fixture(autouse=True)
def offline() -> Iterator[None]:
    with loopback_only():
        yield


@pytest.fixture
def client(site: Site) -> Iterator[openai.OpenAI]:
    """OpenAI's own, held to TIMEOUT; what it is sent is held against the published schema."""
    with openai.OpenAI(base_url=site.url, api_key=site.key, timeout=TIMEOUT, http_client=checked_http()) as client:
        yield client


@pytest.fixture
async def aclient(site: Site) -> AsyncIterator[openai.AsyncOpenAI]:
    http = checked_ahttp()
    async with openai.AsyncOpenAI(base_url=site.url, api_key=site.key, timeout=TIMEOUT, http_client=http) as client:
        yield client


def checked_http() -> httpx.Client:
    return openai.DefaultHttpxClient(transport=Checking(httpx.HTTPTransport()))


def checked_ahttp() -> httpx.AsyncClient:
    return openai.DefaultAsyncHttpxClient(transport=AsyncChecking(httpx.AsyncHTTPTransport()))
