"""A logits processor that gives the tiny model two habits: it takes its time, and one word kills it.

``--logits-processors habits:Habits``, with this file's directory in PYTHONPATH and the word in TINY_POISON; run by the
interpreter that has vLLM.

Why it takes its time: a step of the tiny model is quicker than what vLLM's API server does for it. The server's task
for outputs then never finds its queue empty, so that nothing else of the server runs: no text leaves it and /health is
not answered until the request is over (vLLM 0.32; 8 s of silence for 5,000 tokens). No real model is that quick.
"""

import os
import signal
import time
from collections.abc import Sequence

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

# Seconds of a step, at least: 100 tokens a second for each request.
STEP = 0.01
POISON = os.environ["TINY_POISON"]
# Where the tiny model has the characters from "!" to "~", a token each.
_FIRST = 3


class Habits(LogitsProcessor):
    def __init__(self, *_: object) -> None:
        """Has no use for what vLLM tells."""

    def is_argmax_invariant(self) -> bool:
        return False

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        time.sleep(STEP)
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is not None and any(_is_poison(prompt or ()) for _, _, prompt, _ in batch_update.added):
            os.kill(os.getpid(), signal.SIGKILL)


def _is_poison(prompt: Sequence[int]) -> bool:
    return POISON in "".join(chr(token - _FIRST + ord("!")) for token in prompt if token >= _FIRST)
