"""How many tokens a picture takes, by vLLM's own code for both generations of DeepSeek-OCR and by ours.

Without an engine: the towers of DeepSeek-OCR-2 would be too large for one.
"""

import json
import subprocess
from pathlib import Path

import pytest

from tests.vllm.conftest import ocr_entry_of
from worker.ocr_models import Family, family, image_tokens, mode_environment

SIZES = [(1191, 1684), (700, 700), (3000, 500), (769, 768), (100, 100), (640, 641), (2480, 3508), (1000, 4000)]
COUNTS = """
import json, sys
from vllm.plugins import load_general_plugins
load_general_plugins()
from PIL import Image
from transformers import AutoTokenizer
from vllm.model_executor.models import deepseek_ocr, deepseek_ocr2
from vllm.transformers_utils.processors.deepseek_ocr import DeepseekOCRProcessor
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
found = {}
for module, info, strategy in (
    (deepseek_ocr, deepseek_ocr.DeepseekOCRProcessingInfo, "v1"),
    (deepseek_ocr2, deepseek_ocr2.DeepseekOCR2ProcessingInfo, "v2"),
):
    processor = DeepseekOCRProcessor(
        tokenizer, image_size=module.IMAGE_SIZE, base_size=module.BASE_SIZE, strategy=strategy
    )
    for size in json.loads(sys.argv[2]):
        made = processor(prompt="<image>", images=[Image.new("RGB", size, "white")])
        said = info.get_num_image_tokens(
            None, image_width=size[0], image_height=size[1], cropping=module.CROP_MODE
        )
        shape = list(made["pixel_values"].shape)
        found[f"{strategy} {size[0]} {size[1]}"] = [said, int(made["num_image_tokens"][0]), shape[-1]]
print(json.dumps(found))
"""


@pytest.mark.parametrize("mode", ["base", "gundam"])
def test_both_generations_count_as_vllm_does(mode: str, python: str, tiny_ocr: Path) -> None:
    entry = ocr_entry_of(python, tiny_ocr)
    run = subprocess.run(
        [python, "-c", COUNTS, tiny_ocr, json.dumps(SIZES)],
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"} | entry["env"] | mode_environment(mode, entry["env"]),
        capture_output=True,
        check=True,
    )
    found = json.loads(run.stdout.splitlines()[-1])
    for strategy, model in (("v1", Family.DEEPSEEK_OCR), ("v2", Family.DEEPSEEK_OCR_2)):
        for width, height in SIZES:
            expected = image_tokens(model, mode, width, height)
            assert found[f"{strategy} {width} {height}"] == [expected, expected, 1024]


def test_the_tiny_model_is_known_for_what_it_is(tiny_ocr: Path) -> None:
    assert family(tiny_ocr) is Family.DEEPSEEK_OCR
