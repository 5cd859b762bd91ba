"""The benchmarks run at all. What they measure is no test's business: a busy machine is not a bug."""

import re

import pytest

from tests.benchmarks import broker, cleanup, engine, ocr, streaming
from tests.benchmarks.switching.__main__ import main as switching


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


def test_the_switching_simulator_replays_a_trace_against_each_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert switching(["--only", "daily", "--loads", "0.3", "--seeds", "1"]) == 0

    told = capsys.readouterr().out
    assert "`python -m tests.benchmarks.switching --only daily --loads 0.3 --seeds 1`" in told
    [row] = [line.strip("| ").split(" | ") for line in told.splitlines() if line.startswith("| daily |")]
    assert row[1] == "30%"
    lru, ours, oracle = (float(figure.replace(",", "")) for figure in row[2:5])
    assert min(lru, ours, oracle) > 0
    assert ours < lru, "seeded and on a virtual clock: this does not depend on the machine"


def test_the_engine_benchmark_has_the_same_answers_both_ways_and_says_what_was_added(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert engine.main(["--rounds", "1", "--seconds", "1"]) == 0

    told = capsys.readouterr().out
    rows = [line.split(" | ") for line in told.splitlines() if " tokens/s to each |" in line]
    ways, added = rows[:4], rows[4:]
    assert [row[1] for row in ways] == ["straight", "through Roundhouse"] * 2
    assert all(float(row[2].replace(",", "")) > 0 for row in ways)
    assert [row[4:8].count("-") for row in ways] == [3, 0, 3, 0], "only one way has a gateway, a worker and a mongod"
    assert [row[-1] for row in added] == ["10 |", "20 |"], "each answer is compared with its own"
    assert all(float(row[1]) > 0 for row in added)


def test_the_ocr_benchmark_reads_what_it_drew_with_few_errors_and_says_what_the_pipeline_adds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ocr.main(["--languages", "deu", "ara", "--kinds", "scanned", "--rounds", "1", "--pages", "1"])

    told = capsys.readouterr().out
    rows = {row[0]: row[1:] for row in (line.strip("| ").split(" | ") for line in told.splitlines()) if len(row) > 2}
    assert rows["deu"][-1] == rows["ara"][-1] == "met", told
    assert float(rows["bare Tesseract"][0]) > 0 < float(rows["the pipeline"][0])
    assert re.search(r"Overhead: [+-][\d.]+ % of time", told)


def test_the_streaming_benchmark_has_the_same_streams_both_ways_and_says_what_was_added(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert streaming.main(["--quick"]) == 0

    told = capsys.readouterr().out
    assert "`python -m tests.benchmarks.streaming --quick`" in told
    rows = [line.strip("| ").split(" | ") for line in told.splitlines() if line.startswith("| stream, ")]
    ways, added = rows[:4], rows[4:]
    assert [row[:2] for row in ways] == [
        [load, way]
        for load in ("stream, one at a time", "stream, 20 at once")
        for way in ("straight", "through Roundhouse")
    ]
    assert all(float(row[2].replace(",", "")) >= 20.0 for row in ways), "a token comes each 20 ms, the first one too"
    assert [row[1] for row in added] == ["through Roundhouse"] * 2
    assert all(float(row[2].replace(",", "")) > 0 for row in added)
