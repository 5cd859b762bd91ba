"""Documents mutated at random, each decoded by a real child: ``python -m tests.fuzz_documents --inputs 1000 --seed 1``.

Whatever comes must be pages, or a `DocumentError` with a known code, and nothing may be left: no process, no file. An
input is a pure function of the seed and its number: ``--only NUMBER`` decodes just that one, ``--save FILE`` keeps it.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from ocr.decoder import PageDecoder
from ocr.errors import DECODER_ERRORS, DocumentError
from ocr.protocol import DecodeLimits
from tests.hostile.pdf_cases import PDFS
from tests.hostile.picture_cases import PICTURES

LIMITS = DecodeLimits(dpi=50, max_pages=5, image_pixels=20_000_000, cpu_seconds=2.0)
LARGEST_SEED = 200_000
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)
NUMBERS = (b"0", b"-1", b"65536", b"2147483647", b"4294967296", b"1e99", b"99999999999999999999")
Mutation = Callable[[random.Random, bytearray], None]


@dataclass(frozen=True)
class Input:
    number: int
    origin: str
    media_type: str
    data: bytes


@cache
def originals() -> tuple[tuple[str, str, bytes], ...]:
    """Documents of the corpus that are read as they should be: name, media type, bytes."""
    good = [case for case in (*PICTURES, *PDFS) if case.looks is not None and case.pages is None]
    made = [(case.name, case.media_type, case.make()) for case in good]
    return tuple(one for one in made if len(one[2]) <= LARGEST_SEED)


def flip_bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 2, 8, 40))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def set_bytes(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    for place in range(start, min(len(data), start + rng.choice((1, 2, 4, 8)))):
        data[place] = rng.choice(INTERESTING)


def edit_header(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(min(len(data), 100))] = rng.choice((*INTERESTING, rng.randrange(256)))


def truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(1, len(data) + 1) :]


def cut_out(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randint(1, max(1, len(data) // 4))]


def swap_parts(rng: random.Random, data: bytearray) -> None:
    size = rng.randint(1, max(1, len(data) // 3))
    one, two = (rng.randrange(max(1, len(data) - size)) for _ in range(2))
    data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]


def repeat_part(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    part = bytes(data[start : start + rng.randint(1, 200)])
    data[start:start] = part * rng.choice((1, 10, 1000))


def splice(rng: random.Random, data: bytearray) -> None:
    other = rng.choice(originals())[2]
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


def change_number(rng: random.Random, data: bytearray) -> None:
    """Another number in place of one written in digits, as PDF has them."""
    digits = [place for place, byte in enumerate(data) if 0x30 <= byte <= 0x39]
    if digits:
        place = rng.choice(digits)
        data[place : place + 1] = rng.choice(NUMBERS)


MUTATIONS: Sequence[Mutation] = (
    flip_bits,
    set_bytes,
    edit_header,
    truncate,
    cut_out,
    swap_parts,
    repeat_part,
    splice,
    change_number,
)


def mutated(seed: int, number: int) -> Input:
    rng = random.Random(f"{seed}/{number}")
    name, media_type, original = rng.choice(originals())
    data = bytearray(original)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(MUTATIONS)(rng, data)
        if not data:
            break
    return Input(number, name, media_type, bytes(data))


async def outcome(one: Input) -> str:
    """``pages`` or the code of the error; ``WRONG: …`` for what must not be."""
    try:
        async with PageDecoder(one.data, one.media_type, LIMITS, straight=True) as decoder:
            refused = ""
            for number in decoder.numbers:
                try:
                    page = await decoder.page(number)
                except DocumentError as error:
                    refused = judged(error)
                    if error.code in ("decode_timeout", "decoder_crashed"):
                        break
                else:
                    page.remove()
            return refused or "pages"
    except DocumentError as error:
        return judged(error)
    except Exception as error:  # noqa: BLE001 - whatever else comes is what we look for
        return f"WRONG: {type(error).__name__}: {error}"


def judged(error: DocumentError) -> str:
    """The error's code. A decoder that ends by itself has met an exception that it should have had a name for."""
    if error.code not in DECODER_ERRORS or (error.details.get("tool") == "decoder" and "status" in error.details):
        return f"WRONG: {error.code}: {error} {error.details}"
    return error.code


async def fuzz(numbers: Sequence[int], seed: int, at_once: int) -> tuple[Counter[str], list[str]]:
    """How often each outcome came, and a line for each input whose outcome must not be."""
    counted: Counter[str] = Counter()
    wrong: list[str] = []
    waiting = iter(numbers)

    async def work() -> None:
        for number in waiting:
            one = mutated(seed, number)
            came = await outcome(one)
            counted[came.partition(": ")[0]] += 1
            if came.startswith("WRONG"):
                wrong.append(f"--seed {seed} --only {number} ({one.origin}): {came}")

    await asyncio.gather(*(work() for _ in range(at_once)))
    return counted, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description="Decode documents that were mutated at random.")
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--only", type=int, help="decode only the input of this number")
    parser.add_argument("--save", type=Path, help="with --only: keep the input in this file")
    chosen = parser.parse_args()
    numbers = [chosen.only] if chosen.only is not None else list(range(chosen.inputs))
    if chosen.save and chosen.only is not None:
        chosen.save.write_bytes(mutated(chosen.seed, chosen.only).data)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        tempfile.tempdir = directory
        counted, wrong = asyncio.run(fuzz(numbers, chosen.seed, chosen.at_once))
        files = [path.name for path in Path(directory).iterdir()]
    left = [
        f"left: {name}" for name in (*files, *(str(process) for process in psutil.Process().children(recursive=True)))
    ]
    for name, count in counted.most_common():
        print(f"{count:6} {name}")
    print(*wrong, *left, sep="\n")
    print(f"{len(numbers)} inputs in {time.monotonic() - started:.0f} s, {len(wrong)} wrong, {len(left)} things left")
    sys.exit(bool(wrong or left))


if __name__ == "__main__":
    main()
