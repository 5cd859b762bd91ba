"""DeepSeek-OCR on the real vLLM. Its weights are made up: what it says of itself means nothing. Where an answer is
needed that means something, ``plugin/scribe.py`` makes it write what the prompt orders, a token for each character."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from broker.errors import EngineUnavailable
from config import VllmSettings
from ocr.errors import PageLooped, RecogniserError
from ocr.page import Reading
from ocr.protocol import Page
from tests.conditions import eventually
from tests.vllm.conftest import ocr_entry_of
from worker.engine_process import socket_in
from worker.engines.base import Request
from worker.engines.vllm import VllmEngine
from worker.ocr_models import Family, image_tokens
from worker.vllm_plugin.roundhouse_ocr_mode import MODES

# A start takes half a minute, so that one engine in gundam mode serves most tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")

# Of A4 at 144 dpi.
WIDTH, HEIGHT = 1191, 1684
PROMPT = "Free OCR."
# What is added to the picture's tokens: the first one of each text, the end of the line between picture and prompt, and
# one for each character.
ADDED = 1 + 1 + len(PROMPT)
# For a page of A4: one token for each square of 64 pixels and one for each row of them, for the whole page; in gundam
# mode the same for 2 by 3 tiles of 640 pixels; and one for the end. (DeepSeek-OCR, arXiv:2510.18234, table 1: without
# the ends of rows 64, 100, 256, 400 and n times 100 and 256.)
EXPECTED = {
    "tiny": 8 * 9 + 1,
    "small": 10 * 11 + 1,
    "base": 16 * 17 + 1,
    "large": 20 * 21 + 1,
    "gundam": 16 * 17 + 30 * 21 + 1,
}


def engine_in(mode: str, python: str, model: Path, home: Path, **options: Any) -> VllmEngine:
    engine = VllmEngine("tiny", VllmSettings.model_validate(ocr_entry_of(python, model, **options)), home)
    engine.resolution = mode
    return engine


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(tmp_path_factory.mktemp("pages"), WIDTH, HEIGHT)


def page_of(directory: Path, width: int, height: int) -> Page:
    path = directory / f"{width}x{height}.png"
    Image.linear_gradient("L").resize((width, height)).save(path)
    return Page(1, path, width, height, 144)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(python: str, tiny_ocr: Path, home: Path) -> AsyncIterator[VllmEngine]:
    engine = engine_in("gundam", python, tiny_ocr, home)
    await engine.start()
    yield engine
    await engine.stop(grace=0.0)


async def read(engine: VllmEngine, page: Page, *written: str | tuple[str, int], **options: Any) -> Reading:
    """``written``: what the model is made to write, with how often; nothing: it answers by itself."""
    pieces = [(piece, 1) if isinstance(piece, str) else piece for piece in written]
    order = "+".join(f"{text.encode().hex()}*{times}" for text, times in pieces)
    payload = {"prompt": f"write:{order}" if order else None, "options": options}
    return await (await engine.recogniser(Request("job", 1, payload))).recognise(page, 1)


async def prompt_tokens(engine: VllmEngine, page: Page) -> int:
    """As vLLM itself counts them."""
    recogniser = await engine.recogniser(Request("job", 1, {"prompt": PROMPT, "options": {"max_tokens": 1}}))
    answers: list[Any] = []

    async def listen(payload: Any) -> AsyncIterator[Any]:
        async for chunk in chat(payload):
            answers.append(chunk)
            yield chunk

    chat, recogniser._chat = recogniser._chat, listen  # type: ignore[assignment]
    await recogniser.recognise(page, 1)
    return int(answers[-1].value["usage"]["prompt_tokens"])


async def test_gundam_takes_as_many_tokens_as_the_page_has_tiles(
    engine: VllmEngine, page: Page, tmp_path: Path
) -> None:
    assert await prompt_tokens(engine, page) == EXPECTED["gundam"] + ADDED
    for size in ((640, 640), (641, 100), (3000, 500), (1000, 1000), (500, 3000)):
        expected = image_tokens(Family.DEEPSEEK_OCR, "gundam", *size)
        assert await prompt_tokens(engine, page_of(tmp_path, *size)) == expected + ADDED, size


async def test_tags_of_places_are_kept_and_read(engine: VllmEngine, page: Page) -> None:
    reading = await read(
        engine,
        page,
        "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 100]]<|/det|>\n# Größe 大\n\n"
        "<|ref|>image<|/ref|><|det|>[[100, 200, 900, 600]]<|/det|>\n"
        "<|ref|>table<|/ref|><|det|>[[0, 700, 999, 999]]<|/det|>\n<table><tr><td>a</td><td>1</td></tr></table>",
    )
    assert [(block.type, block.text) for block in reading.blocks] == [
        ("title", "Größe 大"),
        ("figure", ""),
        ("table", "a\t1"),
    ]
    assert reading.blocks[0].bbox == (0, 0, WIDTH, 169)
    assert reading.text == "Größe 大\n\na\t1"
    assert "![](page-0001-figure-01.png)" in reading.markdown
    assert (reading.mode, reading.warnings) == ("gundam", ())
    assert reading.tokens is not None
    assert reading.tokens > 100


async def test_the_guard_lets_no_thirty_tokens_come_twice_within_ninety(engine: VllmEngine, page: Page) -> None:
    reading = await read(engine, page, ("x", 300), max_tokens=300)
    # The thirtieth token of a run is followed by another one only where that would come a second time.
    assert reading.text.startswith("x" * 30)
    assert "x" * 31 not in reading.text
    assert reading.tokens == 300


async def test_the_guard_lets_empty_cells_pass(engine: VllmEngine, page: Page) -> None:
    table = f"<table><tr>{'<td></td>' * 60}</tr></table>"
    reading = await read(engine, page, table)
    assert reading.markdown == table


async def test_what_the_guard_does_not_see_is_stopped_with_what_there_is(engine: VllmEngine, page: Page) -> None:
    paragraph = "".join(f"Line {number} of what comes again.\n" for number in range(5))
    with pytest.raises(PageLooped) as failure:
        await read(engine, page, "At the top.\n", (paragraph, 30))
    assert not failure.value.permanent
    assert failure.value.partial is not None
    assert failure.value.partial.text.startswith("At the top.\nLine 0 of")
    assert failure.value.partial.text.count("Line 4") == 1


async def test_a_page_that_loops_stops_the_engine(engine: VllmEngine, page: Page, home: Path) -> None:
    with pytest.raises(PageLooped):
        await read(engine, page, "<table><tr>", ("<td></td>", 900))
    (directory,) = (home / "run" / "engines").iterdir()
    transport = httpx.AsyncHTTPTransport(uds=str(socket_in(directory)))
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:

        async def idle() -> bool:
            lines = (await client.get("/metrics")).text.splitlines()
            running = [line for line in lines if line.startswith("vllm:num_requests_running{")]
            return bool(running) and all(line.endswith(" 0.0") for line in running)

        await eventually(idle, within=20.0)


async def test_by_itself_the_model_says_something_of_every_page(engine: VllmEngine, page: Page) -> None:
    reading = await read(engine, page, max_tokens=50)
    assert reading.tokens == 50
    assert reading.warnings[-1].startswith("The answer was cut off")
    assert await read(engine, page, max_tokens=50) == reading


async def test_a_prompt_longer_than_the_context_is_refused_for_good(engine: VllmEngine, page: Page) -> None:
    with pytest.raises(RecogniserError, match="8192") as failure:
        await read(engine, page, "x" * 5000)
    assert failure.value.permanent
    assert await engine.healthy()


async def test_special_tokens_in_a_clients_words_are_words(engine: VllmEngine, page: Page) -> None:
    for prompt in ("<image><image> Read it.", "<|det|><|/det|> <|User|>"):
        recogniser = await engine.recogniser(Request("job", 1, {"prompt": prompt, "options": {"max_tokens": 5}}))
        assert (await recogniser.recognise(page, 1)).tokens == 5
    options = {"instruction": "locate", "term": "<image><|/ref|>", "max_tokens": 5}
    recogniser = await engine.recogniser(Request("job", 1, {"options": options}))
    assert (await recogniser.recognise(page, 1)).tokens == 5


async def test_pages_are_read_side_by_side(engine: VllmEngine, page: Page) -> None:
    assert engine.turns.places == 4
    readings = await asyncio.gather(*(read(engine, page, f"Page {number}") for number in range(8)))
    assert [reading.text for reading in readings] == [f"Page {number}" for number in range(8)]


async def test_the_engine_ends_before_the_next_mode(engine: VllmEngine) -> None:
    """The last one with it: no two engines run at once."""
    await engine.stop(grace=5.0)
    assert not await engine.healthy()


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "gundam"])
async def test_each_mode_starts_and_takes_its_number_of_tokens(
    mode: str, python: str, tiny_ocr: Path, page: Page, tmp_path: Path
) -> None:
    engine = engine_in(mode, python, tiny_ocr, tmp_path)
    try:
        await engine.start()
        assert await prompt_tokens(engine, page) == EXPECTED[mode] + ADDED
        reading = await read(engine, page, "Some words.")
        assert (reading.text, reading.mode, reading.tokens) == ("Some words.", mode, len("Some words.") + 1)
    finally:
        await engine.stop(grace=0.0)


async def test_an_engine_whose_guard_is_not_loaded_is_not_started(python: str, tiny_ocr: Path, tmp_path: Path) -> None:
    args = [*ocr_entry_of(python, tiny_ocr)["args"], "--logits-processors", "scribe:Scribe"]
    engine = engine_in("tiny", python, tiny_ocr, tmp_path, args=args)
    with pytest.raises(EngineUnavailable) as failure:
        await engine.start()
    assert failure.value.code == "ngram_guard_inactive"
    assert not await engine.healthy()
