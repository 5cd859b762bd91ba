"""NVML's figures, as we read them, against an allocation of known size by another process.

``python -m pytest tests/gpu -rs`` on a machine with an NVIDIA GPU.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import pytest

from tests.conditions import eventually
from worker.gpus import Gpus

GPUS = Gpus()
DEVICES = GPUS.devices()
pytestmark = pytest.mark.skipif(not DEVICES, reason=GPUS.why_none)

GIB = 2**30
SIZE = 2 * GIB
# What CUDA itself takes for a process, at most.
CONTEXT = GIB


@contextmanager
def allocation() -> Iterator["subprocess.Popen[str]"]:
    """Another process that has taken SIZE bytes of the first GPU."""
    words = [sys.executable, "-m", "tests.gpu.allocation", str(SIZE)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


def give_back(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "given back\n"


def free() -> int:
    return GPUS.devices()[0].free


async def test_what_is_taken_is_no_longer_free_and_what_is_given_back_is() -> None:
    before = free()
    with allocation() as process:
        taken = before - free()
        assert SIZE <= taken <= SIZE + CONTEXT, f"{taken / GIB:.2f} GiB"
        held = free()
        give_back(process)
        returned = free() - held
        assert 0.99 * SIZE <= returned <= 1.01 * SIZE, f"{returned / GIB:.2f} GiB"

    async def all_of_it_is_free() -> bool:
        return abs(before - free()) < 0.05 * GIB

    await eventually(all_of_it_is_free)


def test_who_holds_it_is_told_or_said_to_be_unknown() -> None:
    with allocation() as process:
        held = GPUS.held_by([process.pid])
        if held is None:
            pytest.skip("the driver does not tell what each process holds here, as in a container")
        assert list(held) == [DEVICES[0].uuid]
        assert SIZE <= held[DEVICES[0].uuid] <= SIZE + CONTEXT
    assert GPUS.held_by([process.pid]) is None


def test_the_driver_is_asked_in_a_few_milliseconds() -> None:
    GPUS.devices()
    begin = perf_counter()
    for _ in range(50):
        GPUS.devices()
    assert (perf_counter() - begin) / 50 < 0.02 * len(DEVICES)
