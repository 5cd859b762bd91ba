"""A small part of ``python -m tests.crash.batches``, which says what is looked at."""

from collections import Counter
from pathlib import Path
from typing import Any

from tests.crash.batches import Outcome, Scene, blows_of, wrongs

LINES = 200


def test_a_batch_outlives_a_kill_of_each_process(tmp_path: Path) -> None:
    blows = blows_of(1, LINES)
    # Forty lines a second: the last blow falls a second before the end, and has to be seen to be due before it is over.
    with Scene(tmp_path, tokens_per_second=10) as scene:
        outcome = scene.run(LINES, blows)
    assert wrongs(outcome, LINES) == []
    assert {blow.victim for blow in outcome.struck} == {"gateway", "worker", "mongod"}


def answer(number: int) -> dict[str, Any]:
    return {"custom_id": f"line-{number}", "response": {"request_id": str(number)}}


def good(lines: int) -> Outcome:
    errors = [answer(number) for number in range(lines) if number % 25 == 7]
    output = [answer(number) for number in range(lines) if number % 25 != 7]
    seen = [(0, 0, 0), (lines, 1, 0), (lines, len(output), len(errors))]
    return Outcome({"status": "completed"}, output, errors, seen, Counter(range(lines)))


def test_what_is_wrong_is_told() -> None:
    assert wrongs(good(50), 50) == []
    twice = good(50)
    twice.output.insert(3, twice.output[3])
    assert len(wrongs(twice, 50)) == 2
    swapped = good(50)
    swapped.output.reverse()
    assert len(wrongs(swapped, 50)) == 1
    ran_twice = good(50)
    ran_twice.jobs[4] += 1
    ran_twice.places = 1
    assert len(wrongs(ran_twice, 50)) == 2
    back = good(50)
    back.seen.insert(1, (50, 3, 0))
    assert wrongs(back, 50) == ["request_counts went back"]
    too_many = good(50)
    too_many.seen.insert(2, (50, 48, 3))
    assert "request_counts were wrong" in wrongs(too_many, 50)
