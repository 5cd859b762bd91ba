"""One engine that does as it is told, with engines that do what a test tells them."""

import asyncio

import pytest

from broker.errors import EngineError
from broker.measurements import Measurement
from tests.conditions import eventually
from tests.unit.worker.puppets import GPU, Puppet, Sleeper, kept
from worker.engine_host import UNKNOWN
from worker.engine_state import MAX_STARTS, EngineState
from worker.engines.base import Footprint, Loadable

S = EngineState


async def _is(one: object, other: object) -> bool:
    return one == other


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine_state._BACKOFF", 0.01)


def test_an_engine_that_sleeps_is_one_that_takes_memory() -> None:
    assert isinstance(Sleeper(), Loadable)
    assert not isinstance(Puppet(), Loadable)


async def test_each_command_changes_the_state_before_it_returns() -> None:
    """So that nobody takes an engine for ready that is going."""
    async with kept(Sleeper()) as it:
        it.start()
        assert it.host.state is S.STARTING
        await it.becomes(S.READY)
        it.host.drain()
        assert it.host.state is S.DRAINING
        it.host.stop()
        assert it.host.state is S.STOPPING
        await it.becomes(S.STOPPED)
    assert it.states == [S.STARTING, S.READY, S.DRAINING, S.STOPPING, S.STOPPED]


async def test_a_death_is_told_with_its_reason_and_the_next_start_names_it() -> None:
    async with kept(Puppet()) as it:
        await it.gets_ready()
        it.engine.die("it was killed by SIGKILL")
        await it.becomes(S.STOPPED)
        assert it.deaths == [("model", "it was killed by SIGKILL")]
        assert it.host.told(it.known, None).last_error == "it was killed by SIGKILL"
        it.start()
        assert it.host.told(it.known, None).reason == "it was killed by SIGKILL"
        await it.becomes(S.READY)
        assert it.host.told(it.known, None).reason == ""


async def test_a_start_that_fails_is_told_each_time_and_then_given_up_with_its_reason() -> None:
    async with kept(Puppet(fails=MAX_STARTS)) as it:
        for _ in range(MAX_STARTS):
            assert it.host.state is not S.FAILED
            await eventually(lambda: _is(it.host.actual().waits, False))
            it.start()
            await eventually(lambda: _is(it.host.busy, False))
        assert it.host.state is S.FAILED
        assert it.host.told(it.known, None).reason == "no GPU on this machine"
    assert it.failed == [("model", "no GPU on this machine", given_up) for given_up in (False, False, True)]


async def test_the_next_start_after_a_failed_one_waits_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine_state._BACKOFF", 60.0)
    async with kept(Puppet(fails=1)) as it:
        it.start()
        await it.becomes(S.STOPPED)
        assert it.host.actual().waits


async def test_a_failed_engine_that_is_reset_can_be_started() -> None:
    async with kept(Puppet(fails=MAX_STARTS)) as it:
        for _ in range(MAX_STARTS):
            it.start()
            await eventually(lambda: _is(it.host.busy, False))
        it.host.reset()
        await it.gets_ready()
    assert (it.states[-3:], it.failed[-1][2]) == ([S.STOPPED, S.STARTING, S.READY], True)


async def test_an_error_that_no_engine_should_raise_fails_the_start_and_hangs_nothing() -> None:
    class Broken(Puppet):
        async def start(self) -> None:
            raise KeyError("a bug of ours")

    async with kept(Broken()) as it:
        it.start()
        await it.becomes(S.STOPPED)
    assert it.failed == [("model", "KeyError: 'a bug of ours'", False)]


async def test_a_start_may_be_broken_off_and_that_is_no_failure() -> None:
    engine = Sleeper()
    engine.gate.clear()
    async with kept(engine) as it:
        it.start()
        await eventually(lambda: _is(it.phases, ["loading"]))
        await it.stops()
    assert (it.failed, engine.calls[0]) == ([], "stop")


async def test_an_engine_is_started_on_the_gpus_that_it_is_told_for_as_many_runs_as_operators_want() -> None:
    async with kept(Sleeper()) as it:
        await it.gets_ready()
        assert (it.engine.gpus, it.engine.max_concurrent) == ([GPU], 7), "main memory is no GPU"
        assert it.host.told(it.known, None).gpus == ("host:here", GPU)


async def test_what_this_machine_cannot_run_is_not_started_and_not_counted_as_a_failure() -> None:
    engine = Sleeper()
    engine.inability = "weights missing"
    async with kept(engine) as it:
        assert it.host.told(it.known, None).state == UNKNOWN
        await it.host.look()
        assert (it.host.told(it.known, None).state, it.host.actual().unable) == ("weights missing", True)
        assert not it.host.told(it.known, None).able
        it.start()
        await it.becomes(S.STOPPED)
        assert (engine.calls, it.failed) == ([], [])
        engine.inability = None
        await it.host.look()
        assert (it.host.told(it.known, None).state, it.host.actual().unable) == ("stopped", False)
        await it.gets_ready()


async def test_an_engine_sleeps_and_wakes_and_both_are_measured() -> None:
    async with kept(Sleeper()) as it:
        await it.falls_asleep()
        asleep = it.host.told(it.known, 1000)
        assert (asleep.state, asleep.memory_bytes, asleep.host_bytes) == ("sleeping", 10, 700)
        it.host.wake()
        await it.becomes(S.READY)
        awake = it.host.told(it.known, 1000)
    assert it.states == [S.STARTING, S.READY, S.DRAINING, S.SLEEPING, S.READY]
    assert (awake.memory_bytes, awake.need_bytes, awake.healthy, awake.address) == (
        1000,
        1000,
        True,
        Sleeper.address,
    )
    assert (it.known.memory_bytes, it.known.host_bytes) == (1000, 700)
    assert None not in (it.known.load_seconds, it.known.sleep_seconds, it.known.wake_seconds)


async def test_while_it_falls_asleep_it_takes_nothing_and_while_it_wakes_it_still_sleeps() -> None:
    engine = Sleeper()
    async with kept(engine) as it:
        await it.gets_ready()
        it.host.drain()
        engine.gate.clear()
        it.host.sleep()
        await eventually(lambda: _is(engine.calls[-1], "sleep"))
        assert (it.host.state, it.host.busy, it.host.ready) == (S.DRAINING, True, False)
        engine.gate.set()
        await it.becomes(S.SLEEPING)
        engine.gate.clear()
        it.host.wake()
        await eventually(lambda: _is(engine.calls[-1], "wake"))
        assert (it.host.state, it.host.busy, it.host.told(it.known, None).phase) == (S.SLEEPING, True, "waking")
        engine.gate.set()
        await it.becomes(S.READY)


@pytest.mark.parametrize("failure", [EngineError("no memory was freed"), KeyError("a bug of ours")])
async def test_an_engine_that_does_not_sleep_is_stopped(failure: Exception) -> None:
    async with kept(Sleeper()) as it:
        await it.gets_ready()
        it.engine.failure = failure
        it.host.drain()
        it.host.sleep()
        await it.becomes(S.STOPPED)
        told = it.host.told(it.known, None)
    assert it.states[-3:] == [S.DRAINING, S.STOPPING, S.STOPPED]
    assert "did not sleep" in told.reason
    assert told.last_error == told.reason
    assert (it.engine.calls[-2:], it.failed, it.known.sleep_seconds) == (["stop", "stop"], [], None)


async def test_an_engine_that_does_not_wake_is_stopped_and_its_next_start_says_why() -> None:
    async with kept(Sleeper()) as it:
        await it.falls_asleep()
        it.engine.failure = EngineError("the canary was not answered")
        it.host.wake()
        await it.becomes(S.STOPPED)
        it.start()
        told = it.host.told(it.known, None)
        assert told.state == "starting"
        assert told.reason == "it did not wake and starts anew: the canary was not answered"
        await it.becomes(S.READY)
    assert it.failed == []


async def test_an_engine_that_finds_no_room_to_start_waits_a_while_as_often_as_it_takes() -> None:
    async with kept(Sleeper()) as it:
        it.engine.refusal = EngineError("others hold the memory", code="gpu_memory_short")
        for _ in range(MAX_STARTS + 1):
            it.start()
            await eventually(lambda: _is(it.host.busy, False))
            assert (it.host.state, it.host.actual().waits) == (S.STOPPED, True)
            assert it.host.told(it.known, None).reason == "others hold the memory"
        it.engine.refusal = None
        it.start()
        await it.becomes(S.READY)
    assert it.failed == []


async def test_an_engine_that_finds_no_room_to_wake_sleeps_on_and_waits_a_while() -> None:
    async with kept(Sleeper()) as it:
        await it.falls_asleep()
        it.engine.failure = EngineError("others hold the memory", code="gpu_memory_short")
        it.host.wake()
        await eventually(lambda: _is(it.host.busy, False))
        assert (it.host.state, it.host.actual().waits) == (S.SLEEPING, True)
        assert it.host.told(it.known, None).reason == "others hold the memory"
        it.engine.failure = None
        it.host.wake()
        await it.becomes(S.READY)
        assert it.host.told(it.known, None).reason == ""


@pytest.mark.parametrize("under_way", [None, "sleep", "wake"])
async def test_a_death_asleep_or_on_the_way_there_or_back_is_noticed(under_way: str | None) -> None:
    engine = Sleeper()
    async with kept(engine) as it:
        await (it.gets_ready() if under_way == "sleep" else it.falls_asleep())
        if under_way is not None:
            engine.gate.clear()
            if under_way == "sleep":
                it.host.drain()
            getattr(it.host, under_way)()
            await eventually(lambda: _is(engine.calls[-1], under_way))
        engine.die("it was killed by SIGKILL")
        await it.becomes(S.STOPPED)
    assert it.deaths == [("model", "it was killed by SIGKILL")]


@pytest.mark.parametrize("under_way", ["sleep", "wake"])
async def test_a_stop_breaks_off_what_is_under_way(under_way: str) -> None:
    engine = Sleeper()
    async with kept(engine) as it:
        await (it.gets_ready() if under_way == "sleep" else it.falls_asleep())
        engine.gate.clear()
        if under_way == "sleep":
            it.host.drain()
        getattr(it.host, under_way)()
        await eventually(lambda: _is(engine.calls[-1], under_way))
        await it.stops()
        assert it.deaths == []


async def test_an_engine_that_ends_because_it_is_told_to_has_not_died() -> None:
    class Obedient(Puppet):
        async def stop(self) -> None:
            await super().stop()
            if self._death is not None and not self._death.done():
                self.die("it ended with status 0")

    async with kept(Obedient()) as it:
        await it.gets_ready()
        await it.stops()
    assert (it.deaths, it.host.told(it.known, None).last_error) == ([], None)


async def test_the_progress_of_a_start_goes_by_the_time_that_the_last_one_took() -> None:
    engine = Sleeper()
    engine.gate.clear()
    async with kept(engine) as it:
        it.start()
        assert it.host.told(Measurement(), None).progress is None
        starting = it.host.told(Measurement(load_seconds=1000.0), None)
        assert starting.progress is not None
        assert 0.0 <= starting.progress < 0.1
        await eventually(lambda: _is(it.host.told(Measurement(load_seconds=0.01), None).progress, 0.95))
        await eventually(lambda: _is(it.host.told(it.known, None).phase, "loading"))
        engine.gate.set()
        await it.becomes(S.READY)
        ready = it.host.told(Measurement(load_seconds=0.01), None)
        assert (ready.progress, ready.phase) == (None, "")


async def test_what_it_holds_is_noted_again_when_work_has_it_take_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine_condition.WEIGH", 0.0)
    async with kept(Sleeper()) as it:
        await it.gets_ready()
        it.engine.holds = Footprint(900, 10)
        await it.host.look()
        assert (it.known.memory_bytes, it.host.told(it.known, None).memory_bytes) == (1000, 900)
        it.engine.holds = Footprint(1500, 10)
        await it.host.look()
        assert it.known.memory_bytes == 1500
        await it.stops()
        assert it.host.told(it.known, None).memory_bytes is None


async def test_an_engine_that_is_not_well_says_so_and_goes_on() -> None:
    async with kept(Sleeper()) as it:
        await it.gets_ready()
        it.engine.well = False
        await it.host.look()
        assert (it.host.told(it.known, None).healthy, it.host.ready) == (False, True)


async def test_an_engine_that_never_says_how_it_is_is_not_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine_condition.ANSWER", 0.05)

    class Silent(Sleeper):
        async def healthy(self) -> bool:
            await asyncio.Event().wait()
            return True

    async with kept(Silent()) as it:
        await it.gets_ready()
        assert it.host.told(it.known, None).healthy is False


async def test_until_its_sleep_is_measured_all_that_it_holds_is_taken_for_what_it_keeps_in_main_memory() -> None:
    async with kept(Sleeper()) as it:
        it.engine.gpu_count = 2
        assert it.host.told(Measurement(), 1000).host_bytes == 2000
        assert it.host.told(Measurement(host_bytes=700), 1000).host_bytes == 700
        it.engine.can_sleep = False
        assert it.host.told(Measurement(), 1000).host_bytes == 0


async def test_of_an_engine_that_takes_no_memory_nothing_of_that_is_told() -> None:
    async with kept(Puppet()) as it:
        await it.gets_ready()
        told = it.host.told(it.known, None)
    assert (told.ready, told.managed, told.memory_bytes, told.can_sleep) == (True, False, None, False)
    assert it.known == Measurement()


async def test_an_engine_that_cannot_be_weighed_gets_ready_all_the_same() -> None:
    class Weightless(Sleeper):
        async def footprint(self) -> Footprint | None:
            raise RuntimeError("a bug of ours")

    async with kept(Weightless()) as it:
        await it.gets_ready()
        told = it.host.told(it.known, None)
        assert (told.memory_bytes, told.healthy, it.known.memory_bytes) == (None, False, None)
