"""The client that blocks."""

import os
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from typing import Any, Self, TypeVar, Unpack

import httpx

from roundhouse.aio import PATIENCE
from roundhouse.calls import POLL, Calls
from roundhouse.following import AsyncStream
from roundhouse.models import Answer, Job, JobEvent, JobPage, Model, Piece
from roundhouse.requests import ChatOptions, Handling, Messages, OcrOptions, Sampling, Source
from roundhouse.session import Access, OnTrouble, Session
from roundhouse.wire import BlockingWire, run

T = TypeVar("T")


def _each(items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    try:
        while True:
            try:
                item = run(items.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(items.aclose())


class Stream:
    """As AsyncStream: an iterator over the pieces of an answer, and a context manager that cancels what is left."""

    def __init__(self, stream: AsyncStream) -> None:
        self._stream = stream

    @property
    def job_id(self) -> str | None:
        """None until the gateway has told it, at the latest with the first piece."""
        return self._stream.job_id

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        try:
            return run(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        run(self._stream.aclose())

    def cancel(self) -> None:
        run(self._stream.cancel())


class Client:
    """As AsyncClient, whose methods these are, but each blocks until it is done."""

    def __init__(
        self,
        urls: str | Sequence[str] | None = None,
        *,
        token: str | None = None,
        username: str | None = None,
        password: str | None = None,
        patience: float = PATIENCE,
        on_trouble: OnTrouble | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        access = Access.of(urls, token, username, password, os.environ)
        self._calls = Calls(Session(BlockingWire(access.urls, transport), access, patience, on_trouble))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        run(self._calls.session.wire.hang_up())

    @property
    def patience(self) -> float:
        return self._calls.patience

    @patience.setter
    def patience(self, seconds: float) -> None:
        self._calls.patience = seconds

    @property
    def url(self) -> str:
        return self._calls.url

    def login(self, username: str, password: str) -> None:
        run(self._calls.login(username, password))

    def submit_chat(
        self, model: str | None, messages: Messages, timeout: float | None = None, **options: Unpack[Sampling]
    ) -> Job:
        return run(self._calls.submit_chat(model, messages, timeout, **options))

    def submit_ocr(self, document: Source, timeout: float | None = None, **options: Unpack[OcrOptions]) -> Job:
        return run(self._calls.submit_ocr(document, timeout, **options))

    def submit_embeddings(
        self, model: str, texts: str | Sequence[str], timeout: float | None = None, **options: Unpack[Handling]
    ) -> Job:
        return run(self._calls.submit_embeddings(model, texts, timeout, **options))

    def job(self, job: Job | str) -> Job:
        return run(self._calls.job(job))

    def wait(
        self,
        job: Job | str,
        timeout: float | None = None,
        *,
        on_change: Callable[[Job], None] | None = None,
        every: int = POLL,
    ) -> Job:
        return run(self._calls.wait(job, timeout, on_change=on_change, every=every))

    def cancel(self, job: Job | str) -> Job:
        return run(self._calls.cancel(job))

    def jobs(
        self,
        *,
        status: str | None = None,
        model: str | None = None,
        client: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobPage:
        return run(self._calls.jobs(status=status, model=model, client=client, limit=limit, cursor=cursor))

    def result(self, job: Job | str, format: str | None = None) -> bytes:
        return run(self._calls.result(job, format))

    def result_chunks(self, job: Job | str, format: str | None = None) -> Generator[bytes, None, None]:
        return _each(self._calls.result_chunks(job, format))

    def events(self, job: Job | str, timeout: float | None = None) -> Generator[JobEvent, None, None]:
        return _each(self._calls.events(job, timeout))

    def stream(
        self,
        model: str,
        messages: Messages,
        timeout: float | None = None,
        *,
        restarts: bool = False,
        **options: Unpack[ChatOptions],
    ) -> Stream:
        return Stream(self._calls.stream(model, messages, timeout, restarts=restarts, **options))

    def chat(
        self, model: str, messages: Messages, timeout: float | None = None, **options: Unpack[ChatOptions]
    ) -> Answer:
        return run(self._calls.chat(model, messages, timeout, **options))

    def ocr(
        self,
        document: Source,
        timeout: float | None = None,
        *,
        on_event: Callable[[JobEvent], None] | None = None,
        **options: Unpack[OcrOptions],
    ) -> Job:
        return run(self._calls.ocr(document, timeout, on_event=on_event, **options))

    def embed(
        self, model: str, texts: str | Sequence[str], timeout: float | None = None, **options: Unpack[Handling]
    ) -> list[list[float]]:
        return run(self._calls.embed(model, texts, timeout, **options))

    def models(self) -> list[Model]:
        return run(self._calls.models())

    def call(
        self, method: str, path: str, params: Mapping[str, Any] | None = None, json: object = None
    ) -> dict[str, Any]:
        return run(self._calls.call(method, path, params, json))

    def healthy(self) -> bool:
        return run(self._calls.healthy())
