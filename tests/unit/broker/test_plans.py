"""Orders and what is told of the plan, as they are written and read."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from broker.database import Database
from broker.desired import Wanted
from broker.plans import Decision, Expectation, Order, Overview, Plans

AT = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
LOAD = Order("org/big.7b", "w1", Wanted.RUNNING, ("GPU-0", "GPU-1"), "3 jobs wait for it", AT)
SLEEP = Order("$small", "w2", Wanted.SLEEPING, (), "it makes room", AT)
OVERVIEW = Overview(
    planned_at=AT,
    decisions=(Decision(AT, "load", "org/big.7b", "w1", ("GPU-0", "GPU-1"), "3 jobs wait for it"),),
    waiting={"$small": "room is made by org/big.7b"},
    unfit={"huge.model": "it needs more than there is"},
    expected=(Expectation("org/big.7b", AT, 4.5, True, "as last week"),),
    others={"GPU-0": 2**30},
)


@pytest.fixture
def plans(store: Database) -> Plans:
    return Plans(store)


async def test_what_is_written_is_read_again_whatever_the_models_are_called(plans: Plans) -> None:
    assert await plans.write([LOAD, SLEEP], OVERVIEW, 7)
    standing = await plans.look()
    assert (standing.epoch, standing.overview) == (7, OVERVIEW)
    assert set(standing.orders) == set(await plans.orders()) == {LOAD, SLEEP}
    assert standing.of("$small") == [SLEEP]


async def test_a_worker_sees_its_own_orders_alone(plans: Plans) -> None:
    assert await plans.orders_to("w1") == {}
    await plans.write([LOAD, SLEEP, replace(SLEEP, worker="w1")], OVERVIEW, 1)
    assert await plans.orders_to("w1") == {"org/big.7b": LOAD, "$small": replace(SLEEP, worker="w1")}
    assert await plans.orders_to("nobody") == {}


async def test_an_order_that_is_not_written_again_stands_no_more(plans: Plans) -> None:
    await plans.write([LOAD, SLEEP], OVERVIEW, 1)
    await plans.write([SLEEP], OVERVIEW, 1)
    assert await plans.orders_to("w1") == {}
    assert await plans.orders() == (SLEEP,)


async def test_the_same_plan_again_changes_nothing_and_only_what_has_changed_is_written(
    plans: Plans, store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plans.write([LOAD, SLEEP], OVERVIEW, 1)
    before = await store.plans.find_one()
    assert await plans.write([SLEEP, LOAD], OVERVIEW, 1), "in another order it is the same"
    assert await store.plans.find_one() == before
    told: list[dict[str, object]] = []
    original = Plans._set

    async def spied(self: Plans, changes: dict[str, object], epoch: int) -> bool:
        told.append(changes)
        return await original(self, changes, epoch)

    monkeypatch.setattr(Plans, "_set", spied)
    assert await plans.write([LOAD, SLEEP], replace(OVERVIEW, waiting={}), 1)
    assert told == [{"waiting": []}]


async def test_a_leader_that_a_newer_one_has_followed_can_write_no_more(plans: Plans) -> None:
    assert await plans.take(3)
    assert await plans.write([LOAD], OVERVIEW, 3)
    assert await plans.take(4)
    assert not await plans.take(3)
    assert not await plans.write([LOAD, SLEEP], OVERVIEW, 3)
    standing = await plans.look()
    assert (standing.epoch, standing.orders) == (4, (LOAD,))
    assert await plans.write([], OVERVIEW, 4)


async def test_what_is_known_is_asked_for_once_a_second(plans: Plans, store: Database) -> None:
    await plans.write([LOAD], OVERVIEW, 1)
    assert (await plans.known()).overview == OVERVIEW
    await store.plans.delete_many({})
    assert (await plans.known()).overview == OVERVIEW
