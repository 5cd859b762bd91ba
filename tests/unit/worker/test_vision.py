"""Pages read by a vision model, with the model's side written down; that vLLM does the same is told by tests/vllm."""

import asyncio
import base64
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from broker.errors import EngineDied, EngineInputError, EngineUnavailable
from config import OpenaiSettings
from ocr.errors import PageLooped, RecogniserError
from ocr.instructions import Dialect, Instruction
from ocr.page import Reading
from ocr.protocol import Page
from tests.conditions import eventually
from tests.ports import free_port
from worker.engines.base import Chunk, Delta, Reader, Request, Result
from worker.engines.openai import OpenaiEngine
from worker.engines.upstream import _message_of
from worker.engines.vision import VisionModel, VisionRecogniser, page_options
from worker.engines.vllm_vision import Examination, white_png
from worker.ocr_models import Family, image_tokens

DEEPSEEK = VisionModel(
    Dialect.DEEPSEEK,
    mode="tiny",
    context=8192,
    image_tokens=lambda width, height: width // 10,
    guarded=True,
    whitelist=(128821, 128822),
)


class Model:
    """Says what it is given, word by word, and ends as it is told to."""

    def __init__(self, output: str = "words", reason: str | None = "stop", error: Exception | None = None) -> None:
        self.output, self.reason, self.error = output, reason, error
        self.asked: list[Mapping[str, Any]] = []
        self.said = 0
        self.closed = False

    async def chat(self, payload: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        self.asked.append(payload)
        try:
            for begin in range(0, len(self.output), 4):
                self.said += 1
                yield Delta([{"index": 0, "delta": {"content": self.output[begin : begin + 4]}}])
            if self.error is not None:
                raise self.error
            message = {"role": "assistant", "content": self.output}
            choice = {"index": 0, "message": message, "finish_reason": self.reason}
            yield Result({"choices": [choice], "usage": {"completion_tokens": 17}})
        finally:
            self.closed = True

    @property
    def payload(self) -> Mapping[str, Any]:
        return self.asked[-1]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    path = tmp_path / "page.png"
    path.write_bytes(white_png(1000, 500))
    return Page(2, path, 1000, 500, 144)


async def read(model: Model, page: Page, attempt: int = 1, *, known: VisionModel = DEEPSEEK, **payload: Any) -> Reading:
    return await VisionRecogniser("vllm", model.chat, known, page_options(payload)).recognise(page, attempt)


async def test_the_picture_comes_first_then_the_prompt_with_what_deepseek_needs(page: Page) -> None:
    model = Model()
    await read(model, page)
    (message,) = model.payload["messages"]
    image, text = message["content"]
    head, _, body = image["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(body) == page.path.read_bytes()
    assert text == {"type": "text", "text": "<|grounding|>Convert the document to markdown."}
    assert {key: value for key, value in model.payload.items() if key != "messages"} == {
        "temperature": 0.0,
        "skip_special_tokens": False,
        "vllm_xargs": {"ngram_size": 30, "window_size": 90, "whitelist_token_ids": [128821, 128822]},
    }


async def test_any_other_model_is_asked_in_words_and_without_what_only_vllm_knows(page: Page) -> None:
    model = Model("# A *page*")
    reading = await read(model, page, known=VisionModel(Dialect.PLAIN))
    assert set(model.payload) == {"messages", "temperature"}
    assert (reading.text, reading.markdown, reading.mode) == ("A page", "# A *page*", None)


async def test_a_tokenizer_without_cells_has_nothing_to_let_pass(page: Page) -> None:
    model = Model()
    await read(model, page, known=VisionModel(Dialect.DEEPSEEK, guarded=True))
    assert model.payload["vllm_xargs"] == {"ngram_size": 30, "window_size": 90}


async def test_a_reading_tells_places_mode_and_tokens(page: Page) -> None:
    output = (
        "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 500]]<|/det|>\n# A\n<|ref|>image<|/ref|><|det|>[[0,0,9,9]]<|/det|>"
    )
    reading = await read(Model(output), page)
    assert reading.blocks[0].bbox == (0, 0, 1000, 251)
    assert reading.markdown == "# A\n\n![](page-0002-figure-01.png)"
    assert (reading.mode, reading.tokens, reading.warnings) == ("tiny", 17, ())


async def test_a_clients_options_are_heeded(page: Page) -> None:
    model = Model("<|ref|>sum<|/ref|><|det|>[[0,0,9,9]]<|/det|>")
    options = {"instruction": "locate", "term": "sum", "max_tokens": 50, "temperature": 0.4, "languages": ["eng"]}
    reading = await read(model, page, options=options)
    assert model.payload["messages"][0]["content"][1]["text"] == "Locate <|ref|>sum<|/ref|> in the image."
    assert (model.payload["max_tokens"], model.payload["temperature"]) == (50, 0.4)
    assert [block.text for block in reading.blocks] == ["sum"]
    assert page_options({"prompt": None, "options": {}}) == page_options({"options": None})
    assert page_options({}).wish.instruction is Instruction.DOCUMENT


@pytest.mark.parametrize(("prompt", "most"), [("x", 8192 - 100 - 1 - 16), ("表" * 1000, 5000)])
async def test_more_tokens_than_there_may_be_room_for_are_not_asked_for(page: Page, prompt: str, most: int) -> None:
    model = Model("some words", reason="length")
    reading = await read(model, page, prompt=prompt, options={"max_tokens": most})
    assert model.payload["max_tokens"] == most
    assert f"{most} tokens" in reading.warnings[0]
    with pytest.raises(PageLooped):
        await read(model, page, prompt=prompt, options={"max_tokens": most + 77})
    assert "max_tokens" not in model.payload


async def test_a_long_prompt_alone_makes_no_page_a_loop(page: Page) -> None:
    model = Model()
    await read(model, page, prompt="表" * 5000)
    assert "max_tokens" not in model.payload


async def test_a_second_try_is_another_question(page: Page) -> None:
    model = Model()
    for attempt in (1, 2, 3):
        await read(model, page, attempt)
    assert [payload["temperature"] for payload in model.asked] == [0.0, 0.3, 0.0]
    assert model.payload["messages"][0]["content"][1]["text"] == "Free OCR."


async def test_a_loop_stops_the_model_and_leaves_what_came_before(page: Page) -> None:
    model = Model("# Above\n" + "The same line, and the same again.\n" * 1000)
    with pytest.raises(PageLooped) as failure:
        await read(model, page)
    assert model.closed
    assert model.said < 1000
    assert not failure.value.permanent
    assert "page 2" in failure.value.message
    partial = failure.value.partial
    assert partial is not None
    assert partial.text == "Above\nThe same line, and the same again."
    assert partial.mode == "tiny"


async def test_an_answer_that_came_to_no_end_is_a_loop_too(page: Page) -> None:
    with pytest.raises(PageLooped) as failure:
        await read(Model("some words", reason="length"), page)
    assert failure.value.partial is not None
    assert failure.value.partial.text == "some words"


async def test_an_answer_cut_off_where_the_client_wanted_is_a_reading_with_a_warning(page: Page) -> None:
    reading = await read(Model("some words", reason="length"), page, options={"max_tokens": 20})
    assert reading.text == "some words"
    assert "20 tokens" in reading.warnings[0]


async def test_another_end_of_an_answer_is_told(page: Page) -> None:
    with pytest.raises(RecogniserError, match="content_filter") as failure:
        await read(Model("some words", reason="content_filter"), page)
    assert not failure.value.permanent
    assert failure.value.partial is not None


async def test_a_page_that_the_server_refuses_has_failed_for_good(page: Page) -> None:
    refusal = EngineInputError("vLLM answered 400: no such picture", status=400)
    with pytest.raises(RecogniserError, match="Page 2 was refused: vLLM answered 400: no such picture") as failure:
        await read(Model(error=refusal), page)
    assert failure.value.permanent


@pytest.mark.parametrize(
    "error",
    [
        EngineDied("died"),
        EngineUnavailable("overloaded"),
        EngineInputError("no such model", status=404),
        EngineInputError("no such key", code="upstream_refused_key"),
    ],
    ids=lambda error: error.message,
)
async def test_what_is_not_the_pages_fault_goes_through(page: Page, error: Exception) -> None:
    with pytest.raises(type(error)) as failure:
        await read(Model(error=error), page)
    assert failure.value is error


async def test_a_recogniser_that_is_cancelled_closes_its_stream(page: Page) -> None:
    begun = asyncio.Event()
    closed = asyncio.Event()

    async def chat(_: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
        try:
            begun.set()
            await asyncio.Event().wait()
            yield Delta([])
        finally:
            closed.set()

    recogniser = VisionRecogniser("vllm", chat, DEEPSEEK, page_options({}))
    task = asyncio.create_task(recogniser.recognise(page, 1))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()


async def test_characters_that_no_database_takes_are_replaced_once_the_answer_is_whole(page: Page) -> None:
    split = Model("one \ud83d\ude00, \ud800 and \udfff")
    reading = await read(split, page, known=VisionModel(Dialect.PLAIN))
    assert reading.text == reading.markdown == reading.blocks[0].text == "one \U0001f600, \ufffd and \ufffd"
    with pytest.raises(PageLooped) as failure:
        await read(Model("la \udc80 " * 5000), page)
    assert failure.value.partial is not None
    (failure.value.message + failure.value.partial.markdown).encode()
    with pytest.raises(RecogniserError) as broken:
        await read(Model(reason="\ud800"), page)
    broken.value.message.encode()


async def test_pages_are_asked_for_no_larger_than_a_model_looks_at_them(page: Page) -> None:
    assert VisionRecogniser("vllm", Model().chat, DEEPSEEK, page_options({})).page_side == 2600


async def test_a_long_answer_is_taken_apart_beside_the_event_loop(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def parsed(output: str) -> Reading:
        threads.append(threading.get_ident())
        return Reading(output, output)

    monkeypatch.setattr("worker.engines.vision.read_plain", parsed)
    await read(Model("words"), page, known=VisionModel(Dialect.PLAIN))
    assert threads != []
    assert threads != [threading.get_ident()]


class Vllm:
    """The server's side of an examination: ``likely`` is what it says to the question with one right answer."""

    def __init__(self, said: str = "112", tokens: int = 90, **answers: Any) -> None:
        self.said, self.tokens, self.answers = said, tokens, answers
        self.puzzle: dict[str, Any] = {}

    async def answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        match request.url.path:
            case path if path in self.answers:
                status, content = self.answers[path]
                return httpx.Response(status, content=content)
            case "/tokenize":
                known = {"1": [7, 41], "2": [42], "<td>": [501], "</td>": [502, 503]}
                return httpx.Response(200, json={"tokens": known[body["prompt"]]})
            case "/v1/models":
                return httpx.Response(200, json={"data": [{"id": "tiny", "max_model_len": 4096}]})
            case _:
                self.puzzle = body
                choice = {"message": {"content": self.said}, "finish_reason": "length"}
                return httpx.Response(200, json={"choices": [choice], "usage": {"prompt_tokens": self.tokens}})

    async def examine(self, mode: str = "tiny", family: Family = Family.DEEPSEEK_OCR) -> VisionModel:
        async with httpx.AsyncClient(transport=httpx.MockTransport(self.answer)) as client:
            return await Examination("tiny", client, 5.0).model(family, mode)


async def test_an_engine_that_answers_rightly_is_taken_with_what_it_tells_of_itself() -> None:
    vllm = Vllm()
    found = await vllm.examine()
    assert (found.dialect, found.mode, found.context, found.guarded) == (Dialect.DEEPSEEK, "tiny", 4096, True)
    assert found.whitelist == (501,)
    assert found.image_tokens is not None
    assert found.image_tokens(1191, 1684) == 73
    assert vllm.puzzle["allowed_token_ids"] == [41, 42]
    assert vllm.puzzle["vllm_xargs"]["ngram_size"] == 2


@pytest.mark.parametrize(
    ("vllm", "code"),
    [
        (Vllm(said="111"), "ngram_guard_inactive"),
        (Vllm(said="121"), "engine_probe_failed"),
        (Vllm(said=""), "engine_probe_failed"),
        (Vllm(tokens=273 + 210 + 10), "resolution_not_set"),
        (Vllm(tokens=73), "resolution_not_set"),
        (Vllm(**{"/tokenize": (404, b"Not Found")}), "engine_probe_failed"),
        (Vllm(**{"/tokenize": (200, b'{"tokens": []}')}), "engine_probe_failed"),
        (Vllm(**{"/v1/chat/completions": (500, b'{"error": "x"}')}), "engine_probe_failed"),
        (Vllm(**{"/v1/chat/completions": (200, b'{"choices": []}')}), "engine_probe_failed"),
    ],
    ids=range(9),
)
async def test_an_engine_that_does_not_is_named_with_what_is_wrong(vllm: Vllm, code: str) -> None:
    with pytest.raises(EngineUnavailable) as failure:
        await vllm.examine()
    assert failure.value.code == code
    assert "vLLM of tiny" in failure.value.message


def test_no_two_modes_take_as_many_tokens_for_the_picture_that_is_asked_about() -> None:
    for family in Family:
        counts = sorted(image_tokens(family, mode, 1300, 700) for mode in family.modes)
        assert all(later - earlier > 20 for earlier, later in pairwise(counts))
    assert Family.DEEPSEEK_OCR_2.modes == ("base", "gundam")


USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


@asynccontextmanager
async def openai(words: list[str], model: str) -> AsyncIterator[tuple[OpenaiEngine, list[dict[str, Any]]]]:
    """The engine before a real HTTP server that says ``words``, and what that was asked."""
    asked: list[dict[str, Any]] = []
    chunks = [{"choices": [{"delta": {"content": word}, "finish_reason": None}]} for word in words]
    end = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": dict.fromkeys(USAGE, len(words))}

    async def answer(request: HttpRequest) -> Response:
        asked.append(await request.json())
        lines = [*map(json.dumps, [*chunks, end]), "[DONE]"]
        return Response("".join(f"data: {line}\n\n" for line in lines), media_type="text/event-stream")

    app, port = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])]), free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve())

    async def started() -> bool:
        return server.started

    await eventually(started)
    entry = {"task": "ocr", "engine": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "model": model}
    engine = OpenaiEngine("reader", OpenaiSettings.model_validate(entry | {"max_concurrent": 3}))
    try:
        yield engine, asked
    finally:
        await engine.stop()
        server.should_exit = True
        await serving


async def test_an_openai_server_reads_pages(page: Page) -> None:
    async with openai(["# A ", "page"], "some-vision-model") as (engine, asked):
        assert isinstance(engine, Reader)
        assert engine.turns.places == 3
        recogniser = await engine.recogniser(Request("job", 1, {"options": {}}))
        reading = await recogniser.recognise(page, 1)
    assert (recogniser.name, reading.text, reading.tokens) == ("openai", "A page", 2)
    assert asked[0]["model"] == "some-vision-model"
    assert "vllm_xargs" not in asked[0]
    assert "skip_special_tokens" not in asked[0]


async def test_an_openai_server_makes_no_searchable_pdf(page: Page) -> None:
    async with openai([], "some-vision-model") as (engine, _):
        with pytest.raises(EngineInputError, match="makes no searchable PDFs; ask a Tesseract model") as refused:
            await engine.recogniser(Request("job", 1, {"options": {"searchable_pdf": True}}))
    assert refused.value.code == "task_unsupported"


async def test_what_a_server_says_of_a_refusal_can_be_kept(page: Page) -> None:
    assert _message_of({"error": {"message": "no \ud800"}}) == "no \ufffd"


async def test_a_deepseek_ocr_behind_an_openai_server_is_asked_as_one(page: Page) -> None:
    output = ["<|ref|>text<|/ref|><|det|>[[0,0,999,999]]<|/det|>\n", "A page"]
    async with openai(output, "deepseek-ai/DeepSeek-OCR") as (engine, asked):
        reading = await (await engine.recogniser(Request("job", 1, {}))).recognise(page, 1)
    assert (reading.text, reading.blocks[0].bbox) == ("A page", (0, 0, 1000, 500))
    assert asked[0]["messages"][0]["content"][1]["text"].startswith("<|grounding|>")
    assert "vllm_xargs" not in asked[0]
