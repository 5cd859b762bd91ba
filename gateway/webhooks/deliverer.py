"""Tells receivers that jobs have ended: in one gateway at a time, at once, and again until they have taken it.

What is to be told is in the database (``broker.deliveries``), what is being told is in memory: when this process dies
the next one finds all that was not recorded as done, and tells it under the same id.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version

import httpx
from pydantic import ValidationError
from pymongo.errors import PyMongoError

from broker.broker import Broker
from broker.cancellation import cancel_all
from broker.deliveries import Attempt, Deliveries, Delivery, Lane, NewDelivery, State
from broker.duty import Duty
from broker.job import Job
from broker.retry import asked_pause
from gateway.outbound.guard import Answer, ExchangeFailed, Guard, Outbound, UrlRefused
from gateway.webhooks.messages import delivery_of
from gateway.webhooks.secrets import WebhookSecrets

log = logging.getLogger(__name__)

USER_AGENT = f"Roundhouse/{version('roundhouse')}"
GONE = 410
# Attempts at once, and of these for one subject and to one host: whoever is slow delays nobody else.
AT_ONCE = 100
PER_SUBJECT = 25
PER_HOST = 10
# Jobs that are looked at in one go.
BATCH = 200
# Bytes of an answer that are kept for who wants to know why it is no success.
EXCERPT = 1000
# Seconds.
POLL = 1.0
PARTING = 1.0


@dataclass(frozen=True, slots=True)
class Patience:
    """In seconds: ``timeout`` of an attempt, and the pause before the second one, which is multiplied by ``factor``
    for each further one, up to ``longest``."""

    timeout: float = 15.0
    first: float = 5.0
    factor: float = 3.0
    longest: float = 7200.0

    def pause(self, tries: int, draw: float) -> float:
        """After so many attempts. ``draw`` from 0 to 1 spreads those that failed together by a fifth either way."""
        return min(self.longest, self.first * self.factor ** min(tries - 1, 60)) * (0.8 + 0.4 * draw)


@dataclass
class Flight:
    """What is being told just now."""

    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    hosts: Counter[str] = field(default_factory=Counter)
    subjects: Counter[str] = field(default_factory=Counter)

    def room_for(self, subject: str) -> int:
        """How many more may be told."""
        return min(AT_ONCE - len(self.tasks), PER_SUBJECT - self.subjects[subject])

    def room(self, lane: Lane) -> int:
        return min(self.room_for(lane.subject), PER_HOST - self.hosts[lane.host])

    def enter(self, delivery: Delivery, task: asyncio.Task[None]) -> None:
        self.tasks[delivery.id] = task
        self.hosts[delivery.host] += 1
        self.subjects[delivery.subject] += 1

    def leave(self, delivery: Delivery) -> None:
        del self.tasks[delivery.id]
        # What is at zero is forgotten.
        self.hosts -= Counter([delivery.host])
        self.subjects -= Counter([delivery.subject])


class Deliverer:
    """Does nothing but in the gateway that has this duty."""

    def __init__(self, broker: Broker, guard: Guard, secrets: WebhookSecrets, patience: Patience | None = None) -> None:
        self._broker = broker
        self._store = Deliveries(broker.database)
        self._outbound = Outbound(guard, AT_ONCE)
        self._secrets = secrets
        self._patience = patience or Patience()
        self._duty = Duty(broker.database, "webhooks", self._step, again=POLL)
        self._flight = Flight()
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Needs a running event loop; begins when the database's schema is there."""
        self._broker.feed.on_webhook = lambda _: self._duty.wake()
        self._starting = asyncio.create_task(self._begin())

    async def _begin(self) -> None:
        await self._broker.ready.wait()
        self._duty.start()

    async def close(self) -> None:
        """What is on its way has a second to arrive; if it does not, the next gateway sends it once more."""
        await cancel_all([self._starting] if self._starting else [])
        await self._duty.close()
        on_their_way = list(self._flight.tasks.values())
        if on_their_way:
            await asyncio.wait(on_their_way, timeout=PARTING)
        await cancel_all(on_their_way)
        await self._outbound.close()

    async def _step(self) -> float:
        while await self._take_over():
            """There may be more of them."""
        await self._send()
        return POLL

    async def _take_over(self) -> bool:
        """Whether there may be more."""
        jobs = await self._store.owing(BATCH)
        told = [delivery for job in jobs if (delivery := _delivery(job)) is not None]
        if jobs:
            await self._store.take_over(jobs, told)
        return len(jobs) == BATCH

    async def _send(self) -> None:
        """All that may be told now, for those first who have the fewest under way. What waits for its host or its
        subject is not even looked at."""
        flight, subjects = self._flight, await self._store.subjects()
        random.shuffle(subjects)
        for subject in sorted(subjects, key=lambda subject: flight.subjects[subject]):
            if flight.room_for(subject) > 0:
                for lane in await self._store.lanes(subject):
                    await self._send_in(lane)

    async def _send_in(self, lane: Lane) -> None:
        flight = self._flight
        if (room := flight.room(lane)) > 0:
            for delivery in await self._store.due(lane, room, without=flight.tasks.keys()):
                flight.enter(delivery, asyncio.create_task(self._tell(delivery)))

    async def _tell(self, delivery: Delivery) -> None:
        try:
            attempt, answer = await self._outcome(delivery)
            await self._keep(delivery, attempt, answer)
        except PyMongoError as error:
            log.warning("webhook %s waits for the database: %s", delivery.id, error)
            await asyncio.sleep(POLL)
        except Exception:
            # It is still due, and would be told at once again, and for ever.
            log.exception("the outcome of webhook %s is not kept", delivery.id)
            await asyncio.sleep(POLL)
        finally:
            self._flight.leave(delivery)
            self._duty.wake()

    async def _outcome(self, delivery: Delivery) -> tuple[Attempt, Answer | None]:
        """As ``_attempt``; an attempt that fails in a way that nobody has foreseen is a failed attempt, too."""
        started = time.monotonic()
        try:
            return await self._attempt(delivery)
        except PyMongoError:
            raise
        except Exception as error:
            log.exception("webhook %s could not be sent", delivery.id)
            told = f"It could not be sent: {type(error).__name__}; the gateway's log says more."
            return Attempt(None, told, time.monotonic() - started), None

    async def _attempt(self, delivery: Delivery) -> tuple[Attempt, Answer | None]:
        secrets, timestamp = await self._secrets.of(delivery.subject), int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            "webhook-id": delivery.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": secrets.sign(delivery.id, timestamp, delivery.body),
        }
        started = time.monotonic()
        try:
            url = self._outbound.guard.check(delivery.url)
            answer = await self._outbound.exchange(
                "POST", url, headers, delivery.body.encode(), timeout=self._patience.timeout, most=EXCERPT
            )
        except (UrlRefused, ExchangeFailed) as error:
            return Attempt(None, error.message, time.monotonic() - started), None
        excerpt = answer.body.decode("utf-8", "replace")
        return Attempt(answer.status, _fault(answer.status), time.monotonic() - started, excerpt), answer

    async def _keep(self, delivery: Delivery, attempt: Attempt, answer: Answer | None) -> None:
        """Records it as soon as the database can be reached: to forget it would mean to tell it once more."""
        while True:
            try:
                return await self._record(delivery, attempt, answer)
            except PyMongoError as error:
                log.warning("the outcome of webhook %s waits for the database: %s", delivery.id, error)
            await asyncio.sleep(POLL)

    async def _record(self, delivery: Delivery, attempt: Attempt, answer: Answer | None) -> None:
        if attempt.error is None:
            await self._store.end(delivery, State.DELIVERED, attempt)
        elif attempt.status == GONE:
            await self._store.end(delivery, State.FAILED, attempt)
            await self._store.give_up(delivery)
        elif await self._store.left(delivery) <= 0:
            await self._store.end(delivery, State.FAILED, attempt)
        else:
            pause = self._patience.pause(delivery.tries + 1, random.random())
            await self._store.postpone(delivery, attempt, max(pause, retry_after(answer)))


def _delivery(job: Job) -> NewDelivery | None:
    """A job of which nothing can be told, as another release has stored it, is not to be in the way of all others."""
    try:
        return delivery_of(job)
    except (ValidationError, httpx.InvalidURL) as error:
        log.error("job %s cannot be told of: %s", job.id, error)
        return None


def _fault(status: int) -> str | None:
    """Why an answer is none to be content with."""
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return "Redirects are not followed: the address to be told at has to be given itself."
    if status == GONE:
        return "The receiver wants to be told nothing more."
    return f"The receiver answered {status}."


def retry_after(answer: Answer | None) -> float:
    """Seconds for which the receiver asks to be left alone; 0 where it does not."""
    return asked_pause(None if answer is None else answer.headers.get("retry-after")) or 0.0
