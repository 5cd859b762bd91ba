"""The machine's memory as NVML tells it, against a stand-in of its binding; tests/gpu asks the real one."""

import os
import socket
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest

from tests.unit.worker.nvml_library import GIB, Card, NvmlLibrary
from worker import gpus
from worker.gpus import Gpus, main_memory

A, B, C = "GPU-aaaa1111-0000", "GPU-aaaa2222-0000", "GPU-cccc3333-0000"
ME = os.getpid()
# Above the largest pid that Linux gives (proc(5), pid_max).
NOBODY = 2**22 + 1


def gpus_of(*cards: Card, visible: str | None = None, **options: Any) -> Gpus:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return Gpus(NvmlLibrary(list(cards), **options), environ)


def test_each_gpu_is_told_with_its_total_and_what_is_free_now() -> None:
    card = Card(A, others=3 * GIB)
    found = gpus_of(card, Card(B, total=24 * GIB))
    assert [(gpu.uuid, gpu.total, gpu.free) for gpu in found.devices()] == [
        (A, 80 * GIB, 77 * GIB),
        (B, 24 * GIB, 24 * GIB),
    ]
    card.others = 50 * GIB
    assert found.devices()[0].free == 30 * GIB
    assert found.why_none == ""


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, [A, B, C]),
        ("2,0", [C, A]),
        (f"{B}, {C}", [B, C]),
        ("GPU-cccc", [C]),
        ("GPU-aaaa", []),
        ("1,7,0", [B]),
        ("", []),
        ("-1", []),
        ("MIG-aaaa1111", []),
    ],
)
def test_only_what_cuda_would_show_is_used(visible: str | None, uuids: list[str]) -> None:
    found = gpus_of(Card(A), Card(B), Card(C), visible=visible)
    assert [gpu.uuid for gpu in found.devices()] == uuids
    assert uuids or "CUDA_VISIBLE_DEVICES" in found.why_none


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA GPU on this machine"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "no NVIDIA GPU on this machine"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "the NVIDIA driver does not work: RM has detected"),
    ],
)
def test_without_a_driver_there_are_no_gpus_and_the_reason_is_told(fault: int, words: str) -> None:
    found = gpus_of(Card(A), fault=fault)
    assert found.devices() == []
    assert found.why_none.startswith(words)
    assert found.held_by([ME]) is None


def test_a_driver_that_comes_later_is_found() -> None:
    library = NvmlLibrary([Card(A)], fault=pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    found = Gpus(library, {})
    assert found.devices() == []
    library.fault = None
    assert [gpu.uuid for gpu in found.devices()] == [A]


def test_no_gpu_at_all_is_told() -> None:
    found = gpus_of()
    assert (found.devices(), found.why_none) == ([], gpus.NONE)


def test_a_gpu_that_breaks_is_left_out_and_comes_back() -> None:
    broken = Card(A)
    found = gpus_of(broken, Card(B))
    assert len(found.devices()) == 2
    broken.fault = pynvml.NVML_ERROR_GPU_IS_LOST
    assert [gpu.uuid for gpu in found.devices()] == [B]
    broken.fault = None
    assert len(found.devices()) == 2


def test_a_gpu_that_is_broken_from_the_start_moves_no_index() -> None:
    found = gpus_of(Card(A, fault=pynvml.NVML_ERROR_GPU_IS_LOST), Card(B), Card(C), visible="1")
    assert [gpu.uuid for gpu in found.devices()] == [B]


def test_when_no_gpu_answers_that_is_the_reason() -> None:
    card = Card(A)
    found = gpus_of(card)
    found.devices()
    card.fault = pynvml.NVML_ERROR_GPU_IS_LOST
    assert (found.devices(), found.why_none) == ([], "no GPU of this machine answers its driver")


def test_a_divided_gpu_is_left_out() -> None:
    found = gpus_of(Card(A, mig=True), Card(B, mig=False))
    assert [gpu.uuid for gpu in found.devices()] == [B]
    divided = gpus_of(Card(A, mig=True))
    assert divided.devices() == []
    assert "MIG" in divided.why_none


def test_what_processes_hold_is_added_up_by_gpu() -> None:
    parent = os.getppid()
    found = gpus_of(
        Card(A, processes=[(ME, 2 * GIB), (parent, 5 * GIB), (1, GIB)]), Card(B, processes=[(ME, 3 * GIB)]), Card(C)
    )
    assert found.held_by([ME]) == {A: 2 * GIB, B: 3 * GIB}
    assert found.held_by([ME, parent]) == {A: 7 * GIB, B: 3 * GIB}


@pytest.mark.parametrize(
    "processes",
    [[], [(1, GIB)], [(ME, None)], [(ME, GIB), (NOBODY, GIB)]],
    ids=["no process is named", "not ours", "without bytes", "pids of another counting"],
)
def test_who_holds_what_is_not_guessed(processes: list[tuple[int, int | None]]) -> None:
    assert gpus_of(Card(A, processes=processes)).held_by([ME]) is None


def test_an_old_driver_that_names_no_processes_says_nothing_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    library = NvmlLibrary([Card(A, processes=[(ME, GIB)])])

    def mismatch(_: Card) -> None:
        raise pynvml.NVMLLibraryMismatchError("Unversioned function called")

    monkeypatch.setattr(library, "nvmlDeviceGetComputeRunningProcesses", mismatch)
    assert Gpus(library, {}).held_by([ME]) is None


def test_without_a_gpu_main_memory_is_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10 * GIB}))
    limited = main_memory(16 * GIB)
    assert (limited.uuid, limited.total, limited.free) == (f"host:{socket.gethostname()}", 16 * GIB, 10 * GIB)
    assert main_memory(4 * GIB).free == 4 * GIB


def test_unlimited_main_memory_keeps_the_total_of_the_first_look(monkeypatch: pytest.MonkeyPatch) -> None:
    available = 40 * GIB
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": available}))
    gpus._share_at_start.cache_clear()
    try:
        assert (main_memory(None).total, main_memory(None).free) == (30 * GIB, 30 * GIB)
        available = 12 * GIB
        assert (main_memory(None).total, main_memory(None).free) == (30 * GIB, 12 * GIB)
    finally:
        gpus._share_at_start.cache_clear()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is an NVIDIA driver on this machine")
def test_the_real_binding_says_that_this_machine_has_no_gpu() -> None:
    real = Gpus()
    assert (real.devices(), real.why_none) == ([], gpus.NONE)
