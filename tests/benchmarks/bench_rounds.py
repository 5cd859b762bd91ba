"""Rounds of ``vllm bench serve``: against a vLLM, and against Roundhouse in front of it."""

import json
import os
import random
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.askers import LEAST, MOST, STRAIGHT, SYSTEM, WAYS
from tests.benchmarks.front import CLIENTS, Engine, system
from tests.benchmarks.site import LIMIT, ROOT, Site
from tests.benchmarks.tables import spread, table
from tests.benchmarks.tiny_vllm import ENVIRONMENT, TINY, python, weights

# As the command itself does, which is not there where vLLM's build for the CPU has another name. Its reader of streams
# takes no line of an event but its data.
_BENCH_SERVE = r"""
import re
from vllm.benchmarks import serve
from vllm.benchmarks.lib.endpoint_request_func import StreamedResponseHandler
plain = StreamedResponseHandler.add_chunk
StreamedResponseHandler.add_chunk = lambda self, chunk: plain(self, re.sub(rb"(?m)^id: .*\n", b"", chunk))
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args())
"""
Result = Mapping[str, Any]
"""What ``vllm bench serve`` saves."""


def compare(place: Site, engine: Engine, rounds: int, prompts: int) -> str:
    """Both ways in turns, each time in the other order, with the same prompts."""
    results: defaultdict[str, list[Result]] = defaultdict(list)
    for number in range(rounds):
        dataset = place.home / f"prompts-{number}.json"
        dataset.write_text(json.dumps(conversations(prompts, number)))
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            results[way].append(_one_way(place, engine, way, dataset, prompts))
    return _table(results)


def conversations(count: int, seed: int) -> list[dict[str, Any]]:
    """As ShareGPT has them: a prompt, and an answer whose length is the one to ask for. A byte is a token."""
    words = random.Random(seed)
    return [
        {"conversations": [{"value": f"Prompt {number} of {seed}"}, {"value": "x" * words.randint(LEAST, MOST)}]}
        for number in range(count)
    ]


def _one_way(place: Site, engine: Engine, way: str, dataset: Path, prompts: int) -> Result:
    if way == STRAIGHT:
        return _bench(place, engine.url.removesuffix("/v1"), "none", dataset, prompts)
    with system(place, engine, dataset.stem) as (running, _):
        token = str(running.http.headers["Authorization"]).removeprefix("Bearer ")
        return _bench(place, running.url, token, dataset, prompts)


def _bench(place: Site, url: str, token: str, dataset: Path, prompts: int) -> Result:
    result = place.home / "result.json"
    command = [python(), "-c", _BENCH_SERVE]
    command += ["--backend", "openai-chat", "--base-url", url, "--endpoint", "/v1/chat/completions"]
    command += ["--model", TINY, "--tokenizer", str(weights(place.home))]
    command += ["--dataset-name", "sharegpt", "--dataset-path", str(dataset), "--num-prompts", str(prompts)]
    command += ["--max-concurrency", str(CLIENTS), "--temperature", "0"]
    command += ["--percentile-metrics", "ttft,itl,e2el", "--metric-percentiles", "50,99", "--disable-tqdm"]
    command += ["--save-result", "--result-dir", str(place.home), "--result-filename", result.name]
    environ = os.environ | ENVIRONMENT | {"OPENAI_API_KEY": token, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False)
    saved: Result = {} if done.returncode else json.loads(result.read_text())
    if saved.get("completed") != prompts:
        raise SystemExit(f"not all of {prompts} prompts were answered:\n{(done.stdout + done.stderr)[-3000:]}")
    return saved


def _table(results: Mapping[str, Sequence[Result]]) -> str:
    columns = {
        "tokens/s": ("output_throughput", 0),
        "requests/s": ("request_throughput", 1),
        "tokens": ("total_output_tokens", 0),
        "ttft ms: p50": ("p50_ttft_ms", 1),
        "ttft: p99": ("p99_ttft_ms", 1),
        "itl ms: p50": ("p50_itl_ms", 1),
        "itl: p99": ("p99_itl_ms", 1),
        "e2el ms: p50": ("p50_e2el_ms", 0),
        "e2el: p99": ("p99_e2el_ms", 0),
    }
    rows = [
        [way, *(spread((result[key] for result in results[way]), digits) for key, digits in columns.values())]
        for way in WAYS
    ]
    both = zip(results[STRAIGHT], results[SYSTEM], strict=True)
    ratio = spread((through["output_throughput"] / straight["output_throughput"] for straight, through in both), 3)
    return f"{table(['way', *columns], rows)}\n\nTokens/s of straight: {ratio}."
