"""``python -m tests.benchmarks.bench_serve``: ``vllm bench serve`` with one backend more, ``roundhouse``.

Run by a Python that has vLLM (0.32 was tried). It takes the same options; ``--backend roundhouse`` asks ``POST
/api/chat?wait=…`` at ``--base-url`` and ``--endpoint``, with the token in OPENAI_API_KEY. Answers come whole, so of the
latencies only that of the whole answer (``e2el``) says anything.
"""

import os
import time
from typing import Any

from vllm.benchmarks import serve
from vllm.benchmarks.lib import endpoint_request_func as functions
from vllm.utils.argparse_utils import FlexibleArgumentParser

BACKEND = "roundhouse"


async def ask(
    request_func_input: functions.RequestFuncInput, session: Any, pbar: Any = None
) -> functions.RequestFuncOutput:
    """vLLM's ``RequestFunc``."""
    asked = request_func_input
    output = functions.RequestFuncOutput(prompt_len=asked.prompt_len, start_time=time.perf_counter())
    body: dict[str, Any] = {
        "model": asked.model_name or asked.model,
        "messages": [{"role": "user", "content": asked.prompt}],
        "max_tokens": asked.output_len,
        **(asked.extra_body or {}),
    }
    if asked.ignore_eos:
        body["ignore_eos"] = True  # to be refused rather than answered more shortly than vLLM does
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    async with session.post(asked.api_url, json=body, headers=headers) as response:
        job = await response.json()
    output.latency = output.ttft = time.perf_counter() - output.start_time
    if job.get("status") == "completed":
        usage = job["result"]["usage"]
        output.success = True
        output.generated_text = job["result"]["message"]["content"]
        output.prompt_len, output.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    else:
        output.error = str(job)
    if pbar:
        pbar.update(1)
    return output


def main() -> None:
    functions.ASYNC_REQUEST_FUNCS[BACKEND] = ask
    # It takes temperature and the like in the body.
    functions.OPENAI_COMPATIBLE_BACKENDS.append(BACKEND)
    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    serve.main(parser.parse_args())


if __name__ == "__main__":
    main()
