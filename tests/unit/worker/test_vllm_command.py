from pathlib import Path
from typing import Any

from config import VllmSettings
from config.vllm import gpu_count, on_ray, utilization
from worker.ocr_models import PLUGIN, Family
from worker.vllm_command import command, environment, weights

GIB = 2**30
MODEL, SOCKET = Path("/models/tiny"), Path("/run/engine/socket")


def settings(**options: Any) -> VllmSettings:
    return VllmSettings.model_validate({"task": "chat", "engine": "vllm"} | options)


def words(*, total: int | None = None, family: Family | None = None, **options: Any) -> list[str]:
    return command(settings(**options), "tiny", MODEL, SOCKET, "/venv/bin/python", total=total, family=family)


def value(line: list[str], flag: str) -> str:
    assert line.count(flag) == 1
    return line[line.index(flag) + 1]


def test_a_plain_entry_serves_its_model_under_its_name_on_the_socket() -> None:
    line = words(max_concurrent=7, timeout=12.5)
    assert line[:3] == ["/venv/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert value(line, "--model") == "/models/tiny"
    assert value(line, "--served-model-name") == "tiny"
    assert value(line, "--uds") == "/run/engine/socket"
    assert value(line, "--max-num-seqs") == "7"
    assert value(line, "--shutdown-timeout") == "13"


def test_what_is_unset_is_left_to_vllm() -> None:
    line = words()
    for flag in ("--gpu-memory-utilization", "--max-model-len", "--dtype", "--quantization", "--enable-lora", "--port"):
        assert flag not in line


def test_each_typed_key_becomes_its_flag() -> None:
    line = words(
        gpu_memory_utilization=0.5,
        max_model_len=4096,
        tensor_parallel_size=2,
        pipeline_parallel_size=3,
        dtype="bfloat16",
        quantization="fp8",
    )
    assert value(line, "--gpu-memory-utilization") == "0.5"
    assert value(line, "--max-model-len") == "4096"
    assert value(line, "--tensor-parallel-size") == "2"
    assert value(line, "--pipeline-parallel-size") == "3"
    assert value(line, "--dtype") == "bfloat16"
    assert value(line, "--quantization") == "fp8"


def test_a_model_for_vectors_is_run_as_one() -> None:
    assert value(words(task="embedding"), "--runner") == "pooling"
    assert "--runner" not in words()


def test_lora_adapters_are_named_with_their_paths() -> None:
    line = words(lora={"law": "/lora/law", "poems": "/lora/poems"})
    begin = line.index("--lora-modules")
    assert line[begin - 1] == "--enable-lora"
    assert line[begin + 1 : begin + 3] == ["law=/lora/law", "poems=/lora/poems"]


def test_the_users_own_arguments_come_last_so_that_they_win() -> None:
    assert words(args=["--max-num-seqs", 99], dtype="half")[-2:] == ["--max-num-seqs", "99"]


def test_what_reads_pages_gets_its_guard_and_no_caches_before_the_users_own_arguments() -> None:
    line = words(family=Family.DEEPSEEK_OCR_2, args=["--seed", 1])
    assert value(line, "--logits-processors") == "vllm.model_executor.models.deepseek_ocr:NGramPerReqLogitsProcessor"
    assert value(line, "--mm-processor-cache-gb") == "0"
    assert line[-2:] == ["--seed", "1"]
    assert "--no-enable-prefix-caching" in line
    assert "--no-enable-prefix-caching" not in words(task="ocr")


def test_the_mode_and_the_plugin_that_sets_it_come_by_the_environment_beside_the_users_own() -> None:
    found = environment(settings(env={"PYTHONPATH": "/mine"}), {"PYTHONPATH": "/theirs"}, mode="base")
    assert (found["ROUNDHOUSE_OCR_MODE"], found["PYTHONPATH"]) == ("base", f"{PLUGIN}:/mine")
    assert environment(settings(), {"PYTHONPATH": "/theirs"}, mode="base")["PYTHONPATH"] == f"{PLUGIN}:/theirs"
    plain = environment(settings(), {"ROUNDHOUSE_OCR_MODE": "base"})
    assert not {"ROUNDHOUSE_OCR_MODE", "PYTHONPATH"} & plain.keys()


def test_on_a_gpu_it_may_sleep_unless_the_entry_forbids_it() -> None:
    assert "--enable-sleep-mode" in words(total=80 * GIB)
    assert "--enable-sleep-mode" not in words(total=80 * GIB, sleep=False)
    assert "--enable-sleep-mode" not in words(), "on the CPU vLLM refuses the flag"


def test_memory_in_bytes_becomes_a_share_of_the_gpu_that_is_no_larger() -> None:
    assert value(words(total=81559 * 2**20, memory="20GB"), "--gpu-memory-utilization") == "0.2511"
    assert 20 * GIB >= 0.2511 * 81559 * 2**20
    assert value(words(total=8 * GIB, memory="20GB"), "--gpu-memory-utilization") == "1.0000"
    assert "--gpu-memory-utilization" not in words(memory="20GB"), "on the CPU it is a share of something else"
    assert value(words(total=80 * GIB, memory="20GB", gpu_memory_utilization=0.3), "--gpu-memory-utilization") == "0.3"


def test_the_share_is_the_users_the_entrys_or_vllms_default() -> None:
    assert utilization(settings()) == 0.92
    assert utilization(settings(gpu_memory_utilization=0.5)) == 0.5
    assert utilization(settings(gpu_memory_utilization=0.5, args=["--gpu-memory-utilization", "0.7"])) == 0.7
    assert utilization(settings(args=["--gpu_memory_utilization=0.6"])) == 0.6
    assert utilization(settings(args=["--gpu-memory-utilization"])) == 0.92, "vLLM will name the bad flag"
    assert utilization(settings(args=["--gpu-memory-utilization", "much"])) == 0.92


def test_gpus_are_those_of_all_parts_of_the_model() -> None:
    assert gpu_count(settings()) == 1
    assert gpu_count(settings(tensor_parallel_size=4, pipeline_parallel_size=2)) == 8
    assert gpu_count(settings(args=["-tp", 2, "--pipeline-parallel-size=3"])) == 6


def test_ray_hands_out_the_gpus_itself() -> None:
    ray = settings(args=["--distributed-executor-backend", "ray"])
    assert on_ray(ray)
    assert on_ray(settings(args=["--distributed_executor_backend=ray"]))
    assert not on_ray(settings(args=["--distributed-executor-backend", "mp"]))
    assert "CUDA_VISIBLE_DEVICES" not in environment(ray, {}, ["GPU-abc"])


def test_the_engine_learns_none_of_roundhouses_secrets() -> None:
    given = {"PATH": "/bin", "JWT_SECRET": "s", "ADMIN_PASSWORD": "p", "MONGODB_URI": "u", "ROUNDHOUSE__A__B": "x"}
    found = environment(settings(), given)
    assert found["PATH"] == "/bin"
    assert not set(found) & (set(given) - {"PATH"})


def test_gpus_are_made_visible_only_where_they_are_given() -> None:
    assert "CUDA_VISIBLE_DEVICES" not in environment(settings(), {})
    assert environment(settings(), {}, ["0", "GPU-abc"])["CUDA_VISIBLE_DEVICES"] == "0,GPU-abc"


def test_nothing_is_told_or_asked_outside_unless_the_user_says_so() -> None:
    found = environment(settings(), {})
    assert (found["HF_HUB_OFFLINE"], found["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert environment(settings(env={"HF_HUB_OFFLINE": 0}), {})["HF_HUB_OFFLINE"] == "0"


def test_weights_are_the_users_directory_or_what_was_pulled(tmp_path: Path) -> None:
    own, pulled = tmp_path / "own", tmp_path / "home" / "models" / "tiny"
    assert weights(settings(model=str(own)), "tiny", tmp_path / "home") is None
    pulled.mkdir(parents=True)
    assert weights(settings(model=str(own)), "tiny", tmp_path / "home") == pulled
    own.mkdir()
    assert weights(settings(model=str(own)), "tiny", tmp_path / "home") == own
