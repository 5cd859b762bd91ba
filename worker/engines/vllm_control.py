"""What a vLLM is asked for besides its requests: to sleep, to wake, and to show that it has woken."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from broker.errors import EngineError

URL = "http://engine"
# Seconds.
CONNECT_TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. ``move``: for weights of a hundred gigabytes to go to main memory, or to come back. ``canary``: for the
    first prompt after that. ``settle``: until memory that has been let go of shows as free."""

    move: float = 120.0
    canary: float = 30.0
    settle: float = 5.0


PATIENCE = Patience()


class Control:
    """Of the vLLM that serves the model ``name`` for ``task``, over ``http``, which is its owner's to close."""

    def __init__(self, name: str, task: str, http: httpx.AsyncClient, patience: Patience) -> None:
        self._name = name
        self._task = task
        self._http = http
        self._patience = patience

    async def sleep(self) -> None:
        """Raises EngineError ``sleep_failed``."""
        await self._ask("POST", "/sleep?level=1", "sleep_failed")
        if not (await self._ask("GET", "/is_sleeping", "sleep_failed")).get("is_sleeping"):
            raise EngineError(f"The vLLM of {self._name} was told to sleep and does not.", code="sleep_failed")

    async def wake(self) -> None:
        """Returns when it has answered a first prompt. Raises EngineError ``wake_failed``."""
        await self._ask("POST", "/wake_up", "wake_failed")
        if (await self._ask("GET", "/is_sleeping", "wake_failed")).get("is_sleeping"):
            raise EngineError(f"The vLLM of {self._name} was woken and still sleeps.", code="wake_failed")
        await self.canary()

    async def canary(self) -> None:
        """A prompt through the whole engine: weights that did not come back fail it. Raises EngineError
        ``wake_failed``."""
        path, asked = "/v1/completions", {"model": self._name, "prompt": "1", "max_tokens": 1}
        if self._task == "embedding":  # such a one completes nothing
            path, asked = "/v1/embeddings", {"model": self._name, "input": "1"}
        answer = await self._ask("POST", path, "wake_failed", json=asked, timeout=self._patience.canary)
        if not answer.get("data") and not any(choice.get("finish_reason") for choice in answer.get("choices", ())):
            raise EngineError(f"The vLLM of {self._name} was woken and does not answer.", code="wake_failed")

    async def _ask(
        self, method: str, path: str, code: str, *, json: Any = None, timeout: float | None = None
    ) -> Mapping[str, Any]:
        """Raises EngineError with ``code``."""
        seconds = self._patience.move if timeout is None else timeout
        limits = httpx.Timeout(seconds, connect=CONNECT_TIMEOUT)
        told = f"The vLLM of {self._name}, asked for {path},"
        try:
            response = await self._http.request(method, f"{URL}{path}", json=json, timeout=limits)
        except httpx.TimeoutException as error:
            raise EngineError(f"{told} did not answer in {seconds:g} s.", code=code) from error
        except httpx.TransportError as error:
            raise EngineError(f"{told} broke off: {error or type(error).__name__}.", code=code) from error
        if not response.is_success:
            raise EngineError(f"{told} answered {response.status_code}: {response.text[:500]}", code=code)
        return _mapping(response)


def _mapping(response: httpx.Response) -> Mapping[str, Any]:
    """Releases of vLLM differ in whether they say anything."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
