"""Finds out whether a vLLM that has just started reads pages as it was told to."""

import base64
import struct
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import httpx

from broker.errors import EngineUnavailable
from ocr.instructions import PROMPTS, Dialect, Instruction
from worker.engines.vision import VisionModel
from worker.engines.vllm_control import CONNECT_TIMEOUT, URL
from worker.ocr_models import Family, image_tokens

# The tags of a cell: a table may have many that are empty.
_CELL = ("<td>", "</td>")
# Pixels of the picture that is asked about: no two modes need as many tokens for it.
_WIDTH, _HEIGHT = 1300, 700
# Tokens of the prompt besides the picture's, at most: modes differ by more.
_PROMPT = 20
_LIKELY, _OTHER = "1", "2"


class Examination:
    """Of the vLLM behind ``http``, which serves the model ``name``. ``timeout``: seconds for an answer."""

    def __init__(self, name: str, http: httpx.AsyncClient, timeout: float) -> None:
        self._name = name
        self._http = http
        self._timeout = httpx.Timeout(timeout, connect=CONNECT_TIMEOUT)

    async def model(self, family: Family | None, mode: str) -> VisionModel:
        """``family``: None for a model of which nothing is known, and which is believed. Raises EngineUnavailable:
        ``ngram_guard_inactive``, ``resolution_not_set``, ``engine_probe_failed``."""
        if family is None:
            return VisionModel(Dialect.PLAIN)
        await self._prove(family, mode)
        whitelist = [await self._tokens(tag) for tag in _CELL]
        return VisionModel(
            Dialect.DEEPSEEK,
            mode=mode,
            context=await self._context(),
            image_tokens=partial(image_tokens, family, mode),
            guarded=True,
            # Where a tag has several tokens the guard cannot let it pass without letting others pass, too.
            whitelist=tuple(tokens[0] for tokens in whitelist if len(tokens) == 1),
        )

    async def _prove(self, family: Family, mode: str) -> None:
        """Asks about a white page in a way that has one right answer. Of two tokens one is far likelier, and the guard
        lets no pair of tokens come twice. The length of the prompt tells the mode."""
        likely, other = (await self._tokens(_LIKELY))[-1], (await self._tokens(_OTHER))[-1]
        answer = await self._ask("/v1/chat/completions", _puzzle(self._name, likely, other))
        said, tokens = _said(answer), _prompt_tokens(answer)
        if said == _LIKELY * 3:
            told = "its guard against loops is not active: are there other --logits-processors in `args`?"
            raise self._unfit(told, "ngram_guard_inactive")
        if said != _LIKELY * 2 + _OTHER or tokens is None:
            raise self._unfit(f"to a question with one right answer it said {said!r}", "engine_probe_failed")
        expected = image_tokens(family, mode, _WIDTH, _HEIGHT)
        if not expected < tokens < expected + _PROMPT:
            told = f"the mode {mode} is not set: a prompt with a picture of {expected} tokens has {tokens}"
            raise self._unfit(told, "resolution_not_set")

    async def _tokens(self, text: str) -> list[int]:
        asked = {"model": self._name, "prompt": text, "add_special_tokens": False}
        tokens = (await self._ask("/tokenize", asked)).get("tokens")
        if not isinstance(tokens, list) or not tokens:
            raise self._unfit(f"it does not tell the tokens of {text!r}", "engine_probe_failed")
        return tokens

    async def _context(self) -> int | None:
        models = (await self._ask("/v1/models")).get("data") or [{}]
        context = models[0].get("max_model_len")
        return context if isinstance(context, int) else None

    async def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        method = "GET" if body is None else "POST"
        try:
            response = await self._http.request(method, f"{URL}{path}", json=body, timeout=self._timeout)
            answer = response.json()
        except (httpx.TransportError, ValueError) as error:
            told = f"asked for {path} it failed: {error or type(error).__name__}"
            raise self._unfit(told, "engine_probe_failed") from error
        if not response.is_success or not isinstance(answer, dict):
            raise self._unfit(f"asked for {path} it answered {response.text[:500]}", "engine_probe_failed")
        return answer

    def _unfit(self, told: str, code: str) -> EngineUnavailable:
        return EngineUnavailable(f"The vLLM of {self._name} was started to read pages, but {told}.", code=code)


def _puzzle(name: str, likely: int, other: int) -> dict[str, Any]:
    image = {"url": f"data:image/png;base64,{base64.b64encode(white_png(_WIDTH, _HEIGHT)).decode()}"}
    text = PROMPTS[Dialect.DEEPSEEK][Instruction.TEXT]
    return {
        "model": name,
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": image}, {"type": "text", "text": text}]}
        ],
        "temperature": 0.0,
        "max_tokens": 3,
        "ignore_eos": True,
        "allowed_token_ids": [likely, other],
        "logit_bias": {str(likely): 100},
        "vllm_xargs": {"ngram_size": 2, "window_size": 10},
    }


def _said(answer: Mapping[str, Any]) -> str:
    message = (answer.get("choices") or [{}])[0].get("message") or {}
    return str(message.get("content") or "").replace(" ", "")


def _prompt_tokens(answer: Mapping[str, Any]) -> int | None:
    tokens = (answer.get("usage") or {}).get("prompt_tokens")
    return tokens if isinstance(tokens, int) else None


def white_png(width: int, height: int) -> bytes:
    """https://www.w3.org/TR/png-3/: a header, the rows, each after its filter's number, and an end."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff" * width) * height)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
