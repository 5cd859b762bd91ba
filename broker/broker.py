"""The broker as a process uses it: everything around one database, opened and closed together."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from pymongo.errors import PyMongoError

from broker.answer_cache import AnswerCache
from broker.batches import Batches
from broker.cancellation import cancel_all
from broker.chunks import Chunks
from broker.cleanup import Cleaner
from broker.clockwork import Clockwork, Leadership, Reaper, Task, bury_workers
from broker.crashes import CrashLog
from broker.database import connect, ensure_schema, farewell
from broker.desired import DesiredModels
from broker.errors import BrokerError
from broker.feed import JobFeed
from broker.files import FileStore
from broker.job import Job, NewJob
from broker.lanes import Lanes
from broker.logs import failures_to
from broker.measurements import Measurements
from broker.mongod import EmbeddedMongod, MongodKeeper
from broker.pages import Pages
from broker.parameters import LiveModels
from broker.payloads import long_parts, stowed
from broker.plans import Plans
from broker.positions import Positions
from broker.queue import JobQueue
from broker.reader import JobReader
from broker.registry import Registry
from broker.reuse import Reuse
from broker.switching import Switching
from broker.uploads import Uploads
from broker.usage import Usage, habits
from config import Settings

log = logging.getLogger(__name__)

Preparation = Callable[[], Awaitable[None]]


async def database_uri(settings: Settings) -> str:
    """Where the database is: the configured one or, started if need be, the embedded one. Raises MongodError."""
    if settings.mongodb.uri is not None:
        return settings.mongodb.uri
    return await EmbeddedMongod(settings.home).ensure()


class Broker:
    """``worker``: the identity under which this process claims jobs; None where it submits them."""

    def __init__(self, settings: Settings, uri: str, *, worker: str | None = None) -> None:
        self.settings = settings
        self.uri = uri
        self.worker = worker
        self.database = database = connect(uri, settings.mongodb.database)
        self.lanes = lanes = Lanes(database, settings.queue.weights, settings.queue.aging)
        self.registry = Registry(database)
        workers = self.registry.known_workers if worker is None else None
        self.desired = DesiredModels(database)
        self.plans = Plans(database)
        self.measurements = Measurements(database, settings.models)
        self.models = LiveModels(settings.models, database)
        self.queue = JobQueue(database, self.models, settings.queue, lanes, workers)
        self.positions = Positions(database, lanes)
        self.reader = JobReader(database)
        self.files = FileStore(database)
        self.pages = Pages(database, self.files)
        self.uploads = Uploads(database, self.files)
        self.batches = Batches(database)
        self.chunks = Chunks(database)
        self.reuse = Reuse(database, settings.history.retention)
        self.answers = AnswerCache(database, settings)
        self.crashes = CrashLog(database)
        self.feed = JobFeed(database, settings.queue.poll_interval, worker=worker)
        self.feed.on_ended = self.queue.ended
        self.ready = asyncio.Event()
        self.usage = Usage(database)
        self.leadership = Leadership(database)
        self._clockwork = self._make_clockwork(settings)
        self._tasks: list[asyncio.Task[None]] = []

    def _make_clockwork(self, settings: Settings) -> Clockwork:
        reaper = Reaper(self.queue, self.crashes, settings.queue.lease)
        switching = Switching(self.database, settings, self.leadership)
        cleaner = Cleaner(self.database, self.files, self.pages, settings.history.retention)
        tasks = [
            Task("reap", 1.0, reaper.tick),
            Task("promote", 1.0, self.queue.promote),
            Task("plan", 1.0, switching.tick),
            Task("bury", 10.0, partial(bury_workers, self.registry, self.crashes, reaper)),
            Task("usage", 60.0, self.usage.roll_up),
            Task("clean", 300.0, cleaner.clean),
            Task("sweep", 600.0, self.files.sweep),
            Task("sweep pages", 600.0, self.pages.sweep),
        ]

        def follow() -> None:
            reaper.forget()
            switching.forget()

        return Clockwork(self.leadership, tasks, follow)

    @classmethod
    async def open(cls, settings: Settings, *, worker: str | None = None) -> "Broker":
        """Starts the embedded mongod where that is the database: raises MongodError.

        A configured database may be away: what needs it raises PyMongoError until it is back.
        """
        return cls(settings, await database_uri(settings), worker=worker)

    async def submit(self, new: NewJob) -> Job:
        """As ``JobQueue.submit``, for payloads of any length. Where an earlier answer will do, and there is one, the
        job ends as it comes, and needs no place."""
        if new.reuse and (origin := await self.answers.find(new)) is not None:
            # The same answer to the same payload: they share that, too.
            shared = new if origin.payload_file is None else stowed(new, origin.payload_file)
            return await self.queue.submit_answered(shared, origin)
        parts = long_parts(new)
        return await (self.queue.submit(new) if parts is None else self._submit_long(new, parts))

    async def _submit_long(self, new: NewJob, parts: bytes) -> Job:
        """Stores the payload's long ``parts`` first, but only where there may be a place for the job."""
        if new.batch is not None and (known := await self.database.jobs.find_one({"_id": new.id})) is not None:
            return Job.from_document(known)  # a line that was let in before, by one who died then
        if not await self.queue.fallbacks.room(new):
            raise self.queue.full(new.model)
        file = (await self.files.put(new.id, parts, "application/json")).id
        try:
            job = await self.queue.submit(stowed(new, file))
        except BrokerError:
            await self.files.delete(file)
            raise
        if job.payload_file != file:
            await self.files.delete(file)
        return job

    def start(self, *preparations: Preparation) -> None:
        """Starts the background work. ``ready`` is set once the schema is there and ``preparations`` are done."""
        if self.settings.mongodb.uri is None:
            self._spawn(MongodKeeper(EmbeddedMongod(self.settings.home)).run())
        self._spawn(self._prepare(preparations))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(failures_to(log, "the broker's background work has failed"))
        self._tasks.append(task)

    async def _prepare(self, preparations: tuple[Preparation, ...]) -> None:
        while not self.ready.is_set():
            try:
                kept = self.settings.history.retention, habits(self.settings.auto_switch.pattern_window_days)
                await ensure_schema(self.database, *kept)
                await self.models.refresh()
                for prepare in preparations:
                    await prepare()
            except PyMongoError as error:
                log.warning("waiting for the database: %s", error)
                await asyncio.sleep(self.settings.queue.poll_interval)
            else:
                self.ready.set()
        self._clockwork.start()
        self._spawn(self.models.run())
        await self.feed.run()

    async def close(self) -> None:
        """Ends the background work and closes the connection. Takes seconds at most, wherever the database is."""
        self.feed.close()
        with farewell():
            if self.ready.is_set():
                with suppress(PyMongoError):  # the next holder takes over when the lease ends
                    await self._clockwork.stop()
            await cancel_all(self._tasks)
            await self.answers.close()
            await self.database.close()
