"""The tries of one page: how often, in which way, and after which pauses it is read again."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from ocr.errors import RecogniserCrashed, RecogniserError, RecogniserTimeout
from ocr.page import PageRecord, PageStatus, Reading
from ocr.protocol import Page
from ocr.recogniser import Recogniser

T = TypeVar("T")

# Seconds between the repetitions of a try that an engine could not take; after the last of them it is given up.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


def _none_passes(_: Exception) -> bool:
    return False


@dataclass(frozen=True)
class TryOptions:
    """How often a page is tried."""

    page_timeout: float = 300.0
    """Wall-clock seconds for one try of one page, from the moment at which it is its turn."""
    page_retries: int = 3
    """Further tries of a page that could not be read."""
    passes: Callable[[Exception], bool] = _none_passes
    """Whether what a recogniser raised is no fault of the page and will pass: an engine that is overloaded."""


async def try_page(
    recogniser: Recogniser, page: Page, record: PageRecord, options: TryOptions
) -> tuple[PageRecord, Reading | None]:
    """The page by the first try that succeeds; else FAILED with its best partial reading.

    What is not the page's fault is repeated in the same way and counts for no try. Raises what is no `RecogniserError`
    and does not pass.
    """
    record = replace(record, engine=recogniser.name)
    best: Reading | None = None
    attempt, interruptions = 1, 0
    while attempt <= options.page_retries + 1:
        record = replace(record, tries=attempt)
        try:
            reading = await _patiently(recogniser, page, attempt, options)
            return replace(record, error=None), reading
        except RecogniserError as error:
            best = max(best, error.partial, key=_worth)
            record = replace(record, error={"code": error.code, "message": error.message})
            if error.permanent:
                break
            if _killed(error) and interruptions < options.page_retries:
                interruptions += 1
            else:
                attempt += 1
    return replace(record, status=PageStatus.FAILED), best


async def _patiently(recogniser: Recogniser, page: Page, attempt: int, options: TryOptions) -> Reading:
    for pause in PAUSES:
        try:
            return await _limited(recogniser.recognise(page, attempt), page, options.page_timeout)
        except Exception as error:
            if not options.passes(error):
                raise
        await asyncio.sleep(pause)
    return await _limited(recogniser.recognise(page, attempt), page, options.page_timeout)


async def _limited(work: Awaitable[T], page: Page, limit: float) -> T:
    try:
        async with asyncio.timeout(limit):
            return await work
    except TimeoutError:
        message = f"Page {page.number} was not read within {limit:g} s."
        raise RecogniserTimeout(message, page=page.number, limit=limit) from None


def _killed(error: RecogniserError) -> bool:
    """Whether somebody else ended the recogniser: the kernel, short of memory, or an operator."""
    return isinstance(error, RecogniserCrashed) and error.details.get("signal") in ("SIGKILL", "SIGTERM")


def _worth(reading: Reading | None) -> int:
    return -1 if reading is None else len(reading.text)
