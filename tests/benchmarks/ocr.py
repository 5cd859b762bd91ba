"""``python -m tests.benchmarks.ocr``: what is read wrong on pages whose text is known, and what reading them takes.

Each page goes the whole way of a document, and nobody tells its language. For the speed, a document of many pages is
read in turn by the pipeline and by nothing but Tesseract, which gets the PNGs that the pipeline's decoder draws.
"""

import argparse
import asyncio
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import mean, median

from ocr.decoder import PageDecoder
from ocr.document import PageEnded, ReadOptions, read_document
from ocr.page import PageRecord
from ocr.tesseract import EVERY_LINE, Tesseract
from ocr.turns import PageTurns
from tests.benchmarks.error_rate import NORMALISATION, character_error_rate
from tests.benchmarks.pages_of_languages import DPI, JPEG_QUALITY, KINDS, Kind, encoded, picture, truth
from tests.benchmarks.prose import PROSE
from tests.benchmarks.site import headline
from tests.benchmarks.tables import spread, table
from tests.documents import pdf_of_scans

TARGETS: Mapping[str, float] = {
    "eng": 0.5, "deu": 0.5, "fra": 0.5, "rus": 0.5, "hin": 1.5, "chi_sim": 4.0, "ara": 5.0,
}  # fmt: skip
"""Character error rates in percent that no page of the language may exceed."""
MOST_OVERHEAD = 10.0
"""Percent of the bare engine's time."""
OF_SPEED = ("eng", "deu", "fra", "rus")
OPTIONS = ReadOptions(text="ocr")
BARE = (
    "Bare: Tesseract alone finds script and orientation (--psm 0) and reads (--psm 1) the PNGs that the pipeline "
    "draws, with its options and as many at once. The pipeline itself reads upright pages by --psm 3, which is --psm 1 "
    "without looking for the orientation once more."
)
UPRIGHT = ("--psm", "1", "-c", "min_orientation_margin=0")


@dataclass(frozen=True)
class Run:
    """`wall` and `cpu` in seconds, for `pages` pages; `cpu` of all processes."""

    pages: int
    wall: float
    cpu: float


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _asked(arguments)
    kinds = [kind for kind in KINDS if asked.kinds is None or kind.name in asked.kinds]
    print(headline("tests.benchmarks.ocr", arguments))
    rates = asyncio.run(error_rates(asked.languages, kinds))
    missed = report_errors(rates, kinds)
    if asked.rounds:
        missed += report_speed(*asyncio.run(speeds(asked.rounds, asked.pages)))
    print("\n" + ("Missed: " + "; ".join(missed) + "." if missed else "All targets are met."))
    return 1 if missed and asked.check else 0


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ocr", description=__doc__)
    parser.add_argument("--languages", nargs="+", choices=list(PROSE), default=list(PROSE))
    parser.add_argument("--kinds", nargs="+", choices=[kind.name for kind in KINDS], help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="of the speed, each way; 0 leaves it out")
    parser.add_argument("--pages", type=int, default=12, help="of the document whose reading is timed")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    return parser.parse_args(arguments)


async def error_rates(languages: Sequence[str], kinds: Sequence[Kind]) -> dict[tuple[str, str], float]:
    """Percent by language and kind."""
    tesseract, turns = await Tesseract.find(), PageTurns(os.cpu_count() or 1)
    drawing = asyncio.Semaphore(2 * turns.places)

    async def rate(language: str, kind: Kind) -> float:
        async with drawing:
            page = await asyncio.to_thread(lambda: encoded(picture(language, kind), kind))
            [record] = await _read(*page, tesseract, turns)
        return 100 * character_error_rate(record.text, truth(language), language)

    cases = [(language, kind) for language in languages for kind in kinds]
    found = await asyncio.gather(*(rate(language, kind) for language, kind in cases))
    return {(language, kind.name): figure for (language, kind), figure in zip(cases, found, strict=True)}


async def _read(data: bytes, media_type: str, tesseract: Tesseract, turns: PageTurns) -> list[PageRecord]:
    events = read_document(data, media_type, tesseract, turns, OPTIONS)
    return [event.record async for event in events if isinstance(event, PageEnded)]


def report_errors(rates: Mapping[tuple[str, str], float], kinds: Sequence[Kind]) -> list[str]:
    """Print them; return what misses its target."""
    rows, missed = [], []
    for language in dict.fromkeys(language for language, _ in rates):
        mine, target = [rates[language, kind.name] for kind in kinds], TARGETS[language]
        verdict = "met" if max(mine) <= target else "missed"
        rows.append([language, *(f"{figure:.2f}" for figure in mine), f"{mean(mine):.2f}", f"{target:g}", verdict])
        if verdict == "missed":
            missed.append(f"{language} has {max(mine):.2f} % of {target:g} %")
    heads = [kind.name + (f", {abs(kind.skew):g}° askew" if kind.skew else "") for kind in kinds]
    print(f"Character error rates in percent; A4 at {DPI} dpi, scans with noise, JPEG quality {JPEG_QUALITY}.")
    print(f"{NORMALISATION}\n")
    print(table(["language", *heads, "mean", "at most", "target"], rows))
    return missed


async def speeds(rounds: int, pages: int) -> tuple[list[Run], list[Run]]:
    """The pipeline's runs and the bare engine's, which took turns."""
    pictures = [picture(language, KINDS[1]) for language in islice(cycle(OF_SPEED), pages)]
    document = pdf_of_scans(pictures, DPI, JPEG_QUALITY)
    tesseract, places = await Tesseract.find(), os.cpu_count() or 1
    piped, bare = [], []
    with tempfile.TemporaryDirectory() as directory:
        drawn = await _drawn(document, Path(directory))
        records = {}
        for _ in range(rounds):
            with _timed(pages, piped):
                read = await _read(document, "application/pdf", tesseract, PageTurns(places))
            records = {record.number: record for record in read}
            commands = [_commands(path, records[number]) for number, path in drawn.items()]
            with _timed(pages, bare):
                await asyncio.to_thread(_run_bare, commands, places)
    return piped, bare


async def _drawn(document: bytes, directory: Path) -> dict[int, Path]:
    """The pages' PNGs by number, as the pipeline gives them to the engine."""
    drawn = {}
    async with PageDecoder(document, "application/pdf") as decoder:
        for number in decoder.numbers:
            page = await decoder.page(number)
            drawn[number] = directory / f"{number}.png"
            await asyncio.to_thread(shutil.move, page.path, drawn[number])
    return drawn


def _commands(page: Path, record: PageRecord) -> list[list[str]]:
    """What Tesseract has to do for this page: find its script and orientation, and read it."""
    command = ["tesseract", str(page), str(page.with_suffix("")), "--dpi", str(DPI)]
    languages = "+".join(record.languages)
    return [
        [*command, "--psm", "0", "-l", "osd"],
        [*command, *UPRIGHT, *EVERY_LINE, "-l", languages, "-c", "tessedit_create_hocr=1"],
    ]


def _run_bare(pages: Sequence[Sequence[Sequence[str]]], places: int) -> None:
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}

    def read(commands: Sequence[Sequence[str]]) -> None:
        for command in commands:
            subprocess.run(command, check=True, env=environment, capture_output=True)

    with ThreadPoolExecutor(places) as pool:
        list(pool.map(read, pages))


@contextmanager
def _timed(pages: int, runs: list[Run]) -> Iterator[None]:
    began, cpu = time.perf_counter(), _cpu()
    yield
    runs.append(Run(pages, time.perf_counter() - began, _cpu() - cpu))


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def report_speed(piped: Sequence[Run], bare: Sequence[Run]) -> list[str]:
    rows = [
        [name, spread((run.pages / run.wall for run in runs), 3), spread((run.cpu / run.pages for run in runs), 2)]
        for name, runs in (("bare Tesseract", bare), ("the pipeline", piped))
    ]
    overhead = _overhead(piped, bare, lambda run: run.wall)
    of_cpu = _overhead(piped, bare, lambda run: run.cpu)
    print(f"\nA PDF of {piped[0].pages} scans, read {len(piped)} times each way in turn; median (least-most).")
    print(f"{BARE}\n")
    print(table(["", "pages/s", "processor seconds a page"], rows))
    verdict = "met" if overhead <= MOST_OVERHEAD else "missed"
    print(f"\nOverhead: {overhead:+.1f} % of time, {of_cpu:+.1f} % of processor time.")
    print(f"Target: at most {MOST_OVERHEAD:g} % of time, {verdict}.")
    return [] if verdict == "met" else [f"the overhead is {overhead:.1f} % of {MOST_OVERHEAD:g} %"]


def _overhead(piped: Sequence[Run], bare: Sequence[Run], figure: Callable[[Run], float]) -> float:
    return 100 * (median(map(figure, piped)) / median(map(figure, bare)) - 1)


if __name__ == "__main__":
    sys.exit(main())
