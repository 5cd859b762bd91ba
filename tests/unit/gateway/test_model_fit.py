"""Which models fit the GPUs, as quickstart.sh tells it."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from config import ModelEntry, VllmSettings, load_settings
from config.vllm import DEFAULT_UTILIZATION
from gateway.commands.model_fit import GB, OVERHEAD, SHAPES, examples, gpu_memory, judge, need, report

ROOT = Path(__file__).parents[3]


def entry(model: str = "Qwen/Qwen3-8B", **keys: Any) -> VllmSettings:
    return VllmSettings.model_validate({"task": "chat", "engine": "vllm", "model": model, **keys})


def bytes_of(model: str, **keys: Any) -> int:
    found = need("m", entry(model, **keys))
    assert found is not None
    assert found.estimated
    return found.bytes


def test_the_gpus_memory_is_read_from_nvidia_smi_and_what_it_does_not_tell_is_left_out() -> None:
    assert gpu_memory("81559\n 24564 \n[N/A]\n[Insufficient Permissions]\n\n") == [81559 * 2**20, 24564 * 2**20]
    assert gpu_memory("NVIDIA-SMI has failed because it could not communicate with the driver") == []


def test_what_the_configuration_says_goes_before_every_estimate() -> None:
    found = need("m", entry(memory="20GB", tensor_parallel_size=2), on_disk=99 * GB)
    assert found is not None
    assert (found.bytes, found.gpus, found.estimated) == (20 * GB, 2, False)
    assert str(found) == "needs 20.0 GB on each of 2 GPUs"


def test_a_known_model_needs_its_weights_a_full_context_and_what_the_engine_takes_besides() -> None:
    shape = SHAPES["Qwen/Qwen3-8B"]
    assert bytes_of("Qwen/Qwen3-8B") == shape.weights + 40_960 * shape.cache + OVERHEAD
    assert bytes_of("Qwen/Qwen3-8B", max_model_len=1000) == shape.weights + 1000 * shape.cache + OVERHEAD


def test_the_weights_that_are_there_tell_more_than_a_table() -> None:
    found = need("m", entry("Qwen/Qwen3-8B", max_model_len=1), on_disk=5 * GB)
    assert found is not None
    assert found.bytes == 5 * GB + SHAPES["Qwen/Qwen3-8B"].cache + OVERHEAD


def test_several_gpus_share_a_model() -> None:
    alone, shared = bytes_of("Qwen/Qwen3-8B"), bytes_of("Qwen/Qwen3-8B", tensor_parallel_size=2)
    assert shared - OVERHEAD == (alone - OVERHEAD) // 2
    both = need("m", entry(tensor_parallel_size=2, pipeline_parallel_size=2))
    assert both is not None
    assert both.gpus == 4


@pytest.mark.parametrize(
    ("model", "keys", "weights"),
    [
        ("acme/Rocket-7B-Instruct", {}, 14e9),
        ("acme/rocket-1.5b", {}, 3e9),
        ("acme/Tiny-360M", {}, 0.72e9),
        ("acme/Moe-30B-A3B", {}, 60e9),
        ("acme/Rocket-7B", {"dtype": "float32"}, 28e9),
        ("acme/Rocket-7B-FP8", {}, 7.35e9),
        ("acme/Rocket-7B", {"quantization": "fp8"}, 7.35e9),
        ("acme/Rocket-7B-AWQ", {}, 4.2e9),
        ("acme/Rocket-7B-NVFP4", {}, 4.2e9),
        ("Qwen/Qwen3-8B", {"quantization": "fp8", "max_model_len": 1}, 8.4e9),
    ],
)
def test_the_size_of_another_model_is_told_by_its_name(model: str, keys: dict[str, Any], weights: float) -> None:
    more = bytes_of(model, **keys) - OVERHEAD - weights
    assert 0 < more <= 0.15 * weights + 1


@pytest.mark.parametrize("model", ["acme/rocket", "acme/Mixed-8x7B", "acme/v3.1", "/models/b7"])
def test_a_model_of_unknown_size_is_left_out_with_what_to_do(model: str) -> None:
    verdict = judge("m", entry(model), [80 * GB])
    assert (verdict.need, verdict.fits) == (None, False)
    assert str(verdict) == "m: left out, as neither its name nor `memory` in its entry tells its size"


def test_an_estimate_has_to_fit_into_the_share_that_vllm_takes() -> None:
    needed = bytes_of("Qwen/Qwen3-8B")
    exact = int(needed / DEFAULT_UTILIZATION) + 1
    assert judge("m", entry(), [exact]).fits
    assert not judge("m", entry(), [exact - 2]).fits
    half = judge("m", entry(gpu_memory_utilization=0.5), [exact])
    assert not half.fits
    assert str(half) == "m: needs about 22.9 GB on a GPU: does not fit into the 12.4 GB that vLLM takes of 24.9 GB"


def test_what_the_configuration_says_may_take_all_of_a_gpu() -> None:
    assert judge("m", entry(memory="24GB"), [24 * GB]).fits
    assert not judge("m", entry(memory="24GB"), [24 * GB - 1]).fits


def test_a_model_for_more_gpus_than_there_are_does_not_fit() -> None:
    verdict = judge("m", entry(tensor_parallel_size=2), [80 * GB])
    assert not verdict.fits
    assert verdict.why == "does not fit, as this machine has 1"


def test_flags_of_the_users_own_count_as_they_do_for_the_worker() -> None:
    assert judge("m", entry(args=["-tp", "2"]), [80 * GB]).why == "does not fit, as this machine has 1"
    needed = bytes_of("Qwen/Qwen3-8B")
    assert judge("m", entry(), [needed * 2]).fits
    assert not judge("m", entry(args=["--gpu-memory-utilization=0.4"]), [needed * 2]).fits


@pytest.mark.parametrize("args", [["--distributed-executor-backend", "ray"], ["--distributed-executor-backend=ray"]])
def test_a_model_that_ray_spreads_is_not_judged_by_this_machine(args: list[str]) -> None:
    assert judge("m", entry(args=args), [80 * GB]).why == "left out, as Ray spreads it over several machines"


def test_of_unlike_gpus_the_largest_are_counted() -> None:
    two = entry(memory="30GB", tensor_parallel_size=2)
    assert judge("m", two, [8 * GB, 40 * GB, 32 * GB]).fits
    assert not judge("m", two, [8 * GB, 40 * GB, 24 * GB]).fits


def test_a_task_that_workers_do_not_run_on_vllm_is_left_out() -> None:
    assert judge("m", entry("deepseek-ai/DeepSeek-OCR", task="ocr"), [80 * GB]).fits
    verdict = judge("m", entry("Qwen/Qwen3-Embedding-8B", task="embedding"), [80 * GB])
    assert not verdict.fits
    assert verdict.why == "left out, as this release runs no embedding models on vLLM yet"


def test_examples_are_read_from_the_comments_among_the_models_alone() -> None:
    text = """
# before: { task: chat, engine: vllm, model: a/1B }
models:
  real: { task: chat, engine: vllm, model: a/1B }
  # Prose of any kind: it may have a colon, or { a brace.
  # one: { task: chat, engine: vllm, model: a/2B }
  # two:
  #   task: chat
  #   engine: vllm
  #   model: a/3B
  #   memory: 9GB   # on each GPU
  # other: { task: chat, engine: openai, base_url: "http://h/v1" }
  # broken: { task: chat
  # wrong: { task: chat, engine: vllm, modell: a/4B }
    # inner: { task: chat, engine: vllm, model: a/5B }
  # last:
  #   engine: vllm
  #   task: chat
defaults:
  # after: { task: chat, engine: vllm, model: a/6B }
"""
    found = examples(text)
    assert {name: example.model for name, example in found.items()} == {"one": "a/2B", "two": "a/3B", "last": None}
    assert found["two"].memory == 9 * GB


def test_the_shipped_examples_are_all_found_and_of_a_known_size() -> None:
    found = examples((ROOT / "config.yaml").read_text())
    assert set(found) == {"qwen3-4b", "gpt-oss-20b", "qwen3-14b", "qwen3-32b", "llama-70b", "qwen"}
    for name, example in found.items():
        assert need(name, example) is not None, name
        assert example.model in SHAPES, name
        checked = TypeAdapter(ModelEntry).validate_python(example.model_dump())
        assert isinstance(checked, VllmSettings)


def test_the_report_says_what_to_type_next(tmp_path: Path) -> None:
    weights = tmp_path / "state" / "models" / "there"
    weights.mkdir(parents=True)
    (weights / "model.safetensors").write_bytes(bytes(1000))
    file = tmp_path / "config.yaml"
    file.write_text(
        "models:\n"
        "  there: { task: chat, engine: vllm, model: Qwen/Qwen3-4B, max_model_len: 1000 }\n"
        "  away: { task: chat, engine: vllm, model: Qwen/Qwen3-4B }\n"
        "  large: { task: chat, engine: vllm, model: Qwen/Qwen3-32B }\n"
        "  # away: { task: chat, engine: vllm, model: Qwen/Qwen3-4B }\n"
    )
    settings = load_settings(file, {"ROUNDHOUSE_HOME": str(tmp_path / "state")})
    heading, there, away, large, pull = report(settings, [24 * GB], examples(file.read_text()))
    assert heading == "This machine's GPUs have 24.0 GB. The models of config.yaml for vLLM:"
    assert there.startswith("  there: needs about 2.1 GB on a GPU: fits into")
    assert away.startswith("  away: needs about 15.1 GB on a GPU: fits into")
    assert large.startswith("  large: needs about 73.0 GB on a GPU: does not fit into")
    assert pull == "Get the weights of away: .venv/bin/roundhouse pull away"


def test_where_no_gpu_tells_its_memory_nothing_is_guessed(tmp_path: Path) -> None:
    settings = load_settings(ROOT / "config.yaml", {"ROUNDHOUSE_HOME": str(tmp_path)})
    (line,) = report(settings, [], {})
    assert "cannot be told which models fit" in line
