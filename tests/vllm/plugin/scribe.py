"""A logits processor for tests: a model that is asked for it writes just what it is told, token by token, and ends.

A prompt with an order asks for it: ``write:`` and pieces of UTF-8 in hexadecimal, each with how often, 61*3+0a*1 for
"aaa" and a line end. What it is told becomes far likelier than anything else, and not the only choice, so that another
processor may still forbid it. ``tiny_ocr-1.dist-info`` names it to vLLM.
"""

import re
from pathlib import Path

import torch
from tokenizers import Tokenizer
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

_ORDER = re.compile(r"write:((?:\+?[0-9a-f]+\*\d+)+)")
_MUCH = 1e4


class Scribe(AdapterLogitsProcessor):
    def __init__(self, vllm_config, device, is_pin_memory) -> None:  # type: ignore[no-untyped-def]
        super().__init__(vllm_config, device, is_pin_memory)
        self._tokenizer = Tokenizer.from_file(str(Path(vllm_config.model_config.model) / "tokenizer.json"))
        self._end = vllm_config.model_config.hf_config.eos_token_id

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams):  # type: ignore[no-untyped-def]
        order: list[int] | None = None

        def write(prompt: list[int], said: list[int], logits: torch.Tensor) -> torch.Tensor:
            nonlocal order
            if order is None:
                order = self._order(prompt)
            if order:
                logits[order[len(said)] if len(said) < len(order) else self._end] += _MUCH
            return logits

        return write

    def _order(self, prompt: list[int]) -> list[int]:
        found = _ORDER.search(self._tokenizer.decode(prompt))
        pieces = [piece.split("*") for piece in found[1].split("+")] if found else []
        text = "".join(bytes.fromhex(piece).decode() * int(times) for piece, times in pieces)
        return self._tokenizer.encode(text).ids
