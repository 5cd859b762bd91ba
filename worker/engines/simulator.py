"""A simulator of a chat model: deterministic words at a set speed, and faults on demand. There is no model behind it.

For tests, benchmarks and demonstrations. Its answers begin with «[simulator]», so that nobody takes them for a model's.
"""

import asyncio
import os
import signal
import zlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from broker.errors import EngineError, EngineInputError, EngineNotRunning
from config import SimulatorSettings
from worker.engines.base import Chunk, Delta, Footprint, Request, Result

_WORDS = (
    "the turntable carries each engine to its own track while steam rises over the yard and "
    "a lamp swings where the night crew counts wheels bolts and miles under the old glass roof"
).split()
# Parts of ``load_time``.
_BEGINNING = 0.1
_WAKING = 0.1
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
        prompt = "\n".join(_text(message) for message in request.payload.get("messages", ()))
        asked = request.payload.get("max_tokens")
        tokens = self._settings.tokens if asked is None else min(asked, self._settings.tokens)
        fault = _fault(request) if self._settings.faults else {}
        delay = 1.0 / self._settings.tokens_per_second * (10 if fault.get("fault") == "slow" else 1)
        seed, text = zlib.crc32(prompt.encode()), "[simulator]"
        loop = asyncio.get_running_loop()
        start = loop.time()
        yield Delta(text)
        for index in range(tokens):
            if fault and index == fault.get("after", 0):
                await _befall(fault["fault"])
                if fault["fault"] == "garbage":
                    return
            await asyncio.sleep(start + (index + 1) * delay - loop.time())
            piece = " " + word(seed, index)
            text += piece
            yield Delta(piece)
        yield Result(_result(text, prompt, tokens, cut=asked is not None and asked <= tokens))


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


def _text(message: Mapping[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


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


def _result(text: str, prompt: str, tokens: int, *, cut: bool) -> dict[str, Any]:
    prompt_tokens = len(prompt.split())
    return {
        "message": {"role": "assistant", "content": text},
        "finish_reason": "length" if cut else "stop",
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
        },
    }
