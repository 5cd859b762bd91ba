"""JSON that a document of the database cannot hold."""

from typing import Any

import pytest
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import OperationFailure

from broker.storable import DEEPEST, unstorable
from worker.persist import persist


def nested(levels: int) -> Any:
    value: Any = "deep"
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


GOOD = {
    "numbers": [0, -(2**63), 2**63 - 1, 1.5e300, True, None],
    "names": {"": {"a.b": {"$set": {"$a": "NUL in a text: \0"}}}},
    "as deep as it goes": nested(DEEPEST),
}


@pytest.mark.parametrize("value", GOOD.values(), ids=GOOD)
async def test_what_is_let_through_the_database_holds(database: AsyncDatabase[dict[str, Any]], value: Any) -> None:
    assert unstorable(value) is None
    await database.things.update_one({"_id": "a"}, {"$set": {"value": [{"value": value}]}}, upsert=True)
    kept = await database.things.find_one({"_id": "a"})
    assert kept is not None
    assert kept["value"][0]["value"] == value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"a": [{"b\0": 1}]}, "NUL"),
        ([[2**63]], "64 bits"),
        ({"a": -(2**63) - 1}, "64 bits"),
        (nested(DEEPEST + 1), "nested"),
        (nested(20_000), "nested"),
    ],
)
def test_what_is_not_is_told_why(value: Any, why: str) -> None:
    assert why in (unstorable(value) or "")


async def test_what_the_database_refuses_for_good_is_not_tried_for_ever(
    database: AsyncDatabase[dict[str, Any]],
) -> None:
    deep = {"$set": {"value": nested(190)}}
    with pytest.raises(OperationFailure, match="depth"):
        await persist(lambda: database.things.update_one({"_id": "a"}, deep, upsert=True))
