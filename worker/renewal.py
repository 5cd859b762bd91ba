"""Lease renewal, in a thread and on a connection of its own, so that nothing an engine does can delay it."""

import asyncio
import logging
import threading
from collections.abc import Callable

from bson import ObjectId
from pymongo.errors import PyMongoError

from broker.database import connect
from broker.queue import JobQueue
from config import Settings

log = logging.getLogger(__name__)

# Seconds until a renewal that has failed is tried again.
_AGAIN = 1.0


class LeaseKeeper:
    """Renews the leases of the jobs that this worker holds, three times per lease, drain included.

    ``on_lost`` is called, in the thread of the loop that made this, with the id and token of each job that somebody
    else has taken or ended.
    """

    def __init__(self, settings: Settings, uri: str, on_lost: Callable[[ObjectId, str], None]) -> None:
        self._settings = settings
        self._uri = uri
        self._on_lost = on_lost
        self._caller = asyncio.get_running_loop()
        self._held: dict[ObjectId, str] = {}
        self._guard = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def hold(self, job_id: ObjectId, token: str) -> None:
        with self._guard:
            self._held[job_id] = token

    def drop(self, job_id: ObjectId, token: str) -> None:
        with self._guard:
            if self._held.get(job_id) == token:
                del self._held[job_id]

    async def stop(self) -> None:
        self._stopped.set()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        asyncio.run(self._renew_all())

    async def _renew_all(self) -> None:
        database = connect(self._uri, self._settings.mongodb.database)
        queue = JobQueue(database, self._settings.models, self._settings.queue)
        interval = pause = self._settings.queue.lease / 3
        try:
            # The loop must not block meanwhile: the driver's monitors run in it, and would take the database for gone.
            while not await asyncio.to_thread(self._stopped.wait, pause):
                pause = interval if await self._renew(queue) else min(interval, _AGAIN)
        finally:
            await database.close()

    async def _renew(self, queue: JobQueue) -> bool:
        """Whether the database has answered."""
        with self._guard:
            held = dict(self._held)
        if not held:
            return True
        try:
            lost = await queue.renew(held)
        except PyMongoError as error:
            log.warning("leases not renewed, trying again: %s", error)
            return False
        for job_id in lost:
            self._caller.call_soon_threadsafe(self._on_lost, job_id, held[job_id])
        return True
