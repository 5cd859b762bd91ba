"""Lease renewal, in a thread and on a connection of its own, so that nothing an engine does can delay it."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from bson import ObjectId
from pymongo.errors import PyMongoError

from broker.cancellation import cancel_all
from broker.database import connect
from broker.queue import JobQueue
from config import Settings

log = logging.getLogger(__name__)

# Seconds until a direct lease is confirmed, and until a renewal that has failed is tried again.
_SOON = 1.0


class LeaseKeeper:
    """Renews the leases of the jobs that this worker holds, three times per lease, drain included.

    A direct lease is confirmed, by its first renewal, within a second.

    ``on_lost`` is called, in the thread of the loop that made this, with the id and token of each job that somebody
    else has taken or ended.
    """

    def __init__(self, settings: Settings, uri: str, on_lost: Callable[[ObjectId, str], None]) -> None:
        self._settings = settings
        self._uri = uri
        self._on_lost = on_lost
        self._caller = asyncio.get_running_loop()
        self._held: dict[ObjectId, str] = {}
        self._unconfirmed: dict[ObjectId, str] = {}
        self._guard = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def hold(self, job_id: ObjectId, token: str, *, direct: bool = False) -> None:
        with self._guard:
            self._held[job_id] = token
            if direct:
                self._unconfirmed[job_id] = token

    def drop(self, job_id: ObjectId, token: str) -> None:
        with self._guard:
            for leases in (self._held, self._unconfirmed):
                if leases.get(job_id) == token:
                    del leases[job_id]

    async def stop(self) -> None:
        self._stopped.set()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        asyncio.run(self._renew_all())

    async def _renew_all(self) -> None:
        database = connect(self._uri, self._settings.mongodb.database)
        renewing = asyncio.create_task(self._keep(JobQueue(database, self._settings.models, self._settings.queue)))
        stopped = asyncio.create_task(asyncio.to_thread(self._stopped.wait))
        try:
            await asyncio.wait({renewing, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if renewing.done():
                renewing.result()
        finally:
            await cancel_all([renewing])
            await database.close()

    async def _keep(self, queue: JobQueue) -> None:
        interval = self._settings.queue.lease / 3
        due = time.monotonic()
        while True:
            everything = time.monotonic() >= due
            if await self._renew(queue, self._held if everything else self._unconfirmed) and everything:
                due = time.monotonic() + interval
            await asyncio.sleep(min(interval, _SOON))

    async def _renew(self, queue: JobQueue, leases: dict[ObjectId, str]) -> bool:
        """Whether the database has answered."""
        with self._guard:
            held = dict(leases)
        if not held:
            return True
        try:
            lost = await queue.renew(held)
        except PyMongoError as error:
            log.warning("leases not renewed, trying again: %s", error)
            return False
        with self._guard:
            for job_id in held:
                self._unconfirmed.pop(job_id, None)
        for job_id in lost:
            self._caller.call_soon_threadsafe(self._on_lost, job_id, held[job_id])
        return True
