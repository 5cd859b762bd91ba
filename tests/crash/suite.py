"""One run of the crash suite: start everything, strike it while clients work, heal it, and hold it to its promises."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from broker.broker import Broker
from broker.job import Document
from config import load_settings
from tests.conditions import eventually
from tests.crash.bounds import bound_breaches, dismissed
from tests.crash.clients import Clients, Ledger, Pace
from tests.crash.fleet import Fleet
from tests.crash.history import Breach, now, read_history
from tests.crash.plan import TOKENS, Errand, blows, errands
from tests.crash.tally import Tally
from tests.crash.verdict import Evidence, file_breaches
from tests.deployments import environment

LEASE = 2.0
CLIENTS = 16
# Seconds that the healed system has to end all that is open. A hang alone takes a timeout for each attempt.
_DRAIN = 240.0
# Seconds within which a gateway answers that was started, and a victim is found for a blow.
_START = 120.0


def config() -> dict[str, Any]:
    """Short leases, retries and timeouts; bounds that a handful of clients reaches."""
    return {
        "queue": {
            "lease": LEASE,
            "poll_interval": 0.2,
            "drain_timeout": 5,
            "retry_backoff": 0.1,
            "retry_backoff_max": 0.5,
        },
        "auth": {"access_token_ttl": "24h"},
        "rate_limit": {"enabled": False},
        "models": {
            "tesseract": {"task": "ocr", "engine": "tesseract", "max_concurrent": 2, "max_waiting": 6, "timeout": 60},
            "simulator": {
                "task": "chat",
                "engine": "simulator",
                "tokens_per_second": 50,
                "tokens": TOKENS,
                "faults": True,
                "max_concurrent": 10,
                "max_waiting": 30,
                "timeout": 10,
            },
        },
        "defaults": {"ocr": ["tesseract"], "chat": ["simulator"]},
    }


def _bounds() -> dict[tuple[str, str], int]:
    """The most places, and the most slots, that a model may ever have taken."""
    models = config()["models"]
    places = {(name, "place"): entry["max_concurrent"] + entry["max_waiting"] for name, entry in models.items()}
    return places | {(name, "slot"): entry["max_concurrent"] for name, entry in models.items()}


@dataclass(frozen=True, slots=True)
class Options:
    """``seconds``: after so many nothing new is submitted; None: until all ``jobs`` are."""

    jobs: int
    kills: int
    seed: int
    gateways: int = 2
    workers: int = 2
    seconds: float | None = None


Report = Callable[[str], None]


@dataclass
class Run:
    """``home``: an empty directory. ``report`` is told now and then how far things are."""

    options: Options
    home: Path
    report: Report
    ledger: Ledger = field(default_factory=Ledger)

    async def tally(self) -> Tally:
        """Does it all; raises only where the run itself could not be carried out."""
        options, begin = self.options, time.monotonic()
        todo = errands(options.seed, options.jobs)
        async with Fleet(self.home, config(), gateways=options.gateways, workers=options.workers) as fleet:
            async with self._broker(fleet) as broker:
                since = await now(broker.database)
                await self._under_fire(fleet, todo)
                self.report("healed; waiting until all has ended")
                breaches = await self._drained(broker)
                evidence = Evidence(self.ledger, todo)
                await evidence.collect(broker.database, broker.files)
                self.report("held to its promises")
                breaches += [*evidence.breaches(), *await file_breaches(broker)]
                breaches += await bound_breaches(fleet, broker, config()["models"])
                history = await read_history(broker.database, since)
                history.check_bounds(_bounds())
                breaches += history.breaches
            breaches += await dismissed(fleet, "gateway")
        breaches += [Breach("No process is left", None, " ".join(p.cmdline())) for p in fleet.leftovers()]
        left = len(list(fleet.temporary.iterdir()))
        return Tally(options, evidence, fleet, history, breaches, left, time.monotonic() - begin)

    @asynccontextmanager
    async def _broker(self, fleet: Fleet) -> AsyncIterator[Broker]:
        """For looking only: its background work is not started."""
        uri = await fleet.mongod.ensure()
        broker = Broker(load_settings(self.home / "config.yaml", environment(self.home, uri, "roundhouse")), uri)
        try:
            yield broker
        finally:
            await broker.database.close()

    async def _under_fire(self, fleet: Fleet, todo: Sequence[Errand]) -> None:
        options = self.options
        pace = Pace(blows(options.seed, options.jobs, options.kills, LEASE), lead=CLIENTS)
        limits = httpx.Limits(max_connections=2 * CLIENTS)
        async with httpx.AsyncClient(limits=limits) as http:
            until = math.inf if options.seconds is None else time.monotonic() + options.seconds
            clients = Clients(fleet.urls, http, self.ledger, pace, until)
            await asyncio.wait_for(clients.sign_in(), _START)
            striking = asyncio.create_task(self._strike(fleet, pace))
            telling = asyncio.create_task(self._tell(pace))
            try:
                await clients.run(todo, CLIENTS)
            finally:
                telling.cancel()
                await pace.finish()
                await asyncio.wait_for(striking, _START)
                await fleet.heal()

    async def _strike(self, fleet: Fleet, pace: Pace) -> None:
        while (blow := await pace.due()) is not None:
            await fleet.strike(blow)
            self.report(f"{pace.accepted} accepted; {blow.kind} of a {blow.target}")
            await pace.fell()

    async def _tell(self, pace: Pace) -> None:
        while True:
            await asyncio.sleep(5)
            ended = sum(promise.seen is not None for promise in self.ledger.promises.values())
            self.report(f"{pace.accepted} of {self.options.jobs} accepted, {pace.struck} struck, {ended} seen to end")

    async def _drained(self, broker: Broker) -> list[Breach]:
        """Waits until no job is open, and none that has ended holds anything; tells of those that do not get there."""
        held: list[Document] = [{name: {"$exists": True}} for name in ("place", "slot", "lease_expires_at")]
        stuck = await self._those_left(broker, {"status": {"$in": ["queued", "processing"]}}, _DRAIN)
        stuck |= await self._those_left(broker, {"$or": held}, 5 * LEASE)
        return [
            Breach("All ends when all is healed", job_id, "open, or with a number, to the last") for job_id in stuck
        ]

    async def _those_left(self, broker: Broker, busy: Document, within: float) -> set[str]:
        async def none_is_left() -> bool:
            return await broker.database.jobs.count_documents(busy, limit=1) == 0

        try:
            await eventually(none_is_left, within=within, every=0.2)
        except AssertionError:
            return {str(document["_id"]) async for document in broker.database.jobs.find(busy, {"_id": 1})}
        return set()
