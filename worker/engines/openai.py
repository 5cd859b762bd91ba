"""Any server that speaks OpenAI's API, or several: a vLLM, Ollama or llama.cpp that already runs, or a hosted model."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from broker.cancellation import cancel_all
from broker.registry import BackendState
from config import OpenaiSettings
from ocr.instructions import Dialect
from ocr.turns import PageTurns
from worker.backends.backend import Backend
from worker.backends.discovery import Discovery
from worker.backends.pool import Pool
from worker.engines.base import Chunk, Request
from worker.engines.documents import refuse_searchable_pdf, require_poppler
from worker.engines.vision import VisionModel, VisionRecogniser, page_options

# Keys of a payload that say which server is asked for which of its models.
_ROUTE = ("modelKey", "upstream_model")


class OpenaiEngine:
    """Chats and reads pages. Whatever is behind it, a model that is called DeepSeek-OCR is asked as one."""

    def __init__(self, name: str, settings: OpenaiSettings) -> None:
        self.turns = PageTurns(settings.max_concurrent)
        self._model = settings.model or name
        self._reads = settings.task == "ocr"
        several = bool(settings.backends)
        backends = [
            Backend(_title(name, server.name if several else None, server.base_url), server, settings)
            for server in settings.servers(name)
        ]
        self._pool = Pool(name, self._model, backends, settings.balance)
        allowed = settings.allowed_models
        self._discovery = None if allowed is None else Discovery(backends, allowed)
        self._looks: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Nothing but its list of models, if that is wanted, is asked of an upstream before there is a job: it may be
        slow to wake or charge for it. Raises EngineUnavailable where documents cannot be drawn."""
        if self._reads:
            require_poppler()
        if self._discovery is not None and self._looks is None:
            self._looks = asyncio.create_task(self._discovery.run())

    async def stop(self) -> None:
        if self._looks is not None:
            looks, self._looks = self._looks, None
            await cancel_all([looks])
        await self._pool.close()

    def backends(self) -> Sequence[BackendState]:
        return [backend.told() for backend in self._pool.backends]

    def listed(self) -> Sequence[str]:
        return () if self._discovery is None else self._discovery.names()

    def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        return self._pool.run(request.task, request.payload, request.timeout)

    async def recogniser(self, request: Request) -> VisionRecogniser:
        """Raises EngineInputError ``task_unsupported``."""
        model = request.payload.get("upstream_model") or self._model
        refuse_searchable_pdf(request, f"The vision model {model}")
        dialect = Dialect.DEEPSEEK if "deepseek-ocr" in model.lower() else Dialect.PLAIN
        route = {key: request.payload[key] for key in _ROUTE if key in request.payload}

        def chat(payload: Mapping[str, Any]) -> AsyncGenerator[Chunk, None]:
            return self._pool.run("chat", {**payload, **route})

        return VisionRecogniser("openai", chat, VisionModel(dialect), page_options(request.payload))


def _title(model: str, backend: str | None, url: str) -> str:
    which = f"The upstream of {model}" if backend is None else f"The backend {backend} of {model}"
    return f"{which} at {url.rstrip('/')}"
