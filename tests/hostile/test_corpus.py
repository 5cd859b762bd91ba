"""Every document of the corpus, decoded by real children with their real limits.

After each, nothing is left: see the fixtures `scratch` and `offspring`.
"""

from functools import partial

import pytest

from tests.documents import encoded
from tests.hostile.case import Case, outcome
from tests.hostile.pdf_cases import PDFS
from tests.hostile.picture_cases import PICTURES
from tests.hostile.pictures import marked, upright

SECONDS = 15
MEMORY = 1_500_000_000
DEADLY = {"decode_timeout", "decoder_crashed", "document_too_large"}
GOOD = Case("a good page", "image/png", partial(encoded, marked()), ("60x40",), looks=upright)


@pytest.mark.parametrize("case", [*PICTURES, *PDFS], ids=lambda case: case.name)
async def test_each_document_comes_out_as_it_must_and_costs_no_more_than_it_may(case: Case) -> None:
    came = await outcome(case)
    assert came.fits(case), f"{came.pages} instead of {case.expected}"
    # Not by the clock on the wall: the tests beside this one use the same processors.
    assert came.cpu_seconds < SECONDS
    assert came.peak < MEMORY
    if DEADLY & {page.lstrip("!") for page in came.pages}:
        assert (await outcome(GOOD)).fits(GOOD)


async def test_one_process_reads_good_pages_between_hostile_ones() -> None:
    for case in (*PICTURES[-40::8], *PDFS[30:36]):
        assert (await outcome(case)).fits(case)
    assert (await outcome(GOOD)).fits(GOOD)


def test_the_corpus_is_as_large_as_it_should_be_and_no_name_stands_for_two() -> None:
    names = [case.name for case in (*PICTURES, *PDFS)]
    assert len(PICTURES) >= 45
    assert len(PDFS) >= 25
    assert len(set(names)) == len(names)
