"""The protocol of an engine: what runs a model, whatever runs behind it."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt of one job. ``document`` holds the bytes that the client sent, for OCR."""

    job_id: str
    attempt: int
    payload: Mapping[str, Any]
    document: bytes | None = None
    media_type: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """``done`` of ``total`` units; ``total`` None while it is unknown. Restarts the attempt's timeout."""

    done: int
    total: int | None
    unit: str


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of generated text."""

    text: str


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a successful run: a JSON-able mapping of the shape of its task. Always the last chunk."""

    value: Mapping[str, Any]


Chunk: TypeAlias = Progress | Delta | Result


class Engine(Protocol):
    async def start(self) -> None:
        """Makes the engine ready. Raises EngineUnavailable with what is missing."""

    async def stop(self) -> None:
        """Lets go of everything. Runs have ended before."""

    def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Runs one attempt. Raises EngineError and its kind; closing the generator stops the engine's work."""
