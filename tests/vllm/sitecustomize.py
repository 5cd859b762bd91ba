"""Imported by each Python of a vLLM under test, before anything else: this directory is on its PYTHONPATH.

Makes torchvision importable in the virtual environment of the tests. There is no build of it for CPUs in the package
index: beside a torch for CPUs its own operators are not loaded, and its import fails as it cannot say more about them.
Nothing that the tests do calls one: it is enough that they are declared. Done when torchvision is looked for, as every
Python that is started here reads this file.

And lets processes that wait sleep for a moment. vLLM's wait for each other by ``sched_yield`` in a loop; where there
are few processors some kernels (6.18) let all others wait for seconds then, mongod too, which is said to be away.
"""

import os
import sys
import time
from importlib.abc import MetaPathFinder

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _BeforeTorchvision(MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            _declare()


def _declare() -> None:
    from importlib.metadata import PackageNotFoundError, version

    import torch

    try:
        complete = version("torchvision").endswith("+cpu") or not torch.__version__.endswith("+cpu")
    except PackageNotFoundError:
        return
    for operator in () if complete else ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", _SIGNATURE)


sys.meta_path.insert(0, _BeforeTorchvision())
os.sched_yield = lambda: time.sleep(0.0001)
