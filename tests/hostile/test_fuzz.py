"""Some of what `tests.fuzz_documents` makes; more of it by ``python -m tests.fuzz_documents``."""

import pytest

from tests.fuzz_documents import fuzz, mutated


@pytest.mark.parametrize("part", range(4))
async def test_mutated_documents_are_read_or_refused_by_name(part: int) -> None:
    counted, wrong = await fuzz(range(15 * part, 15 * part + 15), seed=20, at_once=2)
    assert wrong == []
    assert counted.total() == 15


def test_an_input_is_the_same_each_time_and_unlike_its_origin() -> None:
    assert mutated(1, 5) == mutated(1, 5)
    assert len({mutated(1, number).data for number in range(50)}) > 45
