"""What the routes of OpenAI's API answer, as ``/openapi.json`` has it."""

from typing import Any, Literal

from pydantic import ConfigDict

from gateway.schemas import Body, ModelStateName


class Model(Body):
    """A name that requests may use. The last five fields are ours."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["roundhouse"] = "roundhouse"
    root: str
    """The model that the name stands for."""
    parent: str | None
    """The model that a LoRA adapter belongs to."""
    task: Literal["chat", "ocr", "embedding"]
    state: ModelStateName
    served_by: list[str]
    """The hosts whose workers serve it now."""
    description: str


class ModelList(Body):
    object: Literal["list"] = "list"
    data: list[Model]


class Usage(Body):
    model_config = ConfigDict(extra="allow")

    prompt_tokens: int
    total_tokens: int


class CompletionUsage(Usage):
    completion_tokens: int


class ChatChoice(Body):
    model_config = ConfigDict(extra="allow")

    index: int
    message: dict[str, Any]
    logprobs: dict[str, Any] | None
    finish_reason: str


class ChatCompletion(Body):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage | None = None


class TextChoice(Body):
    model_config = ConfigDict(extra="allow")

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str


class TextCompletion(Body):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage | None = None


class EmbeddingEntry(Body):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or little-endian float32 in base64."""


class EmbeddingList(Body):
    object: Literal["list"]
    data: list[EmbeddingEntry]
    model: str
    usage: Usage
