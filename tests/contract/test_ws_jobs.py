"""``/ws/jobs``, over real connections, by the client of ``websockets``."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import AutoReconnect
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as connect_now

from broker.chunks import Chunk
from broker.job import Job, NewJob
from broker.page_feed import PageFeed
from config import Settings
from gateway.tokens import LEEWAY, Tokens
from gateway.websocket import jobs as ws_jobs
from tests.conditions import eventually
from tests.contract.ocr_jobs import Reader, page, submitted
from tests.deployments import JWT_SECRET, Gateway, Served, listening, make_settings, patient_config, worker_on
from tests.system import System, end
from worker.worker import Worker

Message = dict[str, Any]


def issued(settings: Settings, subject: str = "admin", role: str = "admin", lives: float = 3600.0) -> str:
    """A token that is good for so many seconds more, the leeway included."""
    now = time.time() - 3600 + lives - LEEWAY
    tokens = Tokens(
        JWT_SECRET,
        issuer=settings.auth.issuer,
        audience=settings.auth.audience,
        access_ttl=3600,
        refresh_ttl=7200,
        now=lambda: now,
    )
    return tokens.issue(subject, role)


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    async with listening(settings) as gateway:
        yield gateway


@dataclass
class Line:
    """A connection, and what came of each job on it."""

    socket: ClientConnection
    told: dict[str, list[Message]] = field(default_factory=dict)

    async def say(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def next(self) -> Message:
        async with asyncio.timeout(20):
            message: Message = json.loads(await self.socket.recv())
        if message.get("job") is not None:
            self.told.setdefault(message["job"], []).append(message)
        return message

    async def until(self, kind: str) -> Message:
        while (message := await self.next())["type"] != kind:
            """It is kept in ``told``."""
        return message

    async def subscribe(self, job: str, **options: Any) -> Message:
        await self.say(type="subscribe", job=job, **options)
        return await self.next()

    def text(self, job: str) -> str:
        return text_of(self.told[job])


def text_of(told: list[Message]) -> str:
    text = ""
    for message in told:
        if message["type"] == "restart":
            text = ""
        text += message.get("text", "")
    return text


def names(told: list[Message]) -> list[str]:
    return [message["type"] for message in told]


def url_of(gateway: Gateway) -> str:
    return str(gateway.http.base_url).replace("http", "ws", 1).rstrip("/") + "/ws/jobs"


@asynccontextmanager
async def connected(gateway: Gateway, token: str | None = None, **options: Any) -> AsyncIterator[Line]:
    """As admin, if no token is given."""
    bearer = f"Bearer {token}" if token else gateway.http.headers["Authorization"]
    async with connect(url_of(gateway), additional_headers={"Authorization": bearer}, **options) as socket:
        yield Line(socket)


async def closed(line: Line) -> tuple[int, str]:
    async def rest() -> None:
        while True:
            await line.next()

    with pytest.raises(ConnectionClosed) as caught:
        await rest()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


async def streamed(gateway: Gateway, message: str = "hello", subject: str = "admin", **payload: Any) -> str:
    """The id of a chat whose answer can be followed."""
    asked = {"messages": [{"role": "user", "content": message}], **payload}
    new = NewJob(task="chat", model="simulator", subject=subject, payload=asked, stream=True)
    return str((await gateway.broker.queue.submit(new)).id)


async def stored_text(gateway: Gateway, job_id: str) -> str:
    body = await gateway.ended(job_id)
    assert body["status"] == "completed", body
    return str(body["result"]["message"]["content"])


@pytest.fixture
def roomy(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Settings:
    config = patient_config()
    config["models"]["simulator"] |= {"max_waiting": 1000}
    return make_settings(tmp_path, mongod_uri, database.name, config)


async def test_a_hundred_jobs_are_followed_on_one_connection(
    roomy: Settings, database: AsyncDatabase[dict[str, Any]]
) -> None:
    async with listening(roomy) as gateway, connected(gateway) as line:
        jobs = [await streamed(gateway, f"question {number}") for number in range(100)]
        for job in jobs:
            await line.say(type="subscribe", job=job)
        async with worker_on(roomy):
            ended = 0
            while ended < len(jobs):
                ended += (await line.next())["type"] == "end"
            for job in jobs:
                assert line.text(job) == await stored_text(gateway, job)
                told = names(line.told[job])
                assert told[0] == "subscribed"
                assert told[-2:] == ["state", "end"]
                assert told.count("token") == 21
                assert line.told[job][-1]["status"] == "completed"


def tokens_of(told: list[dict[str, Any]]) -> list[Any]:
    """Without their ids, which name the state that was told last: who comes back later is told of fewer."""
    return [part["choices"] for part in told if part["type"] == "token"]


async def test_a_lost_connection_is_gone_on_with_after_any_message(gateway: Gateway, worker: Worker) -> None:
    job = await streamed(gateway)
    async with connected(gateway) as line:
        await line.subscribe(job)
        await line.until("end")
    told = line.told[job][1:]
    whole = await stored_text(gateway, job)
    assert text_of(told) == whole
    async with connected(gateway) as line:
        for number, message in enumerate(told, 1):
            await line.subscribe(job, after=message["id"])
            await line.until("end")
            rest = line.told.pop(job)[1:]
            assert tokens_of(rest) == tokens_of(told[number:])
            assert text_of(told[:number] + rest) == whole


async def test_ids_are_those_of_the_event_stream(gateway: Gateway, worker: Worker) -> None:
    job = await streamed(gateway)
    async with connected(gateway) as line:
        await line.subscribe(job)
        await line.until("end")
    for message in line.told[job][1:-1]:
        headers = {"Last-Event-ID": message["id"]}
        rest = await gateway.http.get(f"/api/jobs/{job}/events", headers=headers)
        last = [text.removeprefix("id: ") for text in rest.text.splitlines() if text.startswith("id: ")][-1]
        assert last == line.told[job][-1]["id"]


async def test_a_connection_is_cut_in_mid_answer_and_another_gateway_goes_on(
    gateway: Gateway, worker: Worker, settings: Settings
) -> None:
    job = await streamed(gateway)
    async with connected(gateway) as line:
        await line.subscribe(job)
        for _ in range(3):
            await line.until("token")
        line.socket.transport.abort()
    first = line.told[job]
    async with listening(settings) as other, connected(other) as line:
        await line.subscribe(job, after=first[-1]["id"])
        await line.until("end")
    assert text_of(first + line.told[job]) == await stored_text(gateway, job)


async def test_an_answer_that_is_generated_anew_is_told_from_the_start(gateway: Gateway) -> None:
    job_id = await streamed(gateway)
    async with connected(gateway) as line:
        await line.subscribe(job_id)
        for text in ("lost", "found"):
            [job] = await gateway.claimed("simulator", 10)
            await gateway.broker.chunks.add([(job, Chunk(job.id, str(job.token), 0, [piece(text)]))])
            await line.until("token")
            if text == "lost":
                await gateway.broker.queue.release(job)
        assert names(line.told[job_id]).count("restart") == 1
        assert line.text(job_id) == "found"


def piece(text: str) -> str:
    return json.dumps([{"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}])


async def test_an_answer_whose_pieces_are_gone_comes_as_one(gateway: Gateway, worker: Worker) -> None:
    job = await streamed(gateway)
    whole = await stored_text(gateway, job)
    await gateway.broker.database.chunks.delete_many({})
    async with connected(gateway) as line:
        await line.subscribe(job, events=["token"])
        await line.until("end")
    assert names(line.told[job]) == ["subscribed", "token", "end"]
    assert line.text(job) == whole


async def test_pages_and_progress_are_told(gateway: Gateway) -> None:
    job = await submitted(gateway)
    async with connected(gateway) as line:
        await line.subscribe(job)
        reader = await Reader.claims(gateway)
        await reader.begins(1)
        assert (await line.until("page"))["status"] == "processing"
        await reader.ends(page(1), page(2))
        await reader.completes()
        assert (await line.until("end"))["status"] == "completed"
    pages = [(told["number"], told["status"]) for told in line.told[job] if told["type"] == "page"]
    assert sorted(set(pages)) == [(1, "completed"), (1, "processing"), (2, "completed")]
    progress = [told for told in line.told[job] if told["type"] == "progress"]
    assert progress[-1] | {"id": ""} == {
        "type": "progress",
        "job": job,
        "id": "",
        "done": 2,
        "total": 2,
        "unit": "pages",
    }


async def test_only_what_was_asked_for_is_told(gateway: Gateway) -> None:
    job = await submitted(gateway)
    async with connected(gateway) as line:
        answer = await line.subscribe(job, events=["page"])
        assert answer == {"type": "subscribed", "job": job, "events": ["page"]}
        reader = await Reader.claims(gateway)
        await reader.ends(page(1))
        await reader.completes()
        await line.until("end")
    assert names(line.told[job]) == ["subscribed", "page", "end"]
    # What was not told is still new to who asks for all.
    async with connected(gateway) as line:
        await line.subscribe(job, after=[told["id"] for told in (await told_pages(gateway, job))][-1])
        await line.until("end")
    assert names(line.told[job]) == ["subscribed", "progress", "state", "end"]


async def told_pages(gateway: Gateway, job: str) -> list[Message]:
    async with connected(gateway) as line:
        await line.subscribe(job, events=["page"])
        await line.until("end")
    return [told for told in line.told[job] if told["type"] == "page"]


async def test_a_subscription_is_given_up(gateway: Gateway) -> None:
    job, other = await streamed(gateway), await streamed(gateway)
    async with connected(gateway) as line:
        await line.subscribe(job)
        await line.until("state")
        assert (await line.subscribe(job))["code"] == "already_subscribed"
        await line.say(type="unsubscribe", job=job)
        assert await line.next() == {"type": "unsubscribed", "job": job}
        await line.say(type="unsubscribe", job=job)
        assert await line.next() == {"type": "unsubscribed", "job": job}
        await line.subscribe(other)
        await line.until("state")
        await gateway.http.delete(f"/api/jobs/{job}")
        await gateway.http.delete(f"/api/jobs/{other}")
        assert (await line.until("end"))["job"] == other
        assert names(line.told[job])[-1] == "unsubscribed"
        assert (await line.subscribe(job))["type"] == "subscribed"


async def test_other_peoples_jobs_are_not_there(gateway: Gateway, settings: Settings) -> None:
    job = await streamed(gateway, subject="ada")
    async with connected(gateway, issued(settings, "bob", "user")) as line:
        refused = await line.subscribe(job)
        assert refused == {
            "type": "error",
            "job": job,
            "code": "job_not_found",
            "message": f"There is no job {job}.",
        } | {"message": refused["message"]}
        assert (await line.subscribe(str(ObjectId())))["code"] == "job_not_found"
        assert (await line.subscribe("rubbish"))["code"] == "job_not_found"
    for subject, role in (("ada", "user"), ("root", "admin")):
        async with connected(gateway, issued(settings, subject, role)) as line:
            assert (await line.subscribe(job.upper()))["type"] == "subscribed"


async def test_a_job_that_is_gone_is_told_of(gateway: Gateway) -> None:
    job = await streamed(gateway)
    async with connected(gateway) as line:
        await line.subscribe(job)
        await line.until("state")
        await gateway.broker.database.jobs.delete_many({})
        assert (await line.until("error"))["code"] == "job_not_found"


async def test_messages_that_are_none_are_refused_and_nothing_else_happens(gateway: Gateway) -> None:
    rubbish: list[str | bytes] = [
        "",
        "{",
        "[]",
        "null",
        '"subscribe"',
        "{}",
        '{"type": 1}',
        '{"type": "shutdown"}',
        '{"type": "subscribe"}',
        '{"type": "subscribe", "job": 7}',
        '{"type": "subscribe", "job": "x", "events": []}',
        '{"type": "subscribe", "job": "x", "events": ["all"]}',
        '{"type": "subscribe", "job": "x", "surplus": 1}',
        '{"type": "unsubscribe", "job": ""}',
        "[" * 10_000,
        b"\x00\xff",
    ]
    async with connected(gateway) as line:
        for message in rubbish:
            await line.socket.send(message)
            answer = await line.next()
            assert (answer["type"], answer["code"]) == ("error", "invalid_message"), message
        await line.say(type="ping")
        assert await line.next() == {"type": "pong"}
        await line.socket.send("x" * (ws_jobs.MAX_MESSAGE + 1))
        assert (await closed(line))[0] == 1009


async def test_a_connection_has_so_many_subscriptions_at_most(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ws_jobs, "MOST_SUBSCRIPTIONS", 3)
    jobs = [await streamed(gateway) for _ in range(4)]
    async with connected(gateway) as line:
        for job in jobs[:3]:
            await line.say(type="subscribe", job=job)
        for _ in jobs[:3]:
            await line.until("subscribed")
        await line.say(type="subscribe", job=jobs[3])
        assert (await line.until("error"))["code"] == "too_many_subscriptions"
        await gateway.http.delete(f"/api/jobs/{jobs[0]}")
        await line.until("end")
        await line.say(type="subscribe", job=jobs[3])
        assert (await line.until("subscribed"))["job"] == jobs[3]


async def test_who_sends_no_header_says_who_he_is_first(gateway: Gateway, settings: Settings) -> None:
    job = await streamed(gateway, subject="ada")
    async with connect(url_of(gateway)) as socket_:
        line = Line(socket_)
        await line.say(type="auth", token=issued(settings, "ada", "user", lives=600))
        answer = await line.next()
        assert answer["type"] == "authenticated"
        assert 580 <= answer["expires_in"] <= 600
        assert (await line.subscribe(job))["type"] == "subscribed"


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ({"type": "ping"}, "token_missing"),
        ({"type": "auth", "token": "x"}, "token_invalid"),
        ({"type": "nothing"}, "invalid_message"),
    ],
)
async def test_who_does_not_say_who_he_is_is_turned_away(gateway: Gateway, first: Message, code: str) -> None:
    async with connect(url_of(gateway)) as socket_:
        line = Line(socket_)
        await line.say(**first)
        assert await closed(line) == (4401, code)


async def test_who_says_nothing_is_turned_away(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ws_jobs, "AUTH_TIME", 0.05)
    async with connect(url_of(gateway)) as socket_:
        assert await closed(Line(socket_)) == (4401, "token_missing")


@pytest.mark.parametrize("header", ["Bearer x", "Basic eDp5", "Bearer "])
async def test_a_header_that_is_wrong_is_refused_before_the_connection_stands(gateway: Gateway, header: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await connect(url_of(gateway), additional_headers={"Authorization": header})
    response = caught.value.response
    assert response.status_code == 401
    assert json.loads(response.body)["code"] == "token_invalid"
    assert response.headers["WWW-Authenticate"].startswith("Bearer")


async def test_a_token_that_expires_ends_the_connection_unless_another_comes(
    gateway: Gateway, settings: Settings
) -> None:
    async with (
        connected(gateway, issued(settings, lives=6)) as line,
        connected(gateway, issued(settings, lives=6)) as renewed,
    ):
        await renewed.say(type="auth", token=issued(settings))
        assert (await renewed.next())["type"] == "authenticated"
        for wrong in (issued(settings, "bob", "user"), issued(settings, "admin", "user")):
            await renewed.say(type="auth", token=wrong)
            assert (await renewed.next())["code"] == "forbidden"
        await renewed.say(type="auth", token=issued(settings, lives=-1))
        assert (await renewed.next())["code"] == "token_expired"
        assert await closed(line) == (4401, "token_expired")
        await renewed.say(type="ping")
        assert await renewed.next() == {"type": "pong"}


async def test_pages_of_other_sites_may_not_connect(
    gateway: Gateway, tmp_path: Path, settings: Settings, database: AsyncDatabase[dict[str, Any]]
) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        with pytest.raises(InvalidStatus) as caught:
            await connect(url_of(gateway), origin=origin)  # type: ignore[arg-type]
        assert caught.value.response.status_code == 403
        assert json.loads(caught.value.response.body)["code"] == "origin_not_allowed"
    own = str(gateway.http.base_url).rstrip("/")
    async with connect(url_of(gateway), origin=own) as socket_:  # type: ignore[arg-type]
        await Line(socket_).say(type="auth", token=issued(settings))
    assert settings.mongodb.uri is not None
    config = patient_config() | {"server": {"origins": ["https://good.example"]}}
    allowing = make_settings(tmp_path, settings.mongodb.uri, database.name, config)
    good: Any = "https://good.example"
    async with listening(allowing) as other, connect(url_of(other), origin=good) as socket_:
        await Line(socket_).say(type="auth", token=issued(settings))
        assert (await Line(socket_).next())["type"] == "authenticated"


async def test_other_paths_take_no_websocket(gateway: Gateway) -> None:
    with pytest.raises(InvalidStatus) as caught:
        await connect(url_of(gateway).replace("/ws/jobs", "/api/jobs"))
    assert caught.value.response.status_code == 403


async def test_a_slow_reader_slows_nobody_and_loses_nothing(gateway: Gateway) -> None:
    job_id = await streamed(gateway)
    [job] = await gateway.claimed("simulator", 10)
    pieces = [piece(f"{number} " + "x" * 10_000) for number in range(2_000)]
    async with connected(gateway, max_queue=1) as slow, connected(gateway) as quick:
        await slow.subscribe(job_id, events=["token"])
        await quick.subscribe(job_id, events=["token"])
        for first in range(0, len(pieces), 100):
            chunk = Chunk(job.id, str(job.token), first, pieces[first : first + 100])
            await gateway.broker.chunks.add([(job, chunk)])
        async with asyncio.timeout(60):
            while names(quick.told[job_id]).count("token") < len(pieces):
                await quick.next()
        [transport] = [held for held in transports(gateway) if held]
        # What the server holds for him: no more than the transport takes, with the message that went over it.
        assert transport < 64 * 1024 + 30_000
        async with asyncio.timeout(60):
            while names(slow.told[job_id]).count("token") < len(pieces):
                await slow.next()
        assert slow.text(job_id) == quick.text(job_id)


def transports(gateway: Gateway) -> list[int]:
    """Bytes that wait in each connection of the server to be taken by its client."""
    assert isinstance(gateway, Served)
    found = gateway.server.server_state.connections
    return [held.transport.get_write_buffer_size() for held in found if isinstance(held, WebSocketsSansIOProtocol)]


async def test_many_subscriptions_are_served_by_one_look(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    looks: list[int] = []
    look = PageFeed._look

    async def counted(self: PageFeed, all_followed: list[Any]) -> None:
        looks.append(len(all_followed))
        await look(self, all_followed)

    monkeypatch.setattr(PageFeed, "_look", counted)
    gets: list[str] = []
    get = type(gateway.broker.reader).get

    async def counted_get(self: Any, job_id: str, subject: str | None) -> Job:
        gets.append(job_id)
        return await get(self, job_id, subject)

    monkeypatch.setattr(type(gateway.broker.reader), "get", counted_get)
    jobs = [await streamed(gateway) for _ in range(15)]
    async with connected(gateway) as line:
        for job in jobs:
            await line.say(type="subscribe", job=job)
        for _ in jobs:
            await line.until("state")

        async def looked() -> bool:
            return looks.count(len(jobs)) > 5

        await eventually(looked)
    assert len(gets) == len(jobs)


async def test_a_look_that_fails_is_made_again(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    get = type(gateway.broker.reader).get
    failures = [AutoReconnect("the primary has changed"), AutoReconnect("there is none")]

    async def shaky(self: Any, job_id: str, subject: str | None) -> Job:
        if failures:
            raise failures.pop()
        return await get(self, job_id, subject)

    job = await streamed(gateway)
    monkeypatch.setattr(type(gateway.broker.reader), "get", shaky)
    async with connected(gateway) as line:
        assert (await line.subscribe(job))["type"] == "subscribed"
    assert not failures


async def test_what_nobody_has_foreseen_is_told_of_that_job_alone(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = type(gateway.broker.reader).get
    job, other = await streamed(gateway), await streamed(gateway)

    async def broken(self: Any, job_id: str, subject: str | None) -> Job:
        if job_id == job:
            raise ZeroDivisionError
        return await get(self, job_id, subject)

    monkeypatch.setattr(type(gateway.broker.reader), "get", broken)
    async with connected(gateway) as line:
        assert (await line.subscribe(job))["code"] == "internal_error"
        assert (await line.subscribe(other))["type"] == "subscribed"


async def test_a_client_that_goes_away_leaves_nothing_behind(gateway: Gateway) -> None:
    async with connected(gateway) as line:
        for _ in range(3):
            await line.subscribe(await streamed(gateway))
            await line.until("state")
        line.socket.transport.abort()

    async def forgotten() -> bool:
        return not gateway.broker.feed._waiters

    await eventually(forgotten)


async def test_a_client_who_vanishes_while_much_is_to_be_told_is_no_fault_of_ours(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = [await streamed(gateway) for _ in range(10)]
    jobs = await gateway.claimed("simulator", 10)
    async with connected(gateway, max_queue=1) as line:
        for job in waiting:
            await line.say(type="subscribe", job=job, events=["token"])
            await line.until("subscribed")
        # All of them wait for their turn to tell him more than is taken for him.
        for job in jobs:
            chunk = Chunk(job.id, str(job.token), 0, [piece("x" * 50_000) for _ in range(100)])
            await gateway.broker.chunks.add([(job, chunk)])

        async def full() -> bool:
            return max(transports(gateway)) > 64 * 1024

        await eventually(full)
        line.socket.transport.abort()

        async def forgotten() -> bool:
            return not gateway.broker.feed._waiters

        await eventually(forgotten)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_gateway_that_stops_says_so(gateway: Gateway) -> None:
    async with connected(gateway) as line, connected(gateway) as idle:
        await line.subscribe(await streamed(gateway))
        gateway.broker.feed.close()
        assert await closed(line) == (1012, "gateway_stopping")
        assert await closed(idle) == (1012, "gateway_stopping")


def test_a_real_gateway_takes_connections_and_sends_them_home_when_it_stops(system: System) -> None:
    gateway = system.gateway()
    system.sign_in()
    job = system.chat()
    headers = {"Authorization": system.http.headers["Authorization"]}
    with connect_now(system.url.replace("http", "ws", 1) + "/ws/jobs", additional_headers=headers) as socket_:
        socket_.send(json.dumps({"type": "subscribe", "job": job}))
        assert json.loads(socket_.recv(timeout=20))["type"] == "subscribed"
        gateway.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as caught:
            [*iter(partial(socket_.recv, timeout=20), None)]
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012
    end(gateway)
