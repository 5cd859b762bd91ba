"""Reads pages by a vision model behind a chat API."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from broker.errors import EngineInputError, UpstreamTimeout
from ocr.errors import PageLooped, RecogniserError, RecogniserTimeout
from ocr.grammar import read_grounded, read_plain
from ocr.instructions import Dialect, Instruction, Question, Wish, variation
from ocr.loops import Loop, LoopDetector
from ocr.page import Reading
from ocr.plain_text import well_formed
from ocr.protocol import Page
from worker.engines.base import Chunk, Delta, Result

Chat: TypeAlias = Callable[[Mapping[str, Any]], AsyncGenerator[Chunk, None]]
"""Streams the answer to a payload of OpenAI's chat API. Closed, it stops the model."""

# What vLLM's guard against loops is told: no 30 tokens may come again within 90, but for a table's empty cells.
_NGRAM, _WINDOW = 30, 90
# Pixels: no vision model looks at more of a page's longer side, and pages travel unpacked.
_PAGE_SIDE = 2600
# Tokens that a prompt may have besides its text and picture.
_MARGIN = 16
# A server that refuses so much refuses this picture, and not the key, the model's name or the address.
_REFUSES_PAGE = frozenset({400, 413, 415, 422})


@dataclass(frozen=True)
class VisionModel:
    """What is known of the model that is asked. `dialect` says in which words."""

    dialect: Dialect
    mode: str | None = None
    """The resolution mode in which it runs."""
    context: int | None = None
    """Tokens of prompt and answer together."""
    image_tokens: Callable[[int, int], int] | None = None
    """Tokens of a picture, from its width and height in pixels."""
    guarded: bool = False
    """Whether it runs under vLLM's guard against loops."""
    whitelist: Sequence[int] = ()
    """Tokens that the guard lets pass."""


@dataclass(frozen=True)
class PageOptions:
    """What a client wants of each page. `max_tokens`: of an answer; None: as many as there is room for."""

    wish: Wish
    max_tokens: int | None = None


def page_options(payload: Mapping[str, Any]) -> PageOptions:
    """Of the payload of an OCR job."""
    options = payload.get("options") or {}
    wish = Wish(
        instruction=Instruction(options.get("instruction") or Instruction.DOCUMENT),
        term=options.get("term") or "",
        prompt=payload.get("prompt"),
        temperature=options.get("temperature") or 0.0,
    )
    return PageOptions(wish, options.get("max_tokens"))


class VisionRecogniser:
    """Implements `ocr.recogniser.Recogniser`: asks the model that `chat` reaches. `name`: in the records of pages."""

    page_side: int | None = _PAGE_SIDE
    wants_straight = False

    def __init__(self, name: str, chat: Chat, model: VisionModel, options: PageOptions) -> None:
        self.name = name
        self._chat = chat
        self._model = model
        self._options = options

    async def recognise(self, page: Page, attempt: int) -> Reading:
        """Raises PageLooped where the model does not come to an end, RecogniserError where its server refuses the page
        (permanent) or it ends its answer for another reason, and what `chat` raises."""
        question = variation(attempt, self._options.wish, self._model.dialect)
        payload = self._payload(page, question, await asyncio.to_thread(_data_url, page.path))
        output, loop, result = await self._answer(payload, page.number)
        usage = result.get("usage") or {}
        ends = [choice["finish_reason"] for choice in result.get("choices", ())]
        cut = output if loop is None else output[: loop.end_of_first]
        reading = await asyncio.to_thread(self._read, well_formed(cut), page, question)
        reading = replace(reading, mode=self._model.mode, tokens=usage.get("completion_tokens"))
        if loop is not None:
            raise _with(reading, PageLooped(f"The model came to no end on page {page.number}: {loop.describe()}."))
        return self._ended(reading, page.number, ends[0], payload.get("max_tokens"))

    def _payload(self, page: Page, question: Question, image: str) -> dict[str, Any]:
        model = self._model
        parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question.prompt}]
        payload: dict[str, Any] = {
            "messages": [{"role": "user", "content": parts}],
            "temperature": question.temperature,
        }
        if (most := self._most_tokens(page, question)) is not None:
            payload["max_tokens"] = most
        if model.dialect is Dialect.DEEPSEEK:
            # The tags with the places are special tokens.
            payload["skip_special_tokens"] = False
        if model.guarded:
            xargs: dict[str, Any] = {"ngram_size": _NGRAM, "window_size": _WINDOW}
            payload["vllm_xargs"] = xargs | ({"whitelist_token_ids": list(model.whitelist)} if model.whitelist else {})
        return payload

    def _most_tokens(self, page: Page, question: Question) -> int | None:
        """What the client wants. None where prompt and answer may not fit into the context together: that would be
        refused, and without a number a server gives the answer what the prompt leaves."""
        wanted, model = self._options.max_tokens, self._model
        if wanted is None or model.context is None or model.image_tokens is None:
            return wanted
        # No tokenizer makes more tokens of a text than it has bytes.
        prompt = model.image_tokens(page.width, page.height) + len(question.prompt.encode()) + _MARGIN
        return wanted if prompt + wanted <= model.context else None

    async def _answer(self, payload: Mapping[str, Any], number: int) -> tuple[str, Loop | None, Mapping[str, Any]]:
        output: list[str] = []
        detector = LoopDetector()
        try:
            async with aclosing(self._chat(payload)) as chunks:
                async for chunk in chunks:
                    match chunk:
                        case Delta():
                            output.append(chunk.text)
                            if (loop := detector.feed(chunk.text)) is not None:
                                return "".join(output), loop, {}
                        case Result(value):
                            return "".join(output), None, value
        except UpstreamTimeout as error:
            if not error.reached:
                raise
            # A page that takes its server too long is tried again and given up as such, and the others are read.
            raise RecogniserTimeout(f"Page {number} took too long: {error.message}") from error
        except EngineInputError as error:
            if error.details.get("status") in _REFUSES_PAGE:
                raise _permanent(f"Page {number} was refused: {error.message}") from error
            raise
        raise AssertionError("A run ends with a Result or an error.")

    def _read(self, output: str, page: Page, question: Question) -> Reading:
        if question.refs is None:
            return read_plain(output)
        return read_grounded(output, page.number, page.width, page.height, question.refs)

    def _ended(self, reading: Reading, number: int, reason: str | None, most: int | None) -> Reading:
        """``most``: tokens that the answer could have; None: as many as there was room for."""
        if reason == "stop":
            return reading
        if reason != "length":
            raise _with(reading, RecogniserError(f"The model broke off on page {number} ({reason!r})."))
        if most is None:
            raise _with(reading, PageLooped(f"The model came to no end on page {number} within its longest answer."))
        told = f"The answer was cut off after the {most} tokens that were asked for at most."
        return replace(reading, warnings=(*reading.warnings, told))


def _data_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _with(partial: Reading, error: RecogniserError) -> RecogniserError:
    error.partial = partial
    return error


def _permanent(message: str) -> RecogniserError:
    error = RecogniserError(message)
    error.permanent = True
    return error
