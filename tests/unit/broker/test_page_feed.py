"""How documents are followed, look by look."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

from broker.database import Database
from broker.feed import JobFeed
from broker.files import FileStore
from broker.job import NewJob, Status
from broker.page_feed import PageFeed
from broker.pages import Pages
from broker.queue import JobQueue


async def test_what_was_read_between_two_looks_at_a_job_that_waits_is_told(
    store: Database, queue: JobQueue, new_job: Callable[..., NewJob]
) -> None:
    job = await queue.submit(new_job("beta"))
    feed = PageFeed(store, JobFeed(store, 60.0), 60.0)
    async with aclosing(feed.follow(job, 60.0)) as standings, asyncio.timeout(20):
        assert (await anext(standings)).status is Status.QUEUED
        (held,) = (await queue.claim("beta", "worker-1")).jobs
        await Pages(store, FileStore(store)).end(job.id, 1, {"number": 1, "status": "completed"}, {})
        await queue.progress(held, 1, 3, "pages", gained=True)
        assert await queue.release(held, to_the_back=True)
        feed._due.set()
        standing = await anext(standings)
    assert (standing.status, standing.attempts, standing.pages) == (Status.QUEUED, 0, {1: "completed"})
    await feed.close()
