"""The vLLM engine against a stand-in of vLLM and of NVML: where it cannot run, on which memory, asleep and awake.

That the real one does the same is told by tests/vllm, on the CPU.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from broker.errors import EngineDied, EngineError, EngineNotRunning, EngineUnavailable
from config import VllmSettings
from ocr.errors import PageLooped
from ocr.protocol import Page
from tests.unit.worker.nvml_library import GIB, Card, NvmlLibrary
from worker.engine_host import Bounded
from worker.engine_process import socket_in
from worker.engines.base import Delta, Loadable, Reader, Request, Result
from worker.engines.vllm import VllmEngine
from worker.engines.vllm_control import Patience
from worker.engines.vllm_vision import white_png
from worker.gpus import Gpus
from worker.ocr_models import PLUGIN

# An interpreter without any packages.
BARE = '#!/bin/sh\nexec {python} -S -I "$@"\n'
# One that seems to have vLLM, of the build ``{build}``.
STAND_IN = """#!/bin/sh
[ "$1" = -c ] && exec echo {build}
echo "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES $* VLLM_RPC_BASE_PATH=$VLLM_RPC_BASE_PATH" > {told}
echo "PYTHONPATH=$PYTHONPATH MODE=$ROUNDHOUSE_OCR_MODE" >> {told}
while [ "$1" != --uds ]; do shift; done
exec {python} {program} "$2" {habits}
"""
A, B = "GPU-aaaa", "GPU-bbbb"
HELD = 60 * GIB
CHAT = Request("job", 1, {"messages": [{"role": "user", "content": "hi"}]})
# Long enough for a busy machine.
PATIENCE = Patience(move=20.0, canary=20.0, settle=0.3)


class Site:
    """A machine with the stand-ins: ``cards`` are its GPUs."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cards = [Card(A), Card(B)]
        self.nvml = NvmlLibrary(self.cards, engines=home)
        self.engines: list[VllmEngine] = []
        (home / "weights").mkdir()

    def engine(self, *habits: str, build: str = "0.32.0", patience: Patience = PATIENCE, **options: Any) -> VllmEngine:
        program = Path(__file__).with_name("engine_program.py")
        python = self.home / f"python{len(self.engines)}"
        told = self.home / "told"
        words = {"python": sys.executable, "program": program, "habits": " ".join(habits), "told": told}
        python.write_text(STAND_IN.format(build=build, **words))
        python.chmod(0o755)
        env = {"ENGINE_MEMORY": str(self.home / f"{len(self.engines)}.gpu"), "ENGINE_HOLDS": str(HELD)}
        if build.endswith("+cpu"):
            env = {}
        entry = {"task": "chat", "engine": "vllm", "model": str(self.home / "weights"), "python": str(python)}
        settings = VllmSettings.model_validate(entry | {"env": env} | options)
        self.engines.append(VllmEngine("tiny", settings, self.home, Gpus(self.nvml, {}), patience))
        return self.engines[-1]

    def told(self) -> str:
        """The environment and command line of the last start."""
        return (self.home / "told").read_text()

    def asked(self) -> list[str]:
        """What the engine was asked for."""
        lines = self.engines[-1].log.read_text().splitlines()
        return [line.removeprefix("asked for ") for line in lines if line.startswith("asked for ")]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    yield site
    for engine in site.engines:
        await engine.stop(grace=0.0)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    path = tmp_path / "page.png"
    path.write_bytes(white_png(100, 100))
    return Page(1, path, 100, 100, 144)


def engine(home: Path, **options: Any) -> VllmEngine:
    """On a machine without a GPU."""
    settings = VllmSettings.model_validate({"task": "chat", "engine": "vllm"} | options)
    return VllmEngine("tiny", settings, home, Gpus(NvmlLibrary([]), {}))


async def refusal(engine: VllmEngine) -> EngineUnavailable:
    """Says the same before a start as at it."""
    with pytest.raises(EngineUnavailable) as failure:
        await engine.start()
    assert await engine.unable() == failure.value.message
    await engine.stop()
    return failure.value


async def answer(engine: VllmEngine, request: Request = CHAT) -> str:
    text = ""
    async with aclosing(engine.run(request)) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, Result):
                return text
            assert isinstance(chunk, Delta)
            text += chunk.text
    raise AssertionError("no result")


async def error_of(call: Any, code: str) -> str:
    with pytest.raises(EngineError) as failure:
        await call
    assert failure.value.code == code
    return failure.value.message


def reader(site: Site, *habits: str, architecture: str = "DeepseekOCRForCausalLM", **options: Any) -> VllmEngine:
    """A DeepSeek-OCR."""
    (site.home / "weights" / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    return site.engine(*habits, task="ocr", **options)


# Where it cannot run.


async def test_weights_that_are_not_there_are_named_with_the_command_that_gets_them(tmp_path: Path) -> None:
    error = await refusal(engine(tmp_path, python=sys.executable, model="somebody/tiny"))
    assert error.code == "weights_missing"
    assert "roundhouse pull tiny" in error.message


async def test_documents_are_not_taken_where_nothing_draws_their_pages(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site.home / "bin").mkdir()
    for name in ("sh", "echo"):
        (site.home / "bin" / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(site.home / "bin"))
    error = await refusal(reader(site))
    assert (error.code, "poppler-utils" in error.message) == ("tool_missing", True)
    assert await site.engine().unable() is None


async def test_weights_may_come_later(site: Site) -> None:
    late = site.engine(model=str(site.home / "late"))
    assert "weights missing" in (await late.unable() or "")
    (site.home / "late").mkdir()
    assert await late.unable() is None


async def test_files_that_cannot_be_looked_at_are_no_reason_to_give_up(site: Site) -> None:
    """As those of a share that is away."""
    assert "File name too long" in (await site.engine(model=f"/{'a' * 300}").unable() or "")


async def test_an_interpreter_without_vllm_is_named(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(BARE.format(python=sys.executable))
    bare.chmod(0o755)
    error = await refusal(engine(tmp_path, python=str(bare), model=str(tmp_path)))
    assert (error.code, str(bare) in error.message) == ("vllm_missing", True)


async def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    error = await refusal(engine(tmp_path, python="/nonexistent/python", model=str(tmp_path)))
    assert (error.code, "/nonexistent/python" in error.message) == ("vllm_missing", True)


async def test_without_a_gpu_a_build_for_gpus_is_not_started(tmp_path: Path) -> None:
    assert (await refusal(engine(tmp_path, model=str(tmp_path)))).code == "no_gpu"


async def test_a_gpu_build_of_another_interpreter_needs_a_gpu_too(site: Site) -> None:
    site.cards.clear()
    error = await refusal(site.engine())
    assert (error.code, error.message) == ("no_gpu", "no NVIDIA GPU on this machine")


async def test_a_model_over_more_gpus_than_there_are_is_refused(site: Site) -> None:
    large = site.engine(tensor_parallel_size=4)
    assert large.gpu_count == 4
    error = await refusal(large)
    assert (error.code, error.message) == ("too_few_gpus", "it needs 4 GPUs, and this machine has 2")


async def test_an_engine_that_does_not_run_is_asked_nothing(tmp_path: Path) -> None:
    stopped = engine(tmp_path)
    assert not await stopped.healthy()
    assert stopped.address is None
    assert await stopped.footprint() is None
    with pytest.raises(EngineUnavailable) as failure:
        await anext(stopped.run(CHAT))
    assert failure.value.code == "engine_not_running"
    for call in (stopped.sleep(), stopped.wake()):
        await error_of(call, "engine_not_running")


# On which memory.


async def test_it_starts_on_the_gpus_that_it_is_given_and_nothing_else(site: Site) -> None:
    loaded = site.engine()
    assert isinstance(loaded, Loadable)
    loaded.gpus = [B]
    await loaded.start()
    assert site.told().startswith(f"CUDA_VISIBLE_DEVICES={B} -m vllm.entrypoints.openai.api_server ")
    assert "--enable-sleep-mode" in site.told()
    assert loaded.address is not None
    assert loaded.address.endswith("/socket")
    assert f"VLLM_RPC_BASE_PATH={Path(loaded.address).parent}" in site.told()
    assert await loaded.healthy()
    assert await answer(loaded) == "answer"


async def test_a_request_for_an_adapter_goes_to_that_adapter(site: Site) -> None:
    loaded = site.engine(lora={"law": "/lora/law"})
    await loaded.start()
    for adapter in ("law", "unknown", ["law"]):
        await answer(loaded, replace(CHAT, payload={**CHAT.payload, "adapter": adapter}))
    assert site.asked() == [f"/v1/chat/completions of {model}" for model in ("law", "tiny", "tiny")]


async def test_it_is_started_for_as_many_requests_at_once_as_operators_want_by_then(site: Site) -> None:
    loaded = site.engine(max_concurrent=7)
    assert isinstance(loaded, Bounded)
    loaded.max_concurrent = 30
    await loaded.start()
    assert "--max-num-seqs 30 " in site.told()


async def test_a_gpu_that_is_gone_is_named(site: Site) -> None:
    loaded = site.engine()
    loaded.gpus = ["GPU-gone"]
    assert "GPU-gone" in await error_of(loaded.start(), "no_gpu")


async def test_what_it_needs_is_configured_or_vllms_share(site: Site) -> None:
    total = 80 * GIB
    assert site.engine(memory="20GB").need(total) == 20 * GIB
    assert site.engine(gpu_memory_utilization=0.5).need(total) == 40 * GIB
    assert site.engine().need(100) == 92
    assert site.engine().can_sleep
    assert not site.engine(sleep=False).can_sleep
    on_cpu = site.engine(build="0.32.0+cpu")
    assert await on_cpu.unable() is None
    assert on_cpu.need(total) is None
    assert (on_cpu.gpu_count, on_cpu.can_sleep) == (1, False)


async def test_where_others_hold_the_memory_it_is_not_started(site: Site) -> None:
    site.cards[1].others = 30 * GIB
    loaded = site.engine(gpu_memory_utilization=0.75)
    loaded.gpus = [B]
    message = await error_of(loaded.start(), "gpu_memory_short")
    assert message == (
        "tiny needs 60.0 GiB on GPU GPU-bbbb, and 50.0 GiB of its 80.0 GiB are free: "
        "other engines or programs hold the rest."
    )
    assert not (site.home / "told").exists(), "it was not even tried"
    assert await loaded.unable() is None, "it can run when they have gone"
    loaded.gpus = [A]
    await loaded.start()


async def test_memory_that_was_just_let_go_of_is_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.cards[0].others = 30 * GIB
    loaded = site.engine(patience=replace(PATIENCE, settle=20.0))
    tell, looks = site.nvml.nvmlDeviceGetMemoryInfo, []

    def slowly(card: Card) -> SimpleNamespace:
        looks.append(card)
        if len(looks) > 20:
            card.others = 0
        return tell(card)

    monkeypatch.setattr(site.nvml, "nvmlDeviceGetMemoryInfo", slowly)
    await loaded.start()
    assert len(looks) > 20


@pytest.mark.parametrize("names_processes", [True, False])
async def test_what_it_holds_is_read_from_the_driver_however_much_that_tells(site: Site, names_processes: bool) -> None:
    site.nvml.names_processes = names_processes
    site.cards[0].others = 5 * GIB
    loaded = site.engine(memory="60GB")
    await loaded.start()
    found = await loaded.footprint()
    assert found is not None
    assert found.device == HELD
    assert 2**20 < found.host < GIB


async def test_without_a_gpu_its_device_is_main_memory(site: Site) -> None:
    site.cards.clear()
    loaded = site.engine(build="0.32.0+cpu")
    loaded.gpus = ["host:here"]
    await loaded.start()
    found = await loaded.footprint()
    assert found is not None
    assert (2**20 < found.device < GIB, found.host) == (True, 0)
    assert site.told().startswith("CUDA_VISIBLE_DEVICES= -m")
    assert "--enable-sleep-mode" not in site.told()


async def test_with_ray_it_counts_for_no_more_gpus_than_are_here_and_chooses_none(site: Site) -> None:
    ray = ["--distributed-executor-backend", "ray"]
    loaded = site.engine(args=ray, tensor_parallel_size=8, pipeline_parallel_size=2)
    assert loaded.gpu_count == 2
    assert await loaded.unable() is None
    site.cards[0].others = 79 * GIB
    await loaded.start()
    assert site.told().startswith("CUDA_VISIBLE_DEVICES= -m")


# Asleep and awake.


@pytest.mark.parametrize("names_processes", [True, False])
async def test_asleep_it_holds_little_and_is_sent_nothing_and_woken_it_answers(
    site: Site, names_processes: bool
) -> None:
    site.nvml.names_processes = names_processes
    loaded = site.engine()
    await loaded.start()
    assert loaded.can_sleep
    await loaded.sleep()
    found = await loaded.footprint()
    assert found is not None
    assert found.device == HELD // 10
    assert await loaded.healthy()
    with pytest.raises(EngineNotRunning, match="sleeps"):
        await asyncio.wait_for(answer(loaded), 5)
    assert site.asked() == ["/sleep?level=1"]
    await loaded.wake()
    assert site.asked()[1:] == ["/wake_up", "/v1/completions of tiny"]
    found = await loaded.footprint()
    assert found is not None
    assert found.device == HELD
    assert await answer(loaded) == "answer"


async def test_told_twice_it_sleeps_and_wakes_once(site: Site) -> None:
    loaded = site.engine()
    await loaded.start()
    await loaded.wake()
    await loaded.sleep()
    await loaded.sleep()
    await loaded.wake()
    assert site.asked() == ["/sleep?level=1", "/wake_up", "/v1/completions of tiny"]


async def test_while_a_request_runs_it_does_not_sleep(site: Site) -> None:
    loaded = site.engine("talks")
    await loaded.start()
    async with aclosing(loaded.run(CHAT)) as chunks:
        await anext(chunks)
        assert await error_of(loaded.sleep(), "engine_busy") == "Requests run on the vLLM of tiny (1)."
        await anext(chunks)
    await loaded.sleep()


@pytest.mark.parametrize("names_processes", [True, False])
async def test_a_sleep_that_frees_nothing_is_an_error_and_is_not_tried_again(site: Site, names_processes: bool) -> None:
    site.nvml.names_processes = names_processes
    loaded = site.engine("greedy")
    await loaded.start()
    message = await error_of(loaded.sleep(), "sleep_freed_nothing")
    assert "of the 60.0 GiB that it held on its GPUs it freed only 0.0 GiB" in message
    assert not loaded.can_sleep
    with pytest.raises(EngineNotRunning):
        await answer(loaded)
    await loaded.stop()
    await loaded.start()
    assert not loaded.can_sleep
    assert await answer(loaded) == "answer", "a new start begins awake"


async def test_what_others_take_meanwhile_is_told_apart_from_a_sleep_that_frees_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, tell = site.engine(), site.nvml.nvmlDeviceGetMemoryInfo
    await loaded.start()

    def taken_at_once(card: Card) -> SimpleNamespace:
        card.others = card.total - HELD - tell(card).used + card.others if card is site.cards[0] else 0
        return tell(card)

    monkeypatch.setattr(site.nvml, "nvmlDeviceGetMemoryInfo", taken_at_once)
    free = Gpus(site.nvml, {}).devices()[0].free
    await loaded.sleep()
    assert Gpus(site.nvml, {}).devices()[0].free == free
    assert loaded.can_sleep


@pytest.mark.parametrize("habit", ["awake", "dull"])
async def test_one_that_does_not_sleep_says_so(site: Site, habit: str) -> None:
    loaded = site.engine(habit)
    await loaded.start()
    await error_of(loaded.sleep(), "sleep_failed")
    assert not loaded.can_sleep


@pytest.mark.parametrize(
    ("habit", "words"), [("dead", "did not answer in 3 s"), ("dreams", "was woken and does not answer")]
)
async def test_a_wake_after_which_it_does_not_answer_has_failed(site: Site, habit: str, words: str) -> None:
    loaded = site.engine(habit, patience=Patience(move=3.0))
    await loaded.start()
    await loaded.sleep()
    assert words in await error_of(loaded.wake(), "wake_failed")
    with pytest.raises(EngineNotRunning):
        await answer(loaded)


async def test_one_that_makes_vectors_is_woken_by_one(site: Site) -> None:
    loaded = site.engine("vectors", task="embedding")
    await loaded.start()
    await loaded.sleep()
    await loaded.wake()
    assert site.asked()[-1] == "/v1/embeddings of tiny"


async def test_it_is_not_woken_into_memory_that_another_holds_now(site: Site) -> None:
    loaded = site.engine()
    await loaded.start()
    await loaded.sleep()
    site.cards[0].others = 30 * GIB
    assert "tiny needs 54.0 GiB on GPU GPU-aaaa, and 44.0 GiB" in await error_of(loaded.wake(), "gpu_memory_short")
    site.cards[0].others = 0
    await loaded.wake()
    assert await answer(loaded) == "answer"


async def test_on_the_cpu_an_operator_may_have_it_sleep_though_that_frees_nothing(site: Site) -> None:
    site.cards.clear()
    loaded = site.engine(build="0.32.0+cpu")
    await loaded.start()
    assert not loaded.can_sleep
    await loaded.sleep()
    with pytest.raises(EngineNotRunning, match="sleeps"):
        await answer(loaded)
    await loaded.wake()
    assert await answer(loaded) == "answer"


async def test_one_that_is_killed_asleep_says_that_it_does_not_run(site: Site) -> None:
    loaded = site.engine()
    await loaded.start()
    await loaded.sleep()
    (told,) = site.home.glob("*.gpu")
    leader = json.loads(told.read_text())["pid"]
    death = asyncio.create_task(loaded.until_death())
    os.kill(leader, signal.SIGKILL)
    assert "SIGKILL" in await asyncio.wait_for(death, 10)
    await error_of(loaded.wake(), "engine_not_running")
    assert await loaded.footprint() is None


# With pages.


async def test_a_deepseek_ocr_is_started_with_its_guard_in_its_mode_and_examined(site: Site) -> None:
    loaded = reader(site, args=["--mm-processor-cache-gb", 4])
    assert isinstance(loaded, Reader)
    assert loaded.resolution is None
    await loaded.start()
    flags = "--no-enable-prefix-caching --mm-processor-cache-gb 0 --mm-processor-cache-gb 4 "
    assert f"deepseek_ocr:NGramPerReqLogitsProcessor {flags}" in site.told(), "the user's own come last"
    assert f"PYTHONPATH={PLUGIN}" in site.told()
    assert "MODE=gundam" in site.told()
    assert site.asked()[-1] == "/tokenize of tiny"
    loaded.resolution = "tiny"
    await loaded.start()
    assert "MODE=tiny" in site.told()


async def test_another_vision_model_is_started_as_any_model(site: Site) -> None:
    loaded = reader(site, architecture="Qwen3VLForConditionalGeneration")
    await loaded.start()
    assert "--logits-processors" not in site.told()
    assert "MODE=\n" in site.told()
    assert site.asked() == []
    await loaded.recogniser(CHAT)
    searchable = Request("job", 1, {"options": {"searchable_pdf": True}})
    assert "makes no searchable PDFs; ask" in await error_of(loaded.recogniser(searchable), "task_unsupported")


async def test_a_chat_model_is_no_reader_whatever_its_architecture(site: Site) -> None:
    loaded = reader(site)
    await site.engine(task="chat").start()
    assert "--logits-processors" not in site.told()
    assert loaded.address is None


async def test_an_engine_without_its_guard_is_stopped_and_named(site: Site) -> None:
    loaded = reader(site, "loose")
    assert "not active" in await error_of(loaded.start(), "ngram_guard_inactive")
    assert loaded.address is None
    assert await error_of(loaded.recogniser(CHAT), "engine_not_running")


async def test_an_engine_that_did_not_take_the_mode_is_stopped_and_named(site: Site) -> None:
    loaded = reader(site, env={"ROUNDHOUSE_OCR_MODE": "base"})
    loaded.resolution = "small"
    await loaded.start()
    await loaded.stop()
    (site.home / "weights" / "config.json").write_text('{"architectures": ["DeepseekOCR2ForCausalLM"]}')
    loaded.resolution = "gundam"
    assert "gundam is not set" in await error_of(loaded.start(), "resolution_not_set")


async def test_a_mode_that_the_model_does_not_have_is_refused_before_a_start(site: Site) -> None:
    loaded = reader(site, architecture="DeepseekOCR2ForCausalLM")
    loaded.resolution = "tiny"
    assert await error_of(loaded.start(), "resolution_unsupported") == (
        "tiny reads pages in the modes base and gundam alone, not in tiny"
    )
    assert not (site.home / "told").exists()
    assert await loaded.unable() is None


async def test_pages_are_requests_that_keep_it_from_sleep(site: Site, page: Page) -> None:
    loaded = reader(site, "talks", max_concurrent=3)
    loaded.max_concurrent = 5
    await loaded.start()
    assert loaded.turns.places == 5
    recogniser = await loaded.recogniser(CHAT)
    reading = asyncio.create_task(recogniser.recognise(page, 1))
    while "/v1/chat/completions of tiny" not in site.asked()[3:]:
        await asyncio.wait({reading}, timeout=0.02)
    assert "(1)" in await error_of(loaded.sleep(), "engine_busy")
    reading.cancel()
    await asyncio.wait({reading})
    await loaded.sleep()
    with pytest.raises(EngineNotRunning, match="sleeps"):
        await recogniser.recognise(page, 1)


async def test_a_page_that_goes_on_for_ever_is_stopped(site: Site, page: Page) -> None:
    loaded = reader(site, "talks")
    await loaded.start()
    # "word " every 20 ms.
    with pytest.raises(PageLooped) as failure:
        await (await loaded.recogniser(CHAT)).recognise(page, 1)
    assert failure.value.partial is not None
    assert failure.value.partial.text == "word"
    await loaded.sleep()


async def test_the_engines_death_ends_its_pages_as_its_chats(site: Site, page: Page) -> None:
    loaded = reader(site, "talks")
    await loaded.start()
    reading = asyncio.create_task((await loaded.recogniser(CHAT)).recognise(page, 1))
    while "/v1/chat/completions of tiny" not in site.asked()[3:]:
        await asyncio.wait({reading}, timeout=0.02)
    (told,) = site.home.glob("*.gpu")
    os.kill(json.loads(told.read_text())["pid"], signal.SIGKILL)
    with pytest.raises(EngineDied):
        await reading


async def test_a_request_that_an_engine_has_not_heard_of_any_more_is_not_blamed_for_its_death(site: Site) -> None:
    loaded = site.engine()
    await loaded.start()
    (directory,) = (site.home / "run" / "engines").iterdir()
    socket_in(directory).unlink()
    asked = asyncio.create_task(answer(loaded))
    await asyncio.wait({asked}, timeout=0.05)
    (told,) = site.home.glob("*.gpu")
    os.kill(json.loads(told.read_text())["pid"], signal.SIGKILL)
    with pytest.raises(EngineNotRunning):
        await asked
