"""The benchmarks run at all. What they measure is no test's business: a busy machine is not a bug."""

import re

import pytest

from tests.benchmarks import broker, cleanup


def test_the_broker_benchmark_measures_each_phase_and_says_on_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert broker.main(["--rounds", "1", "--jobs", "50"]) == 0

    told = capsys.readouterr().out
    assert re.match(r"`python -m tests\.benchmarks\.broker --rounds 1 --jobs 50`: \d+ cores .* mongod \d", told)
    rows = [line.split(" | ") for line in told.splitlines() if line.startswith("| Roundhouse |")]
    assert len(rows) == 3
    assert all(float(row[1].replace(",", "")) > 0 for row in rows)
    assert [row[2] == "-" for row in rows] == [True, False, False], "only the second and third phase time single jobs"


def test_the_cleanup_benchmark_deletes_under_a_steady_load_and_says_how_that_was_felt(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cleanup.main(["--jobs", "500", "--alone", "0.5", "--cleaning", "30"]) == 0

    told = capsys.readouterr().out
    rows = [line.split(" | ") for line in told.splitlines() if line.startswith(("| nothing |", "| cleaning |"))]
    assert len(rows) == 2
    assert all(float(row[2]) > 0 for row in rows)
    assert "500 of 500 jobs were deleted" in told
