"""What a body of OpenAI's API asks for, wherever it came in: in a request of its own or as a line of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.errors import ModelNotFound
from broker.job import Idempotency, NewJob
from gateway.arrival import Arrival
from gateway.body import validated
from gateway.outbound.images import with_images
from gateway.problems import Problem
from gateway.v1.requests import ChatCompletionRequest, CompletionRequest, EmbeddingRequest, Generation, engine_payload

ENDPOINTS: Mapping[str, tuple[str, type[Generation] | type[EmbeddingRequest]]] = {
    "/v1/chat/completions": ("chat", ChatCompletionRequest),
    "/v1/completions": ("completion", CompletionRequest),
    "/v1/embeddings": ("embedding", EmbeddingRequest),
}
"""The task of each, and its body."""

# The task of the model that does it, where that has another name.
_MODEL_TASKS = {"completion": "chat"}


@dataclass(frozen=True, slots=True)
class Work:
    """A checked body. ``payload``: for the engine; ``asked``: what the form of the answer depends on."""

    task: str
    model: str
    payload: Mapping[str, Any]
    asked: Mapping[str, Any]
    stream: bool = False

    async def job(self, arrival: Arrival, idempotency: Idempotency | None = None) -> NewJob:
        """The job to submit. Raises ModelNotFound, Problem ``wrong_task`` or ``invalid_timeout``, and of images that
        are given by their addresses UrlRefused and ExchangeFailed."""
        model, _ = await arrival.model(model_task(self.task), self.model)
        payload = await with_images(arrival.gateway, arrival.payload(self.model, self.payload))
        return arrival.new_job(self.task, model, payload, idempotency, stream=self.stream, asked=self.asked)

    def job_for(self, arrival: Arrival, model: str) -> NewJob:
        """The job for a model that was chosen before; without images that are given by their addresses. Raises
        ModelNotFound where it is not configured any more, and Problem ``wrong_task`` and those of ``Arrival.new_job``.
        """
        if (entry := arrival.gateway.settings.models.get(model)) is None:
            raise ModelNotFound(model)
        if entry.task != model_task(self.task):
            raise Problem("wrong_task", f"{model} does {entry.task}, not {model_task(self.task)}.", model=model)
        payload = dict(arrival.payload(self.model, self.payload))
        if getattr(entry, "allowed_models", None) is None:
            # An alias that was taken away is not the name of an upstream's model.
            payload.pop("upstream_model", None)
        return arrival.new_job(self.task, model, payload, None, asked=self.asked)


def model_task(task: str) -> str:
    """What the model of such a job has to do."""
    return _MODEL_TASKS.get(task, task)


def work_of(endpoint: str, content: object) -> Work:
    """``content``: the JSON of a body for ``endpoint``, one of ENDPOINTS. Raises Problem ``invalid_request``."""
    task, kind = ENDPOINTS[endpoint]
    body = validated(kind, content)
    asked: dict[str, Any] = {"model": body.model}
    if isinstance(body, EmbeddingRequest):
        return Work(task, body.model, engine_payload(body), asked | {"encoding": body.encoding_format or "float"})
    options = body.stream_options
    asked["usage"] = bool(options and options.include_usage)
    return Work(task, body.model, engine_payload(body), asked, stream=bool(body.stream))
