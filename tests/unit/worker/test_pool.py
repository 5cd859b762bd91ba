"""What comes of requests decides which of a model's servers get the next ones: against real HTTP servers."""

import asyncio
import random
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from broker.errors import (
    AttemptTimeout,
    BackendsHeldBack,
    EngineError,
    EngineUnavailable,
    UpstreamBusy,
    UpstreamTimeout,
)
from ocr.errors import RecogniserTimeout
from ocr.protocol import Page
from tests.conditions import eventually
from tests.unit.worker.test_upstreams import BREAKER, engine_for, request, text_of
from tests.upstreams import Behaviour, Upstream, upstreams
from worker.backends import backend, pool
from worker.engines.access import Server
from worker.engines.base import Delta, Request
from worker.engines.openai import OpenaiEngine
from worker.engines.vllm_vision import white_png


async def failure_of(engine: OpenaiEngine, asked: Request | None = None) -> EngineError:
    with pytest.raises(EngineError) as failure:
        await text_of(engine, asked)
    return failure.value


async def states(engine: OpenaiEngine, *wanted: str) -> None:
    async def there() -> bool:
        return [one.state for one in engine.backends()] == list(wanted)

    await eventually(there)


async def asked(server: Upstream, times: int) -> None:
    async def so_often() -> bool:
        return len(server.asked) == times

    await eventually(so_often)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another server is asked without a pause."""
    monkeypatch.setattr(pool, "pause", lambda failures: 0.0)


# ── Who is sound ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_server_that_fails_now_and_then_is_not_left_alone() -> None:
    async with upstreams(1) as (server,), engine_for(server) as engine:
        for _ in range(20):
            await text_of(engine)
        for _ in range(5):
            server.next.append(Behaviour(status=500))
            await failure_of(engine)
            assert engine.backends()[0].last_error is not None
            for _ in range(4):
                await text_of(engine)
        [state] = engine.backends()
    assert (state.state, state.last_error) == ("closed", None)


GARBAGE = [
    Behaviour(headers={"Content-Type": "text/html"}),
    Behaviour(status=302, headers={"Location": "http://127.0.0.1/"}),
    Behaviour(words=(), fault="unfinished"),
    Behaviour(fault="unfinished"),
]


@pytest.mark.parametrize("behaviour", GARBAGE, ids=["html", "redirect", "empty", "unfinished"])
async def test_a_server_that_answers_garbage_is_left_alone(behaviour: Behaviour) -> None:
    async with upstreams(1) as (server,), engine_for(server) as engine:
        server.usual = behaviour
        for _ in range(5):
            failure = await failure_of(engine)
            assert f"The upstream of ours at {server.url}" in failure.message
        [state] = engine.backends()
    assert (state.state, state.last_error) == ("open", failure.message)


@pytest.mark.parametrize("status", [401, 402, 403, 404])
async def test_a_server_that_wants_a_key_or_money_is_not_left_alone_but_told_of(status: int) -> None:
    async with upstreams(1) as (server,), engine_for(server) as engine:
        server.usual = Behaviour(status=status)
        for _ in range(6):
            failure = await failure_of(engine)
        [state] = engine.backends()
    assert (state.state, state.last_error) == ("closed", failure.message)


async def test_a_probe_that_is_answered_with_garbage_has_failed() -> None:
    async with upstreams(1) as (server,), engine_for(server, breaker=BREAKER) as engine:
        server.usual = Behaviour(status=500)
        for _ in range(2):
            await failure_of(engine)
        server.usual = Behaviour(words=(), fault="unfinished")
        await states(engine, "half-open")
        assert (await failure_of(engine)).code == "answer_cut_off"
        assert engine.backends()[0].state == "open"


# ── The request's own time ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", ["hang", "stall"])
async def test_who_gives_a_server_little_time_does_not_blame_it(fault: Any) -> None:
    async with upstreams(1) as (server,), engine_for(server, breaker=BREAKER) as engine:
        server.usual = Behaviour(fault=fault)
        for _ in range(3):
            assert isinstance(await failure_of(engine, request(timeout=0.2)), UpstreamTimeout)
        [state] = engine.backends()
    assert (state.state, state.last_error, state.failed) == ("closed", None, 0)


async def test_many_who_each_give_it_little_time_find_out_that_it_says_nothing_to_anybody() -> None:
    async with upstreams(1) as (server,), engine_for(server, breaker=BREAKER, timeout=1) as engine:
        server.usual = Behaviour(fault="hang")
        for _ in range(4):
            failure = await failure_of(engine, request(timeout=0.4))
            if isinstance(failure, BackendsHeldBack):
                break
        assert engine.backends()[0].state == "open"


async def test_who_asks_in_vain_while_others_are_answered_blames_nobody() -> None:
    async with upstreams(1) as (server,), engine_for(server, breaker=BREAKER, timeout=1) as engine:
        for _ in range(5):
            server.next.append(Behaviour(fault="hang"))
            await failure_of(engine, request(timeout=0.5))
            assert await text_of(engine) == "Good day"
        assert engine.backends()[0].state == "closed"


async def test_a_request_of_many_portions_is_answered_by_each_of_them() -> None:
    """Of embeddings the result alone is a chunk."""
    async with upstreams(1) as (server,), engine_for(server, breaker=BREAKER, timeout=1) as engine:
        server.usual = Behaviour(fault="hang")
        [one] = engine._pool.backends

        async def portions() -> None:
            while True:
                one.upstream.heard = asyncio.get_running_loop().time()
                await asyncio.sleep(0.05)

        told = asyncio.create_task(portions())
        for _ in range(3):
            await failure_of(engine, request(timeout=1.0))
        told.cancel()
        assert engine.backends()[0].state == "closed"


async def test_a_server_that_says_nothing_in_all_the_time_of_its_entry_has_failed() -> None:
    # The attempt's clock ends before the silence is too long, as it has begun before.
    async with upstreams(1) as (server,), engine_for(server, breaker=BREAKER, timeout=1) as engine:
        server.usual = Behaviour(fault="hang")
        for _ in range(2):
            failure = await failure_of(engine, request(timeout=1.0))
            assert "longer than the time that the request has" in failure.message
        assert engine.backends()[0].state == "open"


async def test_one_that_has_begun_in_time_is_sound_though_its_answer_takes_longer() -> None:
    async with upstreams(1) as (server,), engine_for(server, breaker=BREAKER, timeout=2) as engine:
        server.usual = Behaviour(fault="stall")
        await asyncio.gather(*(failure_of(engine, request(timeout=1.95)) for _ in range(3)))
        assert engine.backends()[0].state == "closed"


async def test_who_waits_for_room_longer_than_his_time_asks_nobody_and_blames_nobody() -> None:
    gate = asyncio.Event()
    async with upstreams(1) as (server,):
        backends = [{"name": "a", "base_url": server.url, "max_concurrent": 1}]
        server.usual = Behaviour(gate=gate)
        async with engine_for(server, backends=backends, base_url=None, breaker=BREAKER) as engine:
            busy = asyncio.create_task(text_of(engine))
            await asked(server, 1)
            for waiting in [failure_of(engine, request(timeout=0.2)) for _ in range(3)]:
                failure = await waiting
                assert (type(failure), failure.code) == (AttemptTimeout, "attempt_timeout")
                assert server.url in failure.message
            gate.set()
            await busy
            assert [engine.backends()[0].state, len(server.asked)] == ["closed", 1]


async def test_a_pause_that_outlasts_the_request_asks_no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "pause", lambda failures: 60.0)
    async with upstreams(2) as (one, other):
        one.usual = Behaviour(status=500)
        async with asyncio.timeout(10), engine_for(one, other, breaker={"failures": 1}) as engine:
            assert isinstance(await failure_of(engine, request(timeout=2.0)), UpstreamBusy)
            assert [state.state for state in engine.backends()] == ["open", "closed"]
    assert len(other.asked) == 0


# ── A probe under way ────────────────────────────────────────────────────────────────────────────────────────────


async def probing(engine: OpenaiEngine, server: Upstream, behaviour: Behaviour) -> asyncio.Task[str]:
    """The request that tries whether the server is back, once it has come there."""
    server.usual = Behaviour(status=500)
    for _ in range(2):
        await failure_of(engine)
    server.usual = behaviour
    await states(engine, "half-open")
    probe = asyncio.create_task(text_of(engine))
    await asked(server, 3)
    return probe


async def waiting(engine: OpenaiEngine, count: int) -> list[asyncio.Task[str]]:
    """So many requests that wait for what comes of the probe."""
    others = [asyncio.create_task(text_of(engine)) for _ in range(count)]
    await asyncio.wait(others, timeout=0.3)
    assert not any(other.done() for other in others)
    return others


async def test_while_a_probe_is_under_way_the_others_wait_for_its_first_word() -> None:
    async with upstreams(1) as (server,), engine_for(server, breaker=BREAKER, read_timeout=5) as engine:
        gate = asyncio.Event()
        probe = await probing(engine, server, Behaviour(words=(), fault="hang"))
        others = await waiting(engine, 3)
        assert len(server.asked) == 3
        probe.cancel()  # it has told nothing: one of the others is the next probe
        server.usual = Behaviour(gate=gate)
        await asked(server, 6)
        assert engine.backends()[0].state == "closed"
        gate.set()
        assert await asyncio.gather(*others) == ["Good day"] * 3


async def test_a_probe_that_fails_sends_the_others_away_for_as_long_as_the_server_is_left_alone() -> None:
    breaker = {**BREAKER, "pause": 2}
    async with upstreams(1) as (server,), engine_for(server, breaker=breaker, read_timeout=3) as engine:
        probe = await probing(engine, server, Behaviour(fault="hang"))
        others = await waiting(engine, 3)
        failures = await asyncio.gather(probe, *others, return_exceptions=True)
        assert isinstance(failures[0], UpstreamTimeout)
        for failure in failures[1:]:
            assert isinstance(failure, BackendsHeldBack)
            assert 0 < failure.retry_after <= 2
    assert len(server.asked) == 3


async def test_who_has_no_time_to_wait_for_a_probe_blames_nobody() -> None:
    async with upstreams(1) as (server,), engine_for(server, breaker=BREAKER) as engine:
        probe = await probing(engine, server, Behaviour(fault="hang"))
        assert type(await failure_of(engine, request(timeout=0.2))) is AttemptTimeout
        assert engine.backends()[0].state == "half-open"
        probe.cancel()
        await asyncio.wait([probe])


# ── Which one is next ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [401, 404, 500])
@pytest.mark.usefixtures("impatient")
async def test_the_quickest_to_fail_is_not_the_quickest(status: int) -> None:
    entry = {"balance": "latency", "breaker": {"failures": 100}}
    async with upstreams(2) as (one, other), engine_for(one, other, **entry) as engine:
        one.usual = Behaviour(status=status)
        for _ in range(30):
            assert await text_of(engine) == "Good day"
        assert engine.backends()[0].latency is None
    assert (len(one.asked), len(other.asked)) == (1, 30)


async def test_one_that_leaves_its_requests_without_a_word_is_not_measured_by_all_of_them() -> None:
    async with upstreams(2) as (one, other), engine_for(one, other, balance="latency") as engine:
        one.usual = Behaviour(fault="hang")
        await failure_of(engine, request(timeout=1.0))
        assert [await text_of(engine) for _ in range(4)] == ["Good day"] * 4
    assert len(one.asked) == 1


async def test_a_long_answer_keeps_nobody_from_measuring_its_server_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = asyncio.Event()
    async with upstreams(2) as (one, other), engine_for(one, other, balance="latency") as engine:
        one.next.append(Behaviour(gate=gate))
        async with aclosing(engine.run(request())) as long:
            assert isinstance(await anext(long), Delta)
            monkeypatch.setattr(backend, "_STALE", 0.0)
            await text_of(engine)
            await text_of(engine)
            gate.set()
    assert (len(one.asked), len(other.asked)) == (2, 1)


@pytest.mark.usefixtures("impatient")
async def test_what_one_server_fails_is_no_turn_of_the_next() -> None:
    async with upstreams(2) as (one, other), engine_for(one, other) as engine:
        one.usual = Behaviour(status=401)
        for _ in range(10):
            await text_of(engine)
    assert (len(one.asked), len(other.asked)) == (5, 10)


@pytest.mark.usefixtures("impatient")
async def test_what_one_server_fails_is_shared_by_the_others() -> None:
    async with upstreams(3) as (one, *others), engine_for(one, *others) as engine:
        one.usual = Behaviour(status=401)
        for _ in range(12):
            await text_of(engine)
    assert [len(server.asked) for server in (one, *others)] == [4, 6, 6]


async def test_why_another_server_was_tried_is_not_lost_where_that_is_left_alone_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with upstreams(2) as (one, other), engine_for(one, other, breaker={"failures": 1}) as engine:
        one.usual = Behaviour(status=429, message="slowly")
        other.usual = Behaviour(status=500)
        paused = asyncio.Event()

        def long_enough(failures: int, rng: random.Random | None = None) -> float:
            paused.set()
            return 1.0

        monkeypatch.setattr(pool, "pause", long_enough)
        first = asyncio.create_task(failure_of(engine))
        await paused.wait()
        await failure_of(engine, request(modelKey="b"))
        failure = await first
    assert isinstance(failure, UpstreamBusy)
    assert "slowly" in failure.message


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("first", ["a", "b"])
async def test_what_one_will_not_do_for_good_another_may_do_later(first: str) -> None:
    """In whichever order: the job is tried again, and not given up for one server's wrong key."""
    async with upstreams(2) as servers, engine_for(*servers) as engine:
        servers["ab".index(first)].usual = Behaviour(status=503)
        servers["ba".index(first)].usual = Behaviour(status=401)
        failure = await failure_of(engine)
    assert (failure.code, failure.permanent) == ("upstream_error", False)
    assert [asked["name"] for asked in failure.details["backends"]] == ["a", "b"]


async def test_nor_is_a_job_given_up_while_another_is_left_alone() -> None:
    async with upstreams(2) as (one, other), engine_for(one, other, breaker={"failures": 1}) as engine:
        one.usual, other.usual = Behaviour(status=503), Behaviour(status=401)
        await failure_of(engine, request(modelKey="a"))
        failure = await failure_of(engine)
    assert isinstance(failure, BackendsHeldBack)
    assert 0 < failure.retry_after <= 30


async def test_a_request_with_little_time_makes_no_quick_server_a_slow_one() -> None:
    async with upstreams(2) as (one, other), engine_for(one, other, balance="latency") as engine:
        for name in "ab":
            await text_of(engine, request(modelKey=name))
        one.next.append(Behaviour(fault="hang"))
        await failure_of(engine, request(timeout=0.2, modelKey="a"))
        [state, _] = engine.backends()
    assert state.latency is not None
    assert (0.2 <= state.latency < 1, state.failed) == (True, 0)


# ── Pages ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_server_that_hangs_over_pages_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    path.write_bytes(white_png(64, 64))
    async with upstreams(1) as (server,):
        server.usual = Behaviour(fault="hang")
        async with engine_for(server, task="ocr", timeout=3, breaker={"failures": 2}) as engine:
            recogniser = await engine.recogniser(Request("job", 1, {}, task="ocr"))
            tries = (recogniser.recognise(Page(number, path, 64, 64, 72), 1) for number in (1, 2))
            async with asyncio.timeout(3):
                failures = await asyncio.gather(*tries, return_exceptions=True)
            assert [type(failure) for failure in failures] == [RecogniserTimeout] * 2, "the other pages are read"
            assert engine.backends()[0].state == "open"


async def test_a_server_that_is_out_of_reach_is_no_pages_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(*_: Any, **__: Any) -> None:
        raise UpstreamTimeout("It could not be connected to in time.", reached=False)

    path = tmp_path / "page.png"
    path.write_bytes(white_png(64, 64))
    monkeypatch.setattr(Server, "_answer", unreachable)
    async with upstreams(1) as (server,), engine_for(server, task="ocr") as engine:
        recogniser = await engine.recogniser(Request("job", 1, {}, task="ocr"))
        with pytest.raises(UpstreamTimeout):
            await recogniser.recognise(Page(1, path, 64, 64, 72), 1)


async def test_documents_are_not_taken_where_nothing_draws_their_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    async with upstreams(1) as (server,), engine_for(server) as chat:
        assert await text_of(chat) == "Good day"
        with pytest.raises(EngineUnavailable, match="poppler-utils"):
            async with engine_for(server, task="ocr"):
                raise AssertionError("it has started")
