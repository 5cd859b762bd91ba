"""Settings, gateways and workers for tests, on the run's mongod or on one of their own."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import yaml

from broker.broker import Broker
from broker.job import Job
from broker.job_updates import from_now
from broker.plans import Order, Overview
from config import Settings, load_settings
from gateway.app import create_app
from gateway.server import configured
from worker.engines.factory import build_engines
from worker.worker import Worker, new_identity

PASSWORD = "correct-horse-battery"
JWT_SECRET = "a secret that only the tests of roundhouse use"
# Of a leader that no other one comes after.
_LAST_EPOCH = 2**40


def default_config() -> dict[str, Any]:
    """A Tesseract, a quick simulator with faults, and short times everywhere."""
    return {
        "queue": {
            "lease": 2,
            "poll_interval": 0.2,
            "drain_timeout": 5,
            "retry_backoff": 0.05,
            "retry_backoff_max": 0.1,
        },
        "rate_limit": {"enabled": False},
        "models": {
            "tesseract": {"task": "ocr", "engine": "tesseract"},
            "simulator": {
                "task": "chat",
                "engine": "simulator",
                "tokens_per_second": 1000,
                "tokens": 20,
                "faults": True,
                "aliases": ["sim"],
            },
        },
        "defaults": {"ocr": ["tesseract"], "chat": ["simulator"]},
    }


def patient_config() -> dict[str, Any]:
    """For those who kill no worker: one that a busy machine leaves no time keeps its leases all the same."""
    config = default_config()
    config["queue"]["lease"] = 30
    return config


def environment(home: Path, uri: str | None, database: str) -> dict[str, str]:
    """What a process of the system needs in its environment; ``uri`` None: the embedded mongod of ``home``."""
    variables = {
        "ROUNDHOUSE_CONFIG": str(home / "config.yaml"),
        "ROUNDHOUSE_HOME": str(home / "state"),
        "ROUNDHOUSE__MONGODB__DATABASE": database,
        "ADMIN_PASSWORD": PASSWORD,
        "JWT_SECRET": JWT_SECRET,
    }
    return variables | ({} if uri is None else {"MONGODB_URI": uri})


def make_settings(home: Path, uri: str, database: str, config: dict[str, Any] | None = None) -> Settings:
    path = home / "config.yaml"
    path.write_text(yaml.safe_dump(config or default_config(), sort_keys=False))
    return load_settings(path, environment(home, uri, database))


@dataclass
class Gateway:
    """A gateway in this process, spoken to without a socket."""

    settings: Settings
    broker: Broker
    http: httpx.AsyncClient

    async def token(self, username: str = "admin", password: str = PASSWORD) -> str:
        form = {"grant_type": "password", "username": username, "password": password}
        response = await self.http.post("/auth/token", data=form)
        assert response.status_code == 200, response.text
        return str(response.json()["access_token"])

    async def sign_in(self, username: str = "admin", password: str = PASSWORD) -> None:
        self.http.headers["Authorization"] = f"Bearer {await self.token(username, password)}"

    async def ended(self, job_id: str) -> dict[str, Any]:
        """The job once it has ended."""
        while True:
            response = await self.http.get(f"/api/jobs/{job_id}", params={"wait": 5})
            body: dict[str, Any] = response.json()
            if body["status"] not in ("queued", "processing"):
                return body

    async def claimed(self, model: str, most: int = 1) -> list[Job]:
        """Jobs that waited, whose worker is the test now. Nobody renews their leases, so they last: a busy machine may
        take longer than one does."""
        jobs = list((await self.broker.queue.claim(model, "a test", most)).jobs)
        lease = [{"$set": {"lease_expires_at": from_now(600.0)}}]
        await self.broker.database.jobs.update_many({"_id": {"$in": [job.id for job in jobs]}}, lease)
        return jobs


@asynccontextmanager
async def gateway_on(settings: Settings) -> AsyncIterator[Gateway]:
    """A gateway that is ready, signed in as admin."""
    broker = await Broker.open(settings)
    app = create_app(settings, broker)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app):
        await broker.ready.wait()
        async with httpx.AsyncClient(transport=transport, base_url="http://roundhouse", timeout=60.0) as http:
            gateway = Gateway(settings, broker, http)
            await gateway.sign_in()
            yield gateway


@dataclass
class Served(Gateway):
    server: uvicorn.Server


@asynccontextmanager
async def listening(settings: Settings) -> AsyncIterator[Served]:
    """A gateway in this process on a socket of its own: connections can only be cut, or be WebSockets, there."""
    broker = await Broker.open(settings)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(configured(settings, broker))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await broker.ready.wait()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, timeout=30.0) as http:
            gateway = Served(settings, broker, http, server)
            await gateway.sign_in()
            try:
                yield gateway
            finally:
                broker.feed.close()
                server.should_exit = True
                await serving


@asynccontextmanager
async def worker_on(settings: Settings, *models: str) -> AsyncIterator[Worker]:
    """A worker in this process. At the end it hands back what it runs, at once."""
    broker = await Broker.open(settings, worker=new_identity())
    broker.start()
    worker = Worker(broker, build_engines(settings, models or None))
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        for _ in range(2):
            worker.drain()
        await running
        await broker.close()


async def order(broker: Broker, *orders: Order) -> None:
    """Makes ``orders`` all that stand. From the first time on nobody else plans."""
    assert await broker.plans.write(orders, Overview(), _LAST_EPOCH)
