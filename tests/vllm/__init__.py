"""Real vLLM, on the CPU: ``./quickstart.sh test --vllm``. Left out of the ordinary run, as a start takes a minute."""
