"""A plugin for vLLM: the towers of DeepSeek-OCR that see a picture are made so small that a CPU runs them in a moment.

vLLM has their sizes in its code. What they give to the language model keeps its shape. ``tiny_ocr-1.dist-info`` names
this module to vLLMs that have its directory on PYTHONPATH.
"""

from typing import Any


def register() -> None:
    from vllm.model_executor.models import deepencoder, deepseek_ocr

    plain = deepseek_ocr.CLIPVisionConfig

    def smaller(**sizes: Any) -> Any:
        return plain(**{**sizes, "num_hidden_layers": 1, "intermediate_size": 256})

    deepseek_ocr.CLIPVisionConfig = smaller
    # Without a layer in which every place of the picture looks at every other.
    deepseek_ocr.build_sam_vit_b = lambda: deepencoder._build_sam(192, 1, 3, [])
