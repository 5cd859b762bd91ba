"""What a case of the corpus is, and what comes of it."""

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ocr.decoder import PageDecoder
from ocr.errors import DocumentError
from ocr.protocol import DecodeLimits, Page

SAMPLED_EVERY = 0.02
HURRIED = DecodeLimits(dpi=100, cpu_seconds=3.0)
"""For what is known to go on until it is stopped."""
Look = Callable[[Image.Image], bool]


@dataclass(frozen=True)
class Case:
    """A document and what must come of it.

    `expected`: what comes of each page in order, or one entry that begins with ``!`` for a document that does not open.
    An entry is ``300x200`` (pixels), ``drawn`` (any size), or the code of an error; alternatives are parted by ``|``.
    `looks` must be true of the first page.
    """

    name: str
    media_type: str
    make: Callable[[], bytes]
    expected: tuple[str, ...]
    pages: str | None = None
    looks: Look | None = None
    limits: DecodeLimits = field(default_factory=lambda: DecodeLimits(dpi=100))


@dataclass(frozen=True)
class Outcome:
    """`pages` as `Case.expected`; `cpu_seconds` and `peak`, in bytes, of all the processes of the decoder together."""

    pages: tuple[str, ...]
    seconds: float
    cpu_seconds: float
    peak: int
    looked_right: bool = True

    def fits(self, case: Case) -> bool:
        pairs = zip(self.pages, case.expected, strict=False)
        each = all(got == "drawn" or fits(got, wanted) for got, wanted in pairs)
        return each and len(self.pages) == len(case.expected) and self.looked_right


def fits(got: str, wanted: str) -> bool:
    alternatives = wanted.split("|")
    return got in alternatives or ("drawn" in alternatives and "x" in got and got.replace("x", "").isdigit())


async def outcome(case: Case) -> Outcome:
    """Decode all pages that the case asks for. Whatever is no `DocumentError` comes out."""
    data = case.make()
    started, used = time.monotonic(), children_cpu()
    pages: list[str] = []
    right = True
    async with memory_watched() as memory:
        try:
            async with PageDecoder(data, case.media_type, case.limits, pages=case.pages, straight=True) as decoder:
                for number in decoder.numbers:
                    try:
                        page = await decoder.page(number)
                    except DocumentError as error:
                        pages.append(error.code)
                        if error.code in ("decode_timeout", "decoder_crashed"):
                            break
                    else:
                        right = right and checked(page, case.looks if number == decoder.numbers[0] else None)
                        pages.append(f"{page.width}x{page.height}")
        except DocumentError as error:
            pages.append(f"!{error.code}")
    return Outcome(tuple(pages), time.monotonic() - started, children_cpu() - used, memory.peak, right)


def checked(page: Page, looks: Look | None) -> bool:
    """Whether the page's files are what `page` says; they are removed."""
    with Image.open(page.path) as image, Image.open(page.preview) as preview:
        image.load()
        preview.load()
        right = image.size == (page.width, page.height) and image.mode in ("L", "RGB") and max(preview.size) <= 1600
        right = right and (looks is None or looks(image))
    page.remove()
    return right


class Memory:
    peak = 0


@asynccontextmanager
async def memory_watched() -> AsyncIterator[Memory]:
    """Watch what the processes that are started meanwhile use together at most, in bytes.

    What is there already is none of the decoder's: the run's mongod is a child of the process that tested first.
    """
    memory = Memory()
    others = set(descendants(Path("/proc/self/task")))

    async def sample() -> None:
        while True:
            await asyncio.sleep(SAMPLED_EVERY)
            used = sum(resident(pid) for pid in descendants(Path("/proc/self/task")) if pid not in others)
            memory.peak = max(memory.peak, used)

    task = asyncio.create_task(sample())
    try:
        yield memory
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def descendants(tasks: Path) -> Iterator[str]:
    for pid in children(tasks):
        yield pid
        yield from descendants(Path("/proc", pid, "task"))


def children(tasks: Path) -> list[str]:
    """Of each thread that is alive: one that ends meanwhile takes nothing from the others."""
    try:
        threads = list(tasks.iterdir())
    except FileNotFoundError:
        return []
    found: list[str] = []
    for thread in threads:
        with suppress(FileNotFoundError, ProcessLookupError):
            found += (thread / "children").read_text().split()
    return found


def resident(pid: str) -> int:
    """The most memory in bytes that a process has had so far (VmHWM, proc(5)); 0 where it is gone."""
    try:
        lines = Path("/proc", pid, "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
