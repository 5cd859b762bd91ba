"""A real vLLM with a tiny model, served at a port."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.ports import free_port
from tests.system import end

TINY = "tiny"
_MAKE = Path(__file__).parent.parent / "vllm" / "make_tiny_llama.py"
# Seconds that a start may take.
_PATIENCE = 300.0
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # For its sitecustomize.py.
    "PYTHONPATH": str(_MAKE.parent),
}


def python() -> str:
    return os.environ["VLLM_PYTHON"]


def weights(home: Path) -> Path:
    """Where they are put, with the tokenizer."""
    return home / TINY


@contextmanager
def tiny_vllm(home: Path, at_once: int) -> Iterator[tuple[str, int]]:
    """Its address up to /v1 and its pid; the weights and the log are put under ``home``."""
    directory, port = weights(home), free_port()
    subprocess.run([python(), _MAKE, directory], check=True, capture_output=True, env=os.environ | ENVIRONMENT)
    command = [python(), "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory)]
    command += ["--served-model-name", TINY, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-num-seqs", str(at_once), "--dtype", "bfloat16", "--enforce-eager"]
    command += ["--disable-uvicorn-access-log"]
    log = home / "vllm.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _until_healthy(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1", server.pid
    finally:
        end(server)


def _until_healthy(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return
        if server.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"vLLM did not start:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.5)
