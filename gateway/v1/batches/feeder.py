"""Batches on their way: their lines wait outside the bound of places, and are let in a few at a time.

One gateway at a time does it, under a lease. It keeps nothing that matters: what is in the database says where each
batch stands, jobs have ids that a second try would give them again, and every step is a write that matches the state
it goes out from. So it may be killed between any two writes, and another one may act beside it.
"""

import asyncio
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import cast

from bson import ObjectId
from pymongo.errors import PyMongoError
from starlette.requests import Request

from broker.batch import Batch, BatchStatus, Fault, Standing, Turns, share_of
from broker.cancellation import cancel_all
from broker.duty import Duty
from broker.errors import FileMissing, QueueFull
from config.errors import RoundhouseError
from gateway.context import Context
from gateway.v1.batches.answers import CANCELLED, assemble, output_name, unanswered
from gateway.v1.batches.lines import Line, LineError
from gateway.v1.batches.work import Check, arrival_of, batch_lines, job_of, refused_job

log = logging.getLogger(__name__)

# What is let in at once, of all batches of a model and of each: requests, and bytes of the file.
MOST_AT_ONCE = 500
MOST_BYTES = 8 * 2**20
# Files that are checked at the same time; as many are put together, which wait for no check.
READERS = 2
# Seconds between two looks at what has ended of a batch, while it is not all.
SETTLE = 1.0
# Seconds between two looks for jobs of batches that have ended.
STRAYS = 5.0
# Seconds after the end of a job in which others may end too, to be followed all at once.
GATHER = 0.05


class BatchFeeder:
    """``start`` and ``close`` go with the gateway."""

    def __init__(self, gateway: Context) -> None:
        self._gateway = gateway
        self._broker = gateway.broker
        self._batches = gateway.broker.batches
        self._poll = gateway.settings.queue.poll_interval
        self._duty = Duty(gateway.broker.database, "batches", self.step, self._poll)
        self._turns: defaultdict[str, Turns] = defaultdict(Turns)
        self._settled: dict[ObjectId, float] = {}
        self._inside: set[ObjectId] = set()
        self._looked = -math.inf
        self._soon: asyncio.TimerHandle | None = None
        self._checks, self._ends = asyncio.Semaphore(READERS), asyncio.Semaphore(READERS)
        self.reading: dict[ObjectId, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Needs the database's schema."""
        feed = self._broker.feed
        feed.on_ended = _both(feed.on_ended, self._ended)
        self._duty.start()

    def wake(self) -> None:
        """There may be something to do: a batch has come, or is to be cancelled."""
        self._duty.wake()

    async def close(self) -> None:
        """Leaves everything where it is, for the next gateway."""
        if self._soon is not None:
            self._soon.cancel()
        # Before the readers, for a step may begin others.
        await self._duty.close()
        await cancel_all(self.reading.values())

    def _ended(self, job: ObjectId) -> None:
        """A place may be free. What ends at about the same time is followed by one step."""
        if job in self._inside:
            self._inside.discard(job)
            if self._soon is None:
                self._soon = asyncio.get_running_loop().call_later(GATHER, self._wake_soon)

    def _wake_soon(self) -> None:
        self._soon = None
        self._duty.wake()

    # ── One step ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def step(self) -> float:
        await self._batches.expire()
        await self._drop_strays()
        batches = await self._batches.open()
        fed: defaultdict[str, list[Batch]] = defaultdict(list)
        for batch in batches:
            if batch.status is BatchStatus.IN_PROGRESS:
                fed[batch.model].append(batch)
            else:
                self._read(batch)
        # Side by side: a slow write for one model keeps no other one waiting.
        outcomes = await asyncio.gather(
            *(self._feed_all(model, group) for model, group in fed.items()), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        if not fed:
            self._inside.clear()
            self._settled.clear()
        return self._poll

    async def _feed_all(self, model: str, batches: Sequence[Batch]) -> None:
        held = await self._batches.inside(model)
        inside = Counter(batch for batch, _ in held)
        standings = {batch.id: Standing(inside[batch.id], batch.total - batch.fed) for batch in batches}
        room = min(self._quota(model) - len(held), MOST_AT_ONCE)
        shares = self._turns[model].share(room, standings)
        for batch in batches:
            if batch.id in shares:
                await self._try_to_feed(batch, shares[batch.id])
            elif self._may_be_over(batch, inside[batch.id]) or self._unsettled_for(batch) > SETTLE:
                await self._settle(batch)

    @staticmethod
    def _may_be_over(batch: Batch, inside: int) -> bool:
        return batch.fed >= batch.total and not inside

    def _unsettled_for(self, batch: Batch) -> float:
        return time.monotonic() - self._settled.get(batch.id, 0.0)

    def _quota(self, model: str) -> int:
        """Places that batches may have of the model: half of them. Without a model nothing takes a place."""
        settings = self._broker.models.get(model)
        return MOST_AT_ONCE if settings is None else share_of(settings)

    async def _drop_strays(self) -> None:
        """Whoever let requests in while their batch came to its end, unseen by him, has left jobs that nobody reads."""
        if time.monotonic() - self._looked < STRAYS:
            return
        self._looked = time.monotonic()
        for batch in await self._batches.haunting():
            await self._broker.queue.cancel_batch(batch, CANCELLED, "The batch of this job has ended.")

    async def _settle(self, batch: Batch) -> None:
        self._settled[batch.id] = time.monotonic()
        batch = await self._batches.settle(batch)
        if batch.settled >= batch.total and await self._batches.close(batch):
            self.wake()

    # ── Letting requests in ──────────────────────────────────────────────────────────────────────────────────────

    async def _try_to_feed(self, batch: Batch, most: int) -> None:
        """What cannot be done for one batch keeps no other one waiting."""
        try:
            await self.feed(batch, most)
        except PyMongoError as error:
            log.warning("%s waits for the database: %s", batch.public_id, error)
        except Exception:
            log.exception("%s cannot go on", batch.public_id)

    async def feed(self, batch: Batch, most: int) -> None:
        """Lets the next requests in, up to the first that finds no place."""
        try:
            lines = await self._next_lines(batch, most)
        except FileMissing:
            await self._batches.reject(batch, [Fault("file_missing", "The file is no longer there.")])
            return
        outcomes = await asyncio.gather(
            *(self._let_in(batch, number, line) for number, line in enumerate(lines, batch.fed)),
            return_exceptions=True,
        )
        done = next((index for index, outcome in enumerate(outcomes) if outcome is not True), len(outcomes))
        if done:
            await self._batches.advance(batch, batch.fed + done, lines[done - 1].end)
        elif lines and lines[0].start > batch.offset:
            # However many blank lines are before it, they are not read at each step until there is a place.
            await self._batches.advance(batch, batch.fed, lines[0].start)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _next_lines(self, batch: Batch, most: int) -> list[Line]:
        found: list[Line] = []
        async with aclosing(batch_lines(self._gateway, batch, batch.offset)) as lines:
            async for line in lines:
                found.append(line)
                if len(found) == most or line.end - batch.offset >= MOST_BYTES:
                    break
        return found

    async def _let_in(self, batch: Batch, number: int, line: Line) -> bool:
        """Whether the request has its job now. Raises PyMongoError."""
        try:
            new = job_of(arrival_of(self._gateway, batch), batch, number, line)
            # Known before it can end.
            self._inside.add(new.id)
            await self._broker.submit(new)
        except QueueFull:
            return False
        except (LineError, RoundhouseError) as error:
            await self._broker.queue.submit_refused(refused_job(batch, number), error.code, error.message)
        return True

    # ── Before and after: what reads a whole file ────────────────────────────────────────────────────────────────

    def _read(self, batch: Batch) -> None:
        """Begins the check or the end of a batch, unless that is under way."""
        if batch.id not in self.reading:
            work = self._check(batch) if batch.status is BatchStatus.VALIDATING else self._finish(batch)
            self.reading[batch.id] = task = asyncio.create_task(work)
            task.add_done_callback(lambda done: self._has_read(batch, done))

    def _has_read(self, batch: Batch, task: asyncio.Task[None]) -> None:
        del self.reading[batch.id]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self.wake()
        elif isinstance(error, PyMongoError):
            log.warning("%s waits for the database: %s", batch.public_id, error)
        else:
            log.error("%s is tried again", batch.public_id, exc_info=error)

    async def _check(self, batch: Batch) -> None:
        async with self._checks:
            check = Check(self._gateway, batch)
            await check.run()
            if check.faults:
                await self._batches.reject(batch, check.faults)
            else:
                await self._batches.begin(batch, check.model, check.total)

    async def _finish(self, batch: Batch) -> None:
        async with self._ends:
            found = batch if batch.outputs is not None else await self._assemble(batch)
        if found is None or found.outputs is None:
            return
        for kind, output in found.outputs.items():
            name = output_name(found, kind)
            await self._broker.uploads.add(output.id, found.subject, name, "batch_output", output.size, output.content)
        await self._batches.end(found)

    async def _assemble(self, batch: Batch) -> Batch | None:
        """The batch with its files; None where somebody else was quicker."""
        assert batch.ending is not None
        if batch.ending is not BatchStatus.COMPLETED:
            code, message = unanswered(batch.ending)
            await self._broker.queue.cancel_batch(batch.id, code, message)
        try:
            outputs = await assemble(self._gateway, batch)
        except FileMissing:
            log.error("%s has lost its input file; it ends without answers", batch.public_id)
            outputs = {}
        if assembled := await self._batches.assembled(batch, outputs):
            return assembled
        for output in outputs.values():
            await self._broker.files.delete(output.content)
        return None


def _both(first: Callable[[ObjectId], None], second: Callable[[ObjectId], None]) -> Callable[[ObjectId], None]:
    def told(job: ObjectId) -> None:
        first(job)
        second(job)

    return told


def feeder_of(request: Request) -> BatchFeeder:
    return cast(BatchFeeder, request.app.state.batch_feeder)
