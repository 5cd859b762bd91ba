"""The client against gateways on real sockets, with a worker beside them."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.asynchronous.database import AsyncDatabase

from config import Settings
from roundhouse import (
    AsyncClient,
    Client,
    End,
    JobEvent,
    JobFailed,
    Piece,
    Restart,
    RoundhouseApiError,
    StreamRestarted,
    Text,
    Unreachable,
)
from tests.conditions import eventually
from tests.deployments import PASSWORD, Gateway, listening, make_settings, patient_config, worker_on
from tests.ports import free_port

SAMPLE = Path(__file__).parents[2] / "samples" / "letter.pdf"


@pytest.fixture
def settings(tmp_path: Path, mongod_uri: str, database: AsyncDatabase[dict[str, Any]]) -> Settings:
    config = patient_config()
    config["models"]["embedder"] = {"task": "embedding", "engine": "simulator"}
    config["models"]["slow"] = {"task": "chat", "engine": "simulator", "tokens_per_second": 20, "tokens": 2000}
    return make_settings(tmp_path, mongod_uri, database.name, config)


@pytest.fixture
async def online(settings: Settings) -> AsyncIterator[Gateway]:
    async with listening(settings) as gateway, worker_on(settings):
        yield gateway


def url_of(gateway: Gateway) -> str:
    return str(gateway.http.base_url).rstrip("/")


@pytest.fixture
async def api(online: Gateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(url_of(online), username="admin", password=PASSWORD) as api:
        yield api


def text_of(pieces: list[Piece]) -> str:
    """What is left of the pieces: those before a restart are void."""
    text = ""
    for piece in pieces:
        text = "" if isinstance(piece, Restart) else text + (piece.text if isinstance(piece, Text) else "")
    return text


async def test_an_answer_and_its_stream_are_the_same_text(api: AsyncClient) -> None:
    answer = await api.chat("simulator", "hello", max_tokens=5)
    pieces = [piece async for piece in api.stream("sim", "hello", max_tokens=5)]
    assert text_of(pieces) == answer.text
    assert pieces[-1] == End("length", answer.usage)
    assert len(pieces) == 7
    job = await api.job(answer.job_id)
    assert (job.status, job.text) == ("completed", answer.text)


async def test_a_conversation_goes_on_with_the_message_of_an_answer(api: AsyncClient) -> None:
    first = await api.chat("simulator", "hello")
    question = {"role": "user", "content": "hello"}
    again = await api.chat("simulator", [question, first.message, question], system="Be brief.")
    assert again.usage is not None
    assert again.usage.prompt_tokens > 20


async def test_the_blocking_client_does_the_same_without_a_loop(online: Gateway, api: AsyncClient) -> None:
    def blocking() -> tuple[str, list[Piece], list[str], bool]:
        with Client(url_of(online), username="admin", password=PASSWORD) as client:
            job = client.wait(client.submit_chat(None, "hello", client="me"), timeout=20)
            pieces = list(client.stream("simulator", "hello"))
            listed = [found.id for found in client.jobs(client="me").jobs]
            return job.text or "", pieces, listed, listed == [job.id] and client.healthy()

    text, pieces, listed, well = await asyncio.to_thread(blocking)
    assert text == text_of(pieces) == (await api.chat("simulator", "hello")).text
    assert len(listed) == 1
    assert well


class Cut(httpx.AsyncHTTPTransport):
    """Real connections, each cut off after so many bytes of a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.after: list[int] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if self.after and response.headers.get("content-type", "").startswith("text/event-stream"):
            assert isinstance(response.stream, httpx.AsyncByteStream)
            response.stream = Part(response.stream, self.after.pop(0))
        return response


class Part(httpx.AsyncByteStream):
    def __init__(self, whole: httpx.AsyncByteStream, size: int) -> None:
        self._whole, self._left = whole, size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._whole:
            yield data[: self._left]
            self._left -= len(data)
            if self._left <= 0:
                raise httpx.ReadError("cut off")

    async def aclose(self) -> None:
        await self._whole.aclose()


async def test_a_stream_that_is_cut_again_and_again_is_told_as_if_it_had_not(online: Gateway) -> None:
    cut = Cut()
    async with AsyncClient(url_of(online), username="admin", password=PASSWORD, transport=cut) as api:
        whole = [piece async for piece in api.stream("simulator", "hello")]
        for size in (1, 150, 400, 701, 1000):
            cut.after = [size] * 6
            assert [piece async for piece in api.stream("simulator", "hello")] == whole, size
            assert cut.after == []


class Nameless(Cut):
    """And the proxy in between keeps to itself which job it is."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        response.headers.pop("x-request-id", None)
        return response


async def test_a_stream_goes_on_also_where_nobody_says_of_which_job_it_is(online: Gateway) -> None:
    cut = Nameless()
    async with AsyncClient(url_of(online), username="admin", password=PASSWORD, transport=cut) as api:
        whole = [piece async for piece in api.stream("simulator", "hello")]
        before = len((await api.jobs()).jobs)
        cut.after = [700] * 3
        assert [piece async for piece in api.stream("simulator", "hello")] == whole
        assert cut.after == []
        assert len((await api.jobs()).jobs) == before + 1


async def test_a_stream_goes_on_at_the_other_gateway(online: Gateway, settings: Settings) -> None:
    cut = Cut()
    async with listening(settings) as other:
        urls = [url_of(online), f"http://127.0.0.1:{free_port()}", url_of(other)]
        async with AsyncClient(urls, username="admin", password=PASSWORD, transport=cut) as api:
            cut.after = [600]
            pieces = [piece async for piece in api.stream("simulator", "hello")]
            assert api.url == url_of(other)
            assert text_of(pieces) == (await api.chat("simulator", "hello")).text


FAILS = {"simulate": {"fault": "error", "after": 8}}


async def test_an_answer_that_is_generated_anew_is_not_spliced(api: AsyncClient) -> None:
    stream = api.stream("simulator", "hello", extra=FAILS)
    with pytest.raises(StreamRestarted) as raised:
        async for _ in stream:
            pass
    job = await api.wait(raised.value.job_id or "", timeout=20)
    async with api.stream("simulator", "hello", restarts=True, extra=FAILS) as again:
        pieces = [piece async for piece in again]
    assert pieces.count(Restart()) == 1
    assert isinstance(pieces[0], Text)
    assert text_of(pieces) == job.text == (await api.job(again.job_id or "")).text


async def test_an_answer_that_fails_for_good_is_an_error_with_its_job(api: AsyncClient) -> None:
    refused = {"simulate": {"fault": "reject", "after": 3}}

    async def streamed() -> None:
        async for _ in api.stream("simulator", "hello", extra=refused):
            pass

    for ask in (api.chat("simulator", "hello", extra=refused), streamed()):
        with pytest.raises(JobFailed) as raised:
            await ask
        assert raised.value.code == "engine_rejected_input"
        assert (await api.job(raised.value.job_id or "")).status == "failed"


async def test_who_leaves_a_stream_has_its_job_cancelled(api: AsyncClient) -> None:
    async with api.stream("slow", "hello") as stream:
        assert isinstance(await anext(stream), Text)
    assert stream.job_id is not None
    assert (await api.wait(stream.job_id, timeout=20)).status == "cancelled"


async def test_the_same_key_makes_one_job(api: AsyncClient) -> None:
    first = await api.submit_chat("simulator", "hello", idempotency_key="mine", priority="high")
    second = await api.submit_chat("simulator", "hello", idempotency_key="mine", priority="high")
    assert first.id == second.id
    with pytest.raises(RoundhouseApiError, match="idempotency_conflict"):
        await api.submit_chat("simulator", "other", idempotency_key="mine")


async def test_a_document_is_read_with_its_news_told_and_its_results_fetched(api: AsyncClient) -> None:
    told: list[JobEvent] = []
    job = await api.ocr(SAMPLE, 120, on_event=told.append, language="eng", searchable_pdf=True)
    assert JobEvent("page", {"number": 1, "status": "completed"}) in told
    assert told[-1].name == "end"
    assert job.text
    assert job.text.split()[0] in (await api.result(job, "markdown")).decode()
    assert b"".join([chunk async for chunk in api.result_chunks(job, "pdf")]).startswith(b"%PDF")
    again = await api.ocr(SAMPLE.read_bytes(), language="eng", searchable_pdf=True)
    assert again.body["cached_from"] == job.id


async def test_embeddings_come_at_once_or_as_a_job(api: AsyncClient) -> None:
    [one, other] = await api.embed("embedder", ["a", "b"])
    assert len(one) == len(other) == 16
    job = await api.wait(await api.submit_embeddings("embedder", "a"), timeout=20)
    assert job.status == "completed"


async def test_all_names_of_models_are_listed_with_their_state(api: AsyncClient) -> None:
    models = {}

    async def ready() -> bool:
        models.update({model.name: model for model in await api.models()})
        return models["sim"].state == "ready"

    await eventually(ready)
    assert (models["sim"].root, models["sim"].task) == ("simulator", "chat")
    with pytest.raises(RoundhouseApiError, match="model_not_found"):
        await api.chat("simulatr", "hello")


async def test_a_wrong_password_and_a_gateway_that_is_not_there_are_told_apart(online: Gateway) -> None:
    async with AsyncClient(url_of(online), username="admin", password="wrong") as api:
        with pytest.raises(RoundhouseApiError, match="invalid_credentials"):
            await api.models()
        await api.login("admin", PASSWORD)
        assert await api.models()
    async with AsyncClient(f"http://127.0.0.1:{free_port()}", token="t", patience=0.2) as nobody:
        with pytest.raises(Unreachable, match="roundhouse up"):
            await nobody.models()
        assert not await nobody.healthy()


@pytest.fixture
def variables(online: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUNDHOUSE_URL", url_of(online))
    monkeypatch.setenv("ROUNDHOUSE_USER", "admin")
    monkeypatch.setenv("ROUNDHOUSE_PASSWORD", PASSWORD)


@pytest.mark.usefixtures("variables")
async def test_where_and_as_whom_is_in_the_environment() -> None:
    async with AsyncClient() as api:
        assert (await api.chat("simulator", "hello")).finish_reason == "stop"
