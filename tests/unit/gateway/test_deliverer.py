"""Receivers are told at once, again when they could not be, and no other one waits for that."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo.asynchronous.database import AsyncDatabase

from broker.broker import Broker
from broker.deliveries import Attempt, Deliveries, Delivery, State
from broker.job import Failure, Job, NewJob
from gateway.outbound.guard import Answer, Guard, Outbound, SystemResolver
from gateway.webhooks.deliverer import PER_HOST, PER_SUBJECT, Deliverer, Patience, retry_after
from gateway.webhooks.messages import EVENTS
from gateway.webhooks.secrets import WebhookSecrets
from tests.conditions import eventually
from tests.deployments import default_config, make_settings
from tests.receivers import Message, Receiver, Reply, receiver

QUICK = Patience(timeout=30.0, first=0.1, factor=2.0, longest=0.4)
Replies = Callable[[Message], Awaitable[Reply]]


def always(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Replies:
    async def reply(_: Message) -> Reply:
        return status, headers or {}, body

    return reply


@pytest.fixture
async def broker(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> AsyncIterator[Broker]:
    outbound = {"webhooks": True, "allow_private_hosts": ["127.0.0.0/8", "localhost"]}
    config = default_config() | {"outbound": outbound}
    config["models"]["simulator"] |= {"max_concurrent": 500, "max_retries": 0}
    opened = await Broker.open(make_settings(tmp_path, mongod_uri, database.name, config))
    opened.start()
    await opened.ready.wait()
    yield opened
    await opened.close()


@pytest.fixture
def secrets(broker: Broker) -> WebhookSecrets:
    return WebhookSecrets(broker.database.handle)


@pytest.fixture
async def deliverer(broker: Broker, secrets: WebhookSecrets) -> AsyncIterator[Deliverer]:
    resolver = SystemResolver()
    made = Deliverer(broker, Guard(broker.settings.outbound, resolver), secrets, QUICK)
    made.start()
    yield made
    await made.close()
    resolver.close()


async def ended(
    broker: Broker, url: str, *, fails: bool = False, events: tuple[str, ...] = EVENTS, subject: str = "ann"
) -> Job:
    """A job with a webhook, run by nobody and ended by its queue as a worker would."""
    webhook = {"url": url, "events": list(events)}
    job = await broker.queue.submit(NewJob("chat", "simulator", subject, {}, webhook=webhook))
    [claimed] = (await broker.queue.claim("simulator", "worker-1")).jobs
    assert claimed.id == job.id
    if fails:
        await broker.queue.fail(claimed, Failure("broken", "It is broken.", permanent=True))
    else:
        assert await broker.queue.complete(claimed, {"result": {"choices": []}})
    return claimed


async def delivery(broker: Broker, job: ObjectId) -> Delivery:
    [found] = await Deliveries(broker.database).of_job(job)
    return found


async def until(broker: Broker, job: ObjectId, state: State) -> Delivery:
    async def it_is() -> bool:
        return [found.state for found in await Deliveries(broker.database).of_job(job)] == [state]

    await eventually(it_is)
    return await delivery(broker, job)


async def told(hook: Receiver, number: int) -> None:
    async def enough() -> bool:
        return len(hook.messages) >= number

    await eventually(enough)


async def test_a_receiver_is_told_at_once_and_once_with_a_signature_that_holds(
    broker: Broker, deliverer: Deliverer, secrets: WebhookSecrets
) -> None:
    async with receiver() as hook:
        job = await ended(broker, hook.url("/a?b=c"))
        before = time.monotonic()
        done = await until(broker, job.id, State.DELIVERED)
        assert time.monotonic() - before < 5
        [message] = hook.messages
        told = message.verified((await secrets.of("ann")).current)
        assert message.path == "/a?b=c"
        assert message.id == done.id == f"msg_{job.id}_completed"
        assert (told["type"], told["data"]["request_id"]) == ("job.completed", str(job.id))
        assert "result" not in told["data"]
        [attempt] = done.attempts
        assert (attempt["status"], attempt["error"], done.next_at) == (204, None, None)
        assert await broker.database.jobs.count_documents({"webhook_due": {"$exists": True}}) == 0


async def test_a_failed_job_is_told_of_with_its_error_and_only_where_that_was_asked_for(
    broker: Broker, deliverer: Deliverer, secrets: WebhookSecrets
) -> None:
    async with receiver() as hook:
        unasked = await ended(broker, hook.url(), fails=True, events=("job.completed",))
        job = await ended(broker, hook.url(), fails=True, events=("job.failed",))
        await until(broker, job.id, State.DELIVERED)
        [message] = hook.messages
        told = message.verified((await secrets.of("ann")).current)
        assert (told["type"], told["data"]["error"]["code"]) == ("job.failed", "broken")
        assert await Deliveries(broker.database).of_job(unasked.id) == []


async def test_a_cancelled_job_is_told_of(broker: Broker, deliverer: Deliverer) -> None:
    async with receiver() as hook:
        webhook = {"url": hook.url(), "events": list(EVENTS)}
        job = await broker.queue.submit(NewJob("chat", "simulator", "ann", {}, webhook=webhook))
        await broker.queue.cancel(job.id, None)
        await until(broker, job.id, State.DELIVERED)
        assert hook.messages[0].id == f"msg_{job.id}_cancelled"


async def test_a_receiver_that_was_away_is_told_under_the_same_id_when_it_is_back(
    broker: Broker, deliverer: Deliverer
) -> None:
    async with receiver() as hook:
        await hook.close()
        job = await ended(broker, hook.url())

        async def tried() -> bool:
            found = await Deliveries(broker.database).of_job(job.id)
            return bool(found) and found[0].tries >= 2

        await eventually(tried)
        await hook.open()
        done = await until(broker, job.id, State.DELIVERED)
        assert [message.id for message in hook.messages] == [done.id]
        assert len(done.attempts) == done.tries >= 3
        assert "could not be asked" in done.attempts[0]["error"]


async def test_each_attempt_is_signed_with_the_time_at_which_it_is_made(
    broker: Broker, deliverer: Deliverer, secrets: WebhookSecrets
) -> None:
    async with receiver(always(503, body=b"too busy")) as hook:
        job = await ended(broker, hook.url())
        await told(hook, 3)
        secret = (await secrets.of("ann")).current
        assert len({message.id for message in hook.messages}) == 1
        assert len({message.body for message in hook.messages}) == 1
        for message in hook.messages:
            message.verified(secret)
        hook.reply = always(200)
        done = await until(broker, job.id, State.DELIVERED)
        assert done.attempts[0]["response"] == "too busy"
        assert done.attempts[0]["error"] == "The receiver answered 503."


async def test_a_redirect_is_not_followed_and_is_no_success(broker: Broker, deliverer: Deliverer) -> None:
    async with receiver() as elsewhere, receiver(always(307, {"Location": elsewhere.url()})) as hook:
        job = await ended(broker, hook.url())
        await told(hook, 2)
        assert elsewhere.messages == []
        found = await delivery(broker, job.id)
        assert (found.state, found.attempts[0]["status"]) == (State.PENDING, 307)


async def test_a_receiver_that_is_gone_is_told_nothing_more(broker: Broker, deliverer: Deliverer) -> None:
    async with receiver(always(503)) as hook:
        one = await ended(broker, hook.url())
        await told(hook, 1)
        other = await ended(broker, hook.url("/other"))
        hook.reply = always(410)
        two = await ended(broker, hook.url())
        for job in (one, two, other):
            assert (await until(broker, job.id, State.FAILED)).next_at is None


async def test_a_receiver_that_asks_to_be_left_alone_is(broker: Broker, deliverer: Deliverer) -> None:
    async with receiver(always(429, {"Retry-After": "3600"})) as hook:
        job = await ended(broker, hook.url())

        async def tried() -> bool:
            found = await Deliveries(broker.database).of_job(job.id)
            return bool(found) and found[0].tries == 1

        await eventually(tried)
        found = await delivery(broker, job.id)
        assert found.next_at is not None
        assert found.next_at.timestamp() - time.time() == pytest.approx(3600, abs=60)


async def test_after_its_day_it_is_given_up(broker: Broker, deliverer: Deliverer) -> None:
    async with receiver(always(500)) as hook:
        job = await ended(broker, hook.url())
        await told(hook, 1)
        day = {"$set": {"until": {"$dateSubtract": {"startDate": "$until", "unit": "hour", "amount": 24}}}}
        await broker.database.deliveries.update_many({"job": job.id}, [day])
        done = await until(broker, job.id, State.FAILED)
        assert done.attempts[-1]["status"] == 500


async def test_a_slow_receiver_delays_no_other(broker: Broker, secrets: WebhookSecrets) -> None:
    async def never(_: Message) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    resolver = SystemResolver()
    deliverer = Deliverer(broker, Guard(broker.settings.outbound, resolver), secrets, Patience(timeout=600.0))
    deliverer.start()
    try:
        # Whoever is slow is another host, by his port.
        async with receiver(never) as bad, receiver() as good:
            for _ in range(40):
                await ended(broker, bad.url())
            await told(bad, PER_HOST)
            job = await ended(broker, good.url())
            await until(broker, job.id, State.DELIVERED)
            assert len(bad.messages) == PER_HOST
            await deliverer.close()
    finally:
        resolver.close()


async def test_one_user_cannot_take_all_that_is_told_at_once(broker: Broker, secrets: WebhookSecrets) -> None:
    """Not even with many hosts."""

    async def never(_: Message) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError

    deliverer = Deliverer(broker, Guard(broker.settings.outbound, SystemResolver()), secrets, Patience(timeout=600.0))
    async with AsyncExitStack() as stack:
        hooks = [await stack.enter_async_context(receiver(never)) for _ in range(6)]
        for hook in hooks:
            for _ in range(PER_HOST):
                await ended(broker, hook.url())
        deliverer.start()
        stack.push_async_callback(deliverer.close)

        async def enough() -> bool:
            return sum(len(hook.messages) for hook in hooks) >= PER_SUBJECT

        await eventually(enough)
        good = await stack.enter_async_context(receiver())
        job = await ended(broker, good.url(), subject="bob")
        await until(broker, job.id, State.DELIVERED)
        assert sum(len(hook.messages) for hook in hooks) == PER_SUBJECT


async def test_an_attempt_that_fails_as_nobody_has_foreseen_is_a_failed_attempt(
    broker: Broker, deliverer: Deliverer, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange, faults = Outbound.exchange, 0

    async def mistaken(*given: Any, **more: Any) -> Answer:
        nonlocal faults
        faults += 1
        if faults == 1:
            raise ValueError("a mistake of ours")
        return await exchange(*given, **more)

    monkeypatch.setattr(Outbound, "exchange", mistaken)
    async with receiver() as hook:
        job = await ended(broker, hook.url())
        done = await until(broker, job.id, State.DELIVERED)
    assert (done.tries, faults) == (2, 2)
    assert "ValueError" in done.attempts[0]["error"]


async def test_many_are_told_each_once(broker: Broker, deliverer: Deliverer) -> None:
    async with receiver() as hook:
        jobs = await asyncio.gather(*(_submitted(broker, hook.url()) for _ in range(120)))
        while claimed := (await broker.queue.claim("simulator", "worker-1", 50)).jobs:
            await asyncio.gather(*(broker.queue.complete(job, {"result": {}}) for job in claimed))
        await told(hook, len(jobs))
        for job in jobs:
            await until(broker, job.id, State.DELIVERED)
        assert sorted(message.id for message in hook.messages) == sorted(f"msg_{job.id}_completed" for job in jobs)


async def _submitted(broker: Broker, url: str) -> Job:
    webhook = {"url": url, "events": list(EVENTS)}
    return await broker.queue.submit(NewJob("chat", "simulator", "ann", {}, webhook=webhook))


async def test_what_another_process_left_is_told(broker: Broker, secrets: WebhookSecrets) -> None:
    """It had died after a job's end, or after it had noted the delivery."""
    async with receiver() as hook:
        one, two = await ended(broker, hook.url("/1")), await ended(broker, hook.url("/2"))
        resolver = SystemResolver()
        first = Deliverer(broker, Guard(broker.settings.outbound, resolver), secrets, QUICK)
        await first._take_over()
        await broker.database.jobs.update_one({"_id": two.id}, {"$set": {"webhook_due": True}})
        await first.close()
        second = Deliverer(broker, Guard(broker.settings.outbound, resolver), secrets, QUICK)
        second.start()
        try:
            for job in (one, two):
                await until(broker, job.id, State.DELIVERED)
        finally:
            await second.close()
            resolver.close()
        assert sorted(message.path for message in hook.messages) == ["/1", "/2"]


async def test_an_outcome_that_another_process_has_recorded_stands(broker: Broker) -> None:
    job = await ended(broker, "http://127.0.0.1:9/")
    store = Deliveries(broker.database)
    from gateway.webhooks.messages import delivery_of

    [owing] = await store.owing(10)
    new = delivery_of(owing)
    assert new is not None
    for _ in range(2):  # twice is no error
        await store.take_over([owing], [new])
    seen = await delivery(broker, job.id)
    await store.end(seen, State.DELIVERED, Attempt(200, None, 0.1))
    await store.postpone(seen, Attempt(None, "It was away.", 0.1), 5.0)
    found = await delivery(broker, job.id)
    assert (found.state, found.tries, len(found.attempts), found.next_at) == (State.DELIVERED, 1, 1, None)


async def test_both_secrets_sign_after_a_rotation(broker: Broker, secrets: WebhookSecrets) -> None:
    from standardwebhooks import Webhook

    old = await secrets.of("ann")
    assert old == await secrets.of("ann")
    assert old.current != (await secrets.of("bob")).current
    new = await secrets.rotate("ann")
    assert (new.previous, await secrets.of("ann")) == (old.current, new)
    now = int(time.time())
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(now), "webhook-signature": new.sign("msg_1", now, "{}")}
    for secret in (old.current, new.current):
        Webhook(secret).verify("{}", headers)


def test_the_pauses_grow_up_to_two_hours_and_fill_a_day() -> None:
    patience = Patience()
    pauses = [patience.pause(tries, 0.5) for tries in range(1, 40)]
    assert pauses[:4] == [5.0, 15.0, 45.0, 135.0]
    assert max(pauses) == 7200.0
    assert sum(pauses[:17]) < 86_400 < sum(pauses[:19])
    assert patience.pause(1, 0.0) == 4.0
    assert patience.pause(1, 1.0) == pytest.approx(6.0)
    assert patience.pause(10**6, 1.0) == pytest.approx(8640.0)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("120", 120.0), ("0", 0.0), ("", 0.0), ("soon", 0.0), ("-5", 0.0), ("9" * 400, 1e9), ("\u0665", 0.0),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)],
)  # fmt: skip
def test_retry_after_is_read_in_both_its_forms(given: str, seconds: float) -> None:
    assert retry_after(Answer(503, {"retry-after": given}, b"", True)) == seconds
    assert retry_after(None) == 0.0


def test_retry_after_may_be_a_date() -> None:
    from email.utils import formatdate

    answer = Answer(503, {"retry-after": formatdate(time.time() + 100, usegmt=True)}, b"", True)
    assert retry_after(answer) == pytest.approx(100, abs=30)
