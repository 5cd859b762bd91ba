"""A simulator of a chat model: deterministic words at a set speed, and faults on demand. There is no model behind it.

For tests, benchmarks and demonstrations. Its answers begin with «[simulator]», so that nobody takes them for a model's.
"""

import asyncio
import os
import signal
import zlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from broker.errors import EngineError, EngineInputError
from config import SimulatorSettings
from worker.engines.base import Chunk, Delta, Request, Result

_WORDS = (
    "the turntable carries each engine to its own track while steam rises over the yard and "
    "a lamp swings where the night crew counts wheels bolts and miles under the old glass roof"
).split()
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
