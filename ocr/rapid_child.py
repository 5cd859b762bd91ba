"""The process that runs RapidOCR: ``python -m ocr.rapid_child PARENT``.

Says ``{"ready": true}`` once its models are loaded, or ``{"missing": module}``. Then it answers each ``{"path": page}``
with ``{"lines": [[text, [left, top, right, bottom], y], …]}``, until there are no more; y is where a line begins.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from ocr.limits import allow_cpu, die_with_parent, limit_process
from ocr.protocol import MEBIBYTE

MEMORY = 4096 * MEBIBYTE
"""Of address space: a page takes 2.8 GB of it, of which 1.8 GB are used."""
OUTPUT = 1 * MEBIBYTE
CPU_SECONDS = 120.0
"""For a page, and to load the models; over all threads."""


def reader() -> Callable[[str], list[Any]]:
    import numpy
    from PIL import Image
    from rapidocr import RapidOCR

    # Of our own decoder, which has checked its size.
    Image.MAX_IMAGE_PIXELS = None
    engine = RapidOCR(params={"Global.use_cls": False, "Global.log_level": "critical"})

    def read(path: str) -> list[Any]:
        with Image.open(path, formats=("PNG",)) as page:
            pixels = numpy.asarray(page.convert("RGB"))[:, :, ::-1]
        # The classifier of upside-down lines turns good ones, too, which are lost then.
        found: Any = engine(pixels, use_cls=False)
        if found.boxes is None:
            return []
        return [[text, around(box), int(box[0][1])] for text, box in zip(found.txts, found.boxes.tolist(), strict=True)]

    # The models are loaded by the first page.
    engine(numpy.full((64, 256, 3), 255, numpy.uint8), use_cls=False)
    return read


def around(corners: list[list[float]]) -> list[int]:
    across, down = zip(*corners, strict=True)
    return [int(min(across)), int(min(down)), int(max(across)) + 1, int(max(down)) + 1]


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    limit_process(MEMORY, OUTPUT)
    allow_cpu(CPU_SECONDS)

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        read = reader()
    except ModuleNotFoundError as error:
        answer({"missing": error.name})
        return
    answer({"ready": True})
    for line in sys.stdin:
        allow_cpu(CPU_SECONDS)
        answer({"lines": read(json.loads(line)["path"])})


if __name__ == "__main__":
    main()
