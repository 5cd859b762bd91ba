"""``GET /api/jobs/{id}/events``, over real connections."""

import asyncio
import json
import signal
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from httpx_sse import ServerSentEvent, aconnect_sse, connect_sse
from pymongo.errors import AutoReconnect

from broker.page_feed import PageFeed
from config import Settings
from tests.conditions import eventually
from tests.contract.ocr_jobs import Reader, blank_page, failed_page, page, read, submitted
from tests.deployments import Gateway, listening
from tests.system import System, end

Told = tuple[str, dict[str, Any]]


@pytest.fixture
async def online(settings: Settings) -> AsyncIterator[Gateway]:
    async with listening(settings) as gateway:
        yield gateway


@asynccontextmanager
async def followed(gateway: Gateway, job_id: str, last: str | None = None) -> AsyncIterator["Stream"]:
    headers = {} if last is None else {"Last-Event-ID": last}
    path = f"/api/jobs/{job_id}/events"
    async with aconnect_sse(gateway.http, "GET", path, headers=headers) as source:
        assert source.response.status_code == 200
        yield Stream(source.aiter_sse())


class Stream:
    def __init__(self, found: AsyncGenerator[ServerSentEvent, None]) -> None:
        self._found = found
        self.last = ""

    async def next(self, count: int = 1) -> list[Told]:
        told = []
        async with asyncio.timeout(20):
            for _ in range(count):
                event = await anext(self._found)
                self.last = event.id
                told.append((event.event, json.loads(event.data)))
        return told

    async def rest(self) -> list[Told]:
        async with asyncio.timeout(20):
            told = []
            async for event in self._found:
                self.last = event.id
                told.append((event.event, json.loads(event.data)))
        return told


def state(status: str, attempts: int = 1) -> Told:
    return "state", {"status": status, "attempts": attempts}


def page_is(number: int, status: str) -> Told:
    return "page", {"number": number, "status": status}


def progress(done: int, total: int | None) -> Told:
    return "progress", {"done": done, "total": total, "unit": "pages"}


async def test_a_document_is_followed_from_the_queue_to_its_end(online: Gateway) -> None:
    async with followed(online, await submitted(online)) as stream:
        assert await stream.next() == [state("queued", 0)]
        reader = await Reader.claims(online)
        assert await stream.next() == [state("processing")]
        await reader.begins(1)
        assert await stream.next() == [page_is(1, "processing")]
        await reader.ends(page(1), blank_page(2), failed_page(3), total=3)
        await reader.completes()
        rest = await stream.rest()
    assert [told for told in rest if told[0] == "page"] == [
        page_is(1, "completed"),
        page_is(2, "blank"),
        page_is(3, "failed"),
    ]
    assert rest[-3:] == [progress(3, 3), state("completed"), ("end", {"status": "completed", "error": None})]


async def test_head_does_not_wait_for_events(online: Gateway) -> None:
    path = f"/api/jobs/{await submitted(online)}/events"
    async with asyncio.timeout(10):
        response = await online.http.head(path)
        # On the same connection: it would have to wait for the end of a stream.
        assert (await online.http.get("/health")).status_code == 200
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"].startswith("text/event-stream")


async def test_what_has_ended_is_told_whole_and_no_more_to_who_knows_it(gateway: Gateway) -> None:
    path = f"/api/jobs/{await read(gateway, page(1), page(2))}/events"
    response = await gateway.http.get(path)
    assert response.headers["content-type"].startswith("text/event-stream")
    ids = [line.removeprefix("id: ") for line in response.text.splitlines() if line.startswith("id: ")]
    names = [line.removeprefix("event: ") for line in response.text.splitlines() if line.startswith("event: ")]
    assert names == ["page", "page", "progress", "state", "end"]
    assert len(set(ids)) == len(ids)
    for number, last in enumerate(ids[:-1], start=1):
        again = await gateway.http.get(path, headers={"Last-Event-ID": last})
        assert again.text.count("event: ") == len(ids) - number
    nothing = await gateway.http.get(path, headers={"Last-Event-ID": ids[-1]})
    assert (nothing.status_code, nothing.content) == (204, b"")


async def test_who_is_cut_off_goes_on_at_another_gateway_without_a_gap(online: Gateway, settings: Settings) -> None:
    job_id = await submitted(online)
    reader = await Reader.claims(online)
    async with followed(online, job_id) as stream:
        await reader.ends(page(1), page(2), total=5)
        told: list[Told] = []
        while page_is(2, "completed") not in told:
            told += await stream.next()
    await reader.ends(page(4), total=5)
    await reader.begins(5)
    async with listening(settings) as other, followed(other, job_id, stream.last) as stream:
        while page_is(5, "processing") not in told:
            told += await stream.next()
        await reader.ends(page(3), page(5), total=5)
        await reader.completes()
        told += await stream.rest()
    ended = [data["number"] for name, data in told if name == "page" and data["status"] == "completed"]
    assert sorted(ended) == [1, 2, 3, 4, 5]
    assert told[-1][0] == "end"


async def test_many_clients_are_served_by_one_look(online: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    look = PageFeed._look

    async def counted(self: PageFeed, all_followed: list[Any]) -> None:
        looks.append(len(all_followed))
        await look(self, all_followed)

    monkeypatch.setattr(PageFeed, "_look", counted)
    job_id = await submitted(online)
    reader = await Reader.claims(online)

    async def follow() -> list[Told]:
        async with followed(online, job_id) as stream:
            return await stream.rest()

    clients = [asyncio.create_task(follow()) for _ in range(20)]
    await reader.ends(page(1))
    await reader.completes()
    for told in await asyncio.gather(*clients):
        assert [name for name, _ in told][-1] == "end"
    assert set(looks) == {1}
    assert len(looks) < 20


async def test_a_client_that_goes_away_leaves_nothing_behind(
    online: Gateway, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds: list[PageFeed] = []
    poll = PageFeed._poll

    async def noted(self: PageFeed) -> None:
        feeds.append(self)
        await poll(self)

    monkeypatch.setattr(PageFeed, "_poll", noted)
    async with followed(online, await submitted(online)) as stream:
        await stream.next()
        assert feeds[0]._poller is not None

    async def forgotten() -> bool:
        return feeds[0]._poller is None and not feeds[0]._followed and not online.broker.feed._waiters

    await eventually(forgotten)


async def test_a_silent_stream_is_kept_alive(settings: Settings) -> None:
    server = settings.server.model_copy(update={"heartbeat": 0.05})
    async with (
        listening(settings.model_copy(update={"server": server})) as online,
        online.http.stream("GET", f"/api/jobs/{await submitted(online)}/events") as response,
        asyncio.timeout(20),
    ):
        beats = 0
        async for line in response.aiter_lines():
            beats += line == ":"
            if beats == 3:
                return
    pytest.fail("the stream ended")


async def test_a_look_that_fails_is_made_again(online: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    look = PageFeed._look
    failures = [AutoReconnect("the primary has changed"), AutoReconnect("there is none")]

    async def shaky(self: PageFeed, all_followed: list[Any]) -> None:
        if failures:
            raise failures.pop()
        await look(self, all_followed)

    monkeypatch.setattr(PageFeed, "_look", shaky)
    async with followed(online, await submitted(online)) as stream:
        assert await stream.next() == [state("queued", 0)]
    assert not failures


async def test_a_job_that_is_gone_ends_its_stream(online: Gateway) -> None:
    async with followed(online, await submitted(online)) as stream:
        await stream.next()
        await online.broker.database.jobs.delete_many({})
        assert await stream.rest() == []


async def test_a_job_that_is_cancelled_or_no_document_is_followed_too(online: Gateway) -> None:
    response = await online.http.post("/api/chat", json={"message": "Hi."})
    async with followed(online, response.json()["request_id"]) as stream:
        assert await stream.next() == [state("queued", 0)]
        await online.http.delete(response.headers["location"])
        assert [name for name, _ in await stream.rest()] == ["state", "end"]


def test_a_gateway_that_stops_sends_its_clients_home(system: System) -> None:
    gateway = system.gateway()
    system.sign_in()
    job_id = system.chat()
    with connect_sse(system.http, "GET", f"/api/jobs/{job_id}/events") as source:
        stream = source.iter_sse()
        assert next(stream).event == "state"
        gateway.send_signal(signal.SIGTERM)
        # Properly, and long before the grace for answers under way is over: an error would be raised here.
        assert list(stream) == []
    end(gateway)
