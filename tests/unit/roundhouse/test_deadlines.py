"""A call's time is over when it says, whatever comes in the meantime, and however many sign in beside it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest

from roundhouse import AsyncClient, Client, DeadlinePassed
from tests.unit.roundhouse.fake import JOB, Beats, Script, async_client, client, event

ACCEPTED = {"request_id": JOB, "status": "queued", "task": "ocr", "model": "m", "priority": "normal"}
SSE = {"content-type": "text/event-stream", "x-request-id": JOB}
SHORT = 0.3


def submitted() -> httpx.Response:
    return httpx.Response(200, json=ACCEPTED)


def beating() -> httpx.Response:
    return httpx.Response(200, headers=SSE, stream=Beats())


def ignore(_: object) -> None:
    pass


CALLS: dict[str, tuple[Callable[[], Script], Callable[[Client], object]]] = {
    "stream": (lambda: Script(beating()), lambda api: list(api.stream("m", "hello", timeout=SHORT))),
    "events": (lambda: Script(beating()), lambda api: list(api.events(JOB, timeout=SHORT))),
    "ocr": (
        lambda: Script(submitted(), beating()),
        lambda api: api.ocr(b"%PDF", timeout=SHORT, on_event=ignore),
    ),
    "wait": (lambda: Script(beating()), lambda api: api.wait(JOB, timeout=SHORT)),
    "chat": (lambda: Script(beating()), lambda api: api.chat("m", "hello", timeout=SHORT)),
    "refusal": (
        lambda: Script(httpx.Response(500, stream=Beats())),
        lambda api: api.submit_chat("m", "hello", timeout=SHORT),
    ),
}


@pytest.mark.parametrize(("script", "call"), CALLS.values(), ids=CALLS)
def test_what_trickles_without_end_does_not_outlive_the_time_of_the_call(
    script: Callable[[], Script], call: Callable[[Client], object]
) -> None:
    gateway = script()
    with client(gateway) as api, pytest.raises(DeadlinePassed) as raised:
        call(api)
    if any(path.startswith("/api/jobs/") for path in gateway.paths):
        assert raised.value.job_id == JOB


async def all_of(items: AsyncIterator[object]) -> list[object]:
    return [item async for item in items]


ASYNC_CALLS: dict[str, Callable[[AsyncClient], Awaitable[object]]] = {
    "stream": lambda api: all_of(api.stream("m", "hello", timeout=SHORT)),
    "events": lambda api: all_of(api.events(JOB, timeout=SHORT)),
    "wait": lambda api: api.wait(JOB, timeout=SHORT),
    "chat": lambda api: api.chat("m", "hello", timeout=SHORT),
}


class Silent(httpx.AsyncByteStream):
    closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield event(1, {"choices": []})
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize("body", [Beats, Silent])
@pytest.mark.parametrize("call", ASYNC_CALLS.values(), ids=ASYNC_CALLS)
async def test_on_asyncio_neither_does_what_falls_silent(
    call: Callable[[AsyncClient], Awaitable[object]], body: type[Beats | Silent]
) -> None:
    stream = body()
    async with async_client(Script(httpx.Response(200, headers=SSE, stream=stream))) as api:
        with pytest.raises(DeadlinePassed):
            await call(api)
    assert stream.closed


async def test_nor_does_on_asyncio_what_does_not_even_begin() -> None:
    async def never(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with async_client(httpx.MockTransport(never)) as api:
        with pytest.raises(DeadlinePassed):
            await api.submit_chat("m", "hello", timeout=SHORT)
