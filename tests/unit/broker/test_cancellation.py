"""Cancelling what asks a database that is away, and what the driver makes of it."""

import asyncio
from typing import Any

import pytest

from broker.cancellation import cancel_all, together
from broker.database import connect
from tests.conditions import eventually
from tests.ports import free_port


async def test_a_cancelled_question_does_not_confuse_the_lock_of_the_driver() -> None:
    database = connect(f"mongodb://127.0.0.1:{free_port()}", "away")
    asking = asyncio.create_task(database.jobs.find_one())
    topology = await database.client._get_topology()
    try:
        # It looks every half a second whether a server has come, and takes the lock back to do so.
        await eventually(lambda: _waits(topology._condition))
        async with topology._lock:
            await eventually(lambda: _waits(topology._lock))
            asking.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert not asking.done(), "at its end it gives back a lock that it must hold then"
        await asyncio.wait({asking})
        assert asking.cancelled()
    finally:
        await asyncio.wait_for(database.close(), 10)


async def _waits(what: Any) -> bool:
    return bool(what._waiters)


async def test_who_repeats_whatever_fails_is_ended_nevertheless() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                swallowed += 1
        await asyncio.sleep(3600)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await cancel_all([task])
    assert task.cancelled()


async def test_what_is_done_together_is_ended_however_often_that_has_to_be_told() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                swallowed += 1

    async def for_ever() -> None:
        await asyncio.sleep(3600)

    both = asyncio.create_task(together(stubborn(), for_ever()))
    await asyncio.sleep(0)
    await asyncio.wait_for(cancel_all([both]), 10)
    assert both.cancelled()
    assert swallowed == 2


async def test_of_what_is_done_together_the_first_failure_ends_all() -> None:
    ended = asyncio.Event()

    async def fails() -> None:
        raise ValueError("broken")

    async def for_ever() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    with pytest.raises(ValueError, match="broken"):
        await together(for_ever(), fails())
    assert ended.is_set()
