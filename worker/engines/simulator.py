"""A simulator of a chat model: deterministic words at a set speed, and faults on demand. There is no model behind it.

For tests, benchmarks and demonstrations. Its answers begin with «[simulator]», so that nobody takes them for a model's.
"""

import asyncio
import math
import os
import signal
import zlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from broker.errors import EngineError, EngineInputError, EngineNotRunning
from config import SimulatorSettings
from worker.engines.answers import KINDS, Answer
from worker.engines.base import Chunk, Delta, Footprint, Request, Result
from worker.engines.embeddings import packed

_WORDS = (
    "the turntable carries each engine to its own track while steam rises over the yard and "
    "a lamp swings where the night crew counts wheels bolts and miles under the old glass roof"
).split()
# Parts of ``load_time``.
_BEGINNING = 0.1
_WAKING = 0.1
# Of an embedding.
_DIMENSIONS = 16
FAULTS = ("crash", "hang", "slow", "garbage", "error", "reject")


def word(seed: int, index: int) -> str:
    """The ``index``-th word of an answer: the same for the same prompt, however often it is asked."""
    return _WORDS[zlib.crc32(f"{seed}:{index}".encode()) % len(_WORDS)]


class Simulator:
    """Honours ``max_tokens`` of the payload and, where the configuration allows faults, ``simulate``:

    ``{"fault": "crash"}`` kills the worker process, ``hang`` never answers, ``slow`` takes ten times as long,
    ``garbage`` ends without a result, ``error`` fails in passing, ``reject`` fails for good. ``after`` (tokens, 0)
    says when, ``attempts`` (1) how many attempts it befalls.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self._settings = settings

    async def start(self) -> None:
        """There is nothing to load."""

    async def stop(self) -> None:
        """There is nothing to let go of."""

    async def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        if request.task == "embedding":
            yield Result(_embeddings(request.payload["input"], request.payload.get("dimensions") or _DIMENSIONS))
            return
        answer = Answer(KINDS[request.task]())
        async for chunk in self._chunks(request, _prompts(request)):
            if news := answer.add(chunk):
                yield Delta(news)
        yield Result(answer.result())

    async def _chunks(self, request: Request, prompts: Sequence[str]) -> AsyncGenerator[dict[str, Any], None]:
        """As an upstream would send them."""
        payload, chat = request.payload, request.task == "chat"
        asked = payload.get("max_completion_tokens") or payload.get("max_tokens")
        tokens = self._settings.tokens if asked is None else min(asked, self._settings.tokens)
        fault = _fault(request) if self._settings.faults else {}
        delay = 1.0 / self._settings.tokens_per_second * (10 if fault.get("fault") == "slow" else 1)
        seeds = [zlib.crc32(text.encode()) + choice for text in prompts for choice in range(payload.get("n") or 1)]
        loop = asyncio.get_running_loop()
        start = loop.time()
        yield _chunk(["[simulator]"] * len(seeds), chat)
        for index in range(tokens):
            if fault and index == fault.get("after", 0):
                await _befall(fault["fault"])
                if fault["fault"] == "garbage":
                    return
            await asyncio.sleep(start + (index + 1) * delay - loop.time())
            yield _chunk([" " + word(seed, index) for seed in seeds], chat)
        reason = "length" if asked is not None and asked <= tokens else "stop"
        ends = [{"index": index, "finish_reason": reason} for index in range(len(seeds))]
        yield {"choices": ends, "usage": _usage(prompts, tokens * len(seeds))}


class LoadableSimulator(Simulator):
    """Pretends to take ``memory`` too: it is loaded, put to sleep and woken as a real model is, which takes time.

    What is sent to it while it sleeps hangs, as with vLLM.
    """

    gpu_count = 1
    address = None
    can_sleep = True

    def __init__(self, settings: SimulatorSettings) -> None:
        super().__init__(settings)
        assert settings.memory is not None
        self.gpus: Sequence[str] = ()
        self.on_phase: Callable[[str], None] = lambda _: None
        self._memory = settings.memory
        self._loaded = False
        self._awake = asyncio.Event()

    async def unable(self) -> str | None:
        return None

    def need(self, total: int) -> int | None:
        return self._memory

    async def footprint(self) -> Footprint | None:
        if not self._loaded:
            return Footprint(0, 0)
        return Footprint(self._memory, 0) if self._awake.is_set() else Footprint(0, self._memory)

    async def healthy(self) -> bool:
        return self._loaded

    async def start(self) -> None:
        for phase, share in (("starting", _BEGINNING), ("loading", 1.0 - _BEGINNING)):
            self.on_phase(phase)
            await asyncio.sleep(self._settings.load_time * share)
        self._loaded = True
        self._awake.set()

    async def stop(self) -> None:
        self._loaded = False
        self._awake.clear()

    async def sleep(self) -> None:
        self._awake.clear()

    async def wake(self) -> None:
        await asyncio.sleep(self._settings.load_time * _WAKING)
        self._awake.set()

    async def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        if not self._loaded:
            raise EngineNotRunning("The simulator is not loaded.")
        await self._awake.wait()
        async for chunk in super().run(request):
            yield chunk


def _prompts(request: Request) -> Sequence[str]:
    if request.task != "completion":
        return ["\n".join(_text(message) for message in request.payload.get("messages", ()))]
    given = request.payload["prompt"]
    several = isinstance(given, list) and not isinstance(given[0], int)
    return [str(one) for one in (given if several else [given])]


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _chunk(texts: Sequence[str], chat: bool) -> dict[str, Any]:
    pieces = [{"delta": {"content": text}} if chat else {"text": text} for text in texts]
    return {"choices": [{"index": index, **piece} for index, piece in enumerate(pieces)]}


def _embeddings(inputs: Sequence[Any], dimensions: int) -> dict[str, Any]:
    """For each input a unit vector of its own."""
    vectors = []
    for given in inputs:
        numbers = [zlib.crc32(f"{index}:{given}".encode()) / 2**31 - 1.0 for index in range(dimensions)]
        length = math.hypot(*numbers)
        vectors.append(packed([number / length for number in numbers]))
    prompt_tokens = sum(len(str(given).split()) for given in inputs)
    return {"embeddings": vectors, "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}}


def _fault(request: Request) -> Mapping[str, Any]:
    fault: Mapping[str, Any] = request.payload.get("simulate") or {}
    return fault if request.attempt <= fault.get("attempts", 1) else {}


async def _befall(fault: str) -> None:
    match fault:
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            await asyncio.Event().wait()
        case "error":
            raise EngineError("The simulator failed because it was asked to.", code="simulated_error")
        case "reject":
            raise EngineInputError("The simulator refused the input because it was asked to.")


def _usage(prompts: Sequence[str], completion_tokens: int) -> dict[str, int]:
    prompt_tokens = sum(len(prompt.split()) for prompt in prompts)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
