"""The protocol of an engine: what runs a model, whatever runs behind it."""

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

from bson import ObjectId

from broker.registry import BackendState
from ocr.recogniser import Recogniser
from ocr.turns import PageTurns


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt of one job. ``timeout``: seconds that it may take; None: they are not counted. An engine that is
    ``Remote`` ends by itself then, and any other is stopped."""

    job_id: str
    attempt: int
    payload: Mapping[str, Any]
    task: str = "chat"
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer: the choices of a chunk of OpenAI's chat or completions API, without their ends."""

    choices: Sequence[Mapping[str, Any]]

    @property
    def text(self) -> str:
        """Of the first choice, if the piece is about it."""
        pieces = (choice for choice in self.choices if choice["index"] == 0)
        return "".join(piece.get("text") or piece.get("delta", {}).get("content") or "" for piece in pieces)


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a successful run: a JSON-able mapping of the shape of its task. Always the last chunk.

    ``files``: ids of stored files that belong to it, by name. ``backends``: where the model has several servers, those
    that were asked: ``{name, code, message}`` of each that has failed, and the ``name`` of the one that has answered.
    """

    value: Mapping[str, Any]
    files: Mapping[str, ObjectId] = field(default_factory=dict)
    backends: Sequence[Mapping[str, Any]] = ()


Chunk: TypeAlias = Delta | Result


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes that an engine holds: ``device`` on each of its devices, ``host`` of main memory."""

    device: int
    host: int


@runtime_checkable
class Loadable(Protocol):
    """An engine that takes memory and is loaded where it is told to, put to sleep and woken. On top of Engine.

    Nothing runs when ``sleep`` is called, and nothing is run before ``wake`` has returned.
    """

    gpus: Sequence[str]
    """Ids of the GPUs that the next start may use; none: the machine's main memory."""
    gpu_count: int
    """GPUs that it needs."""
    on_phase: Callable[[str], None]
    """Told how far a start is: starting, loading, compiling, ready."""

    @property
    def address(self) -> str | None:
        """Where it listens, while it runs."""

    async def unable(self) -> str | None:
        """Why this machine can never run it, in plain words; None where it can."""

    def need(self, total: int) -> int | None:
        """Bytes that it will take on a device of ``total`` bytes, where that is known before it has been loaded."""

    async def footprint(self) -> Footprint | None:
        """What it holds now; None where that cannot be told."""

    @property
    def can_sleep(self) -> bool:
        """Whether its sleep frees memory, as far as is known."""

    async def sleep(self) -> None:
        """Raises EngineError where it does not sleep, or its sleep frees nothing: it has to be stopped then."""

    async def wake(self) -> None:
        """Returns when it has answered a first prompt. Raises EngineError: it has to be started anew then."""

    async def healthy(self) -> bool: ...


class Engine(Protocol):
    async def start(self) -> None:
        """Makes the engine ready. Raises EngineUnavailable with what is missing."""

    async def stop(self) -> None:
        """Lets go of everything. Runs have ended before."""

    def run(self, request: Request) -> AsyncGenerator[Chunk, None]:
        """Runs one attempt. Raises EngineError and its kind; closing the generator stops the engine's work."""


@runtime_checkable
class Remote(Protocol):
    """An engine whose model runs on servers elsewhere. On top of Engine."""

    def backends(self) -> Sequence[BackendState]:
        """How each of them is."""

    def listed(self) -> Sequence[str]:
        """Names of all models that they list themselves, where they are asked."""


@runtime_checkable
class Reader(Protocol):
    """An engine that reads documents, page by page. On top of Engine's start and stop."""

    turns: PageTurns
    """Its places for pages, which the documents share."""

    async def recogniser(self, request: Request) -> Recogniser:
        """What reads the pages of one document. Raises EngineError and its kind, ``ocr.errors.OcrError``."""


@runtime_checkable
class Modal(Protocol):
    """An engine that may read documents in one of several resolution modes, which is chosen at its start."""

    resolution: str | None
    """Of the next start; None: the usual one."""

    @property
    def modes(self) -> Collection[str]:
        """Those that it knows; none where its model has none, or is not there."""
