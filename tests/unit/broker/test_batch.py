"""A batch's states and turns, without a database."""

from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

from broker.batch import Batch, Standing, Turns, line_job_id, settle
from broker.job import Status


def batch(**changes: Any) -> Batch:
    now = datetime.now(UTC)
    document: dict[str, Any] = {
        "_id": ObjectId(),
        "subject": "ann",
        "role": "user",
        "endpoint": "/v1/chat/completions",
        "input": ObjectId(),
        "content": ObjectId(),
        "metadata": None,
        "client": None,
        "priority": "low",
        "timeout": None,
        "status": "in_progress",
        "model": "alpha",
        "total": 10,
        **dict.fromkeys(("fed", "offset", "settled", "completed", "failed"), 0),
        "faults": [],
        "created_at": now,
        "expires_at": now,
        "times": {},
    }
    return Batch.from_document({**document, **changes})


def test_a_line_has_the_same_job_each_time_and_another_one_than_any_other_line() -> None:
    first, second = ObjectId(), ObjectId()
    ids = {line_job_id(batch, line) for batch in (first, second) for line in range(1000)}
    assert len(ids) == 2000
    assert line_job_id(first, 7) == line_job_id(ObjectId(str(first)), 7)


def test_a_lines_job_is_as_old_as_its_batch() -> None:
    made = ObjectId.from_datetime(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert line_job_id(made, 3).generation_time == made.generation_time


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], (0, 0, 0)),
        (["completed", "failed", "completed"], (3, 2, 1)),
        (["timeout", "cancelled"], (2, 0, 2)),
        (["completed", "processing", "completed"], (1, 1, 0)),
        (["queued", "completed"], (0, 0, 0)),
    ],
)
def test_what_has_ended_is_counted_up_to_the_first_that_has_not(
    statuses: list[str], expected: tuple[int, int, int]
) -> None:
    jobs = [(line, Status(status)) for line, status in enumerate(statuses)]
    assert settle(batch(), jobs) == expected


def test_counting_goes_on_where_it_has_stopped() -> None:
    begun = batch(settled=4, completed=3, failed=1)
    assert settle(begun, [(4, Status.COMPLETED), (5, Status.FAILED), (6, Status.QUEUED)]) == (6, 4, 2)


def test_a_line_without_a_job_ends_the_count() -> None:
    assert settle(batch(), [(0, Status.COMPLETED), (2, Status.COMPLETED)]) == (1, 1, 0)


def test_batches_take_turns() -> None:
    turns = Turns()
    standings = {ObjectId(): Standing(0, 100) for _ in range(3)}
    assert sorted(turns.share(9, standings).values()) == [3, 3, 3]


def test_with_room_for_one_each_batch_comes_to_its_turn() -> None:
    turns = Turns()
    standings = {ObjectId(): Standing(0, 100) for _ in range(3)}
    served = [next(iter(turns.share(1, standings))) for _ in range(6)]
    assert set(served[:3]) == set(standings)
    assert served[:3] == served[3:]


def test_who_has_fewer_inside_goes_first() -> None:
    much, little = ObjectId(), ObjectId()
    shares = Turns().share(4, {much: Standing(5, 100), little: Standing(0, 100)})
    assert shares == {little: 4}


def test_a_batch_gets_no_more_than_it_has_left() -> None:
    short, long = ObjectId(), ObjectId()
    assert Turns().share(10, {short: Standing(0, 2), long: Standing(0, 100)}) == {short: 2, long: 8}


@pytest.mark.parametrize("room", [0, -3])
def test_without_room_nobody_is_served(room: int) -> None:
    assert Turns().share(room, {ObjectId(): Standing(0, 5)}) == {}


@given(st.integers(-5, 60), st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=6))
def test_all_room_is_used_as_long_as_something_is_left(room: int, held: list[tuple[int, int]]) -> None:
    standings = {ObjectId(): Standing(inside, left) for inside, left in held}
    shares = Turns().share(room, standings)
    assert sum(shares.values()) == max(0, min(room, sum(left for _, left in held)))
    assert all(0 < count <= standings[batch].left for batch, count in shares.items())
