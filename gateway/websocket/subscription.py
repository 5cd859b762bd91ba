"""One job that a connection on ``/ws/jobs`` has subscribed to: its states and pages, and its answer as it comes.

It is told what the job's event stream would tell, by the same ids: whoever was cut off goes on with either, anywhere. A
client who is slow is waited for, with one message in hand.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from functools import partial
from typing import TypeVar

from pymongo.errors import PyMongoError
from starlette.websockets import WebSocketDisconnect

from broker.cancellation import cancel_all
from broker.chunk_feed import Following, Over, Place, Restarted
from broker.chunks import Chunk
from broker.errors import JobNotFound
from broker.job import Job, Status
from broker.results import unpack
from gateway.context import Context
from gateway.event_log import NO_TOKEN, Event, Known, events, pieces, restarted, whole_answer
from gateway.problems import is_outage
from gateway.v1.answers import as_pieces
from gateway.websocket.messages import event_message, with_event

T = TypeVar("T")

# Seconds without news after which a feed would say so: the server's pings keep the connection alive.
_LONG = 86_400.0

Say = Callable[[Callable[[], str]], Awaitable[None]]
"""Sends what the function makes, when it is its turn. Raises WebSocketDisconnect."""


class Subscription:
    """``kinds``: of events that are told, besides the end. ``known``: what the client knows already."""

    def __init__(self, gateway: Context, say: Say, kinds: frozenset[str], known: Known) -> None:
        self._gateway = gateway
        self._say = say
        self._kinds = kinds
        self._known = known

    async def run(self, job_id: str, subject: str | None) -> None:
        """Until the job has ended, or the process is about to stop. A database that is away is waited for.

        ``subject`` None: an admin's, who sees everybody's jobs. Raises JobNotFound, also for a job that is gone, and
        WebSocketDisconnect.
        """
        job = await self._present(lambda: self._gateway.broker.reader.get(job_id, subject))
        subscribed = json.dumps({"type": "subscribed", "job": job_id, "events": sorted(self._kinds)})
        await self._say(lambda: subscribed)
        if "token" not in self._kinds or not job.stream:
            await self._states(job)
            return
        with self._gateway.chunk_feed.watch(job.id) as following:
            answer = asyncio.create_task(self._answer(job, following))
            try:
                await self._states(job, following, answer)
            finally:
                await cancel_all(task for task in (answer,) if not task.done())

    async def _present(self, read: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await read()
            except PyMongoError as error:
                if not is_outage(error):
                    raise
                await asyncio.sleep(self._gateway.settings.queue.poll_interval)

    async def _states(
        self, job: Job, following: Following | None = None, answer: asyncio.Task[None] | None = None
    ) -> None:
        """``answer``: tells of that, by ``following``, where it is told of at all."""
        async with aclosing(self._gateway.page_feed.follow(job, _LONG)) as standings:
            async for standing in standings:
                over = standing.status.terminal
                # The answer is not looked for as long as there can be none: who waits in the queue costs nothing.
                if following is not None and (over or standing.status is Status.PROCESSING):
                    following.wake()
                if answer is not None and over:
                    await answer
                await self._tell(str(job.id), events(self._known, standing))
                if over:
                    return
        if not self._gateway.broker.feed.closed:
            raise JobNotFound(str(job.id))

    async def _answer(self, job: Job, following: Following) -> None:
        await following.noticed()
        job_id, standing = str(job.id), self._gateway.broker.reader.standing
        # Who follows the states tells of a job that is gone, and notices that the client is.
        with suppress(JobNotFound, WebSocketDisconnect):
            found = following.news(lambda: standing(job.id), self._known.place, _LONG)
            async with aclosing(found):
                async for news in found:
                    match news:
                        case Chunk():
                            await self._tell(job_id, pieces(self._known, news))
                        case Restarted(token):
                            await self._tell(job_id, [restarted(self._known, token)])
                        case Over(ended, whole):
                            await self._rest(ended, whole=whole)

    async def _rest(self, job: Job, *, whole: bool) -> None:
        """Of an answer whose pieces are not there, or not any more, all is told as one."""
        if job.status is Status.COMPLETED and not (whole and job.chunks):
            result = await self._present(lambda: unpack(self._gateway.broker.files, job))
            assert result is not None  # of a completed job
            end = Place(job.token or NO_TOKEN, job.chunks or 1)
            await self._tell(str(job.id), whole_answer(self._known, as_pieces(result), end))

    async def _tell(self, job_id: str, all_news: Iterable[Event]) -> None:
        """What of the news was asked for."""
        for event in all_news:
            kind = "token" if event.name == "restart" else event.name
            if kind in self._kinds or kind == "end":
                await self._say(partial(self._message, job_id, event))

    def _message(self, job_id: str, event: Event) -> str:
        # Made in its turn: meanwhile more may have been told of the job.
        self._known = with_event(self._known, event)
        return event_message(job_id, self._known, event)
