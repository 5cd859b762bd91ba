"""The benchmarks run at all. What they measure is no test's business: a busy machine is not a bug."""

import re

import pytest

from tests.benchmarks import broker


def test_the_broker_benchmark_measures_each_phase_and_says_on_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert broker.main(["--rounds", "1", "--jobs", "50"]) == 0

    told = capsys.readouterr().out
    assert re.match(r"`python -m tests\.benchmarks\.broker --rounds 1 --jobs 50`: \d+ cores .* mongod \d", told)
    rows = [line.split(" | ") for line in told.splitlines() if line.startswith("| Roundhouse |")]
    assert len(rows) == 3
    assert all(float(row[1].replace(",", "")) > 0 for row in rows)
    assert [row[2] == "-" for row in rows] == [True, False, False], "only the second and third phase time single jobs"
