"""The phrases are those of vLLM 0.32, as it wrote them in such starts."""

import pytest

from worker.engine_log import Phase, last_errors, phase_of

ROOT_CAUSE = (
    "(APIServer pid=9) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
)


@pytest.mark.parametrize(
    ("line", "phase"),
    [
        (
            "(APIServer pid=1) INFO 11-21 07:51:14 [model.py:733] Resolved architecture: LlamaForCausalLM",
            Phase.STARTING,
        ),
        (
            "(APIServer pid=1) WARNING 11-21 07:51:14 [vllm.py:1703] Enforce eager set, disabling torch.compile",
            "starting",
        ),
        ("(Worker pid=2) INFO 11-21 07:51:28 [cpu_model_runner.py:68] Starting to load model /m...", Phase.LOADING),
        ("Loading safetensors checkpoint shards:   0% Completed | 0/1 [00:00<?, ?it/s]", Phase.LOADING),
        (
            "(Worker pid=2) INFO 11-21 07:51:28 [default_loader.py:501] Loading weights took 0.00 seconds",
            Phase.COMPILING,
        ),
        (
            "(EngineCore pid=2) INFO 11-21 07:51:29 [kv_cache_utils.py:2327] CPU KV cache size: 4 tokens",
            Phase.COMPILING,
        ),
    ],
)
def test_a_line_tells_the_phase(line: str, phase: str) -> None:
    assert phase_of(line, Phase.STARTING) == phase


def test_a_start_never_goes_back() -> None:
    assert phase_of("Starting to load model /draft...", Phase.COMPILING) is Phase.COMPILING
    assert phase_of("", Phase.LOADING) is Phase.LOADING


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (
            "usage: api_server.py [-h]\napi_server.py: error: unrecognized arguments: --no-such-flag",
            "bad flag: api_server.py: error: unrecognized arguments: --no-such-flag",
        ),
        (
            "  Value error, Invalid repository ID or local directory specified: '/tmp/empty'.\n"
            "    For further information visit https://errors.pydantic.dev/2.14/v/value_error",
            "model not found: Value error, Invalid repository ID or local directory specified: '/tmp/empty'.",
        ),
        (
            "(EngineCore pid=5) RuntimeError: Cannot find any model weights with `/m`\n" + ROOT_CAUSE,
            "model not found: RuntimeError: Cannot find any model weights with `/m`",
        ),
        (
            "(EngineCore pid=5) ERROR 11-21 07:51:28 [core.py:9] torch.OutOfMemoryError: CUDA out of memory. Tried\n"
            + ROOT_CAUSE,
            "out of memory: torch.OutOfMemoryError: CUDA out of memory. Tried",
        ),
        ("(EngineCore pid=5) KeyError: 'layers.3'\n" + ROOT_CAUSE, "KeyError: 'layers.3'"),
        ("OSError: [Errno 98] Address already in use", "address in use: OSError: [Errno 98] Address already in use"),
        ("it said something\n\n", "it said something"),
        ("", ""),
    ],
    ids=["flag", "directory", "weights", "memory", "another", "address", "no error", "nothing"],
)
def test_the_cause_is_named_with_the_engines_own_words(log: str, told: str) -> None:
    assert last_errors(log) == told


def test_a_long_error_is_cut() -> None:
    assert len(last_errors("ValueError: " + "x" * 10_000)) <= 600
