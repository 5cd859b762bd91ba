"""The bodies of documents that were read: results, pages, and the events on the way there."""

from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.schemas import Body, JobError, PageStanding

Box = Annotated[list[int], Field(min_length=4, max_length=4)]


class Word(Body):
    text: str
    bbox: Box
    confidence: float | None
    """From 0 to 1."""


class Block(Body):
    """A part of a page."""

    type: str
    """text, title, list, table, figure, formula, caption, header, footer or other."""
    text: str
    """Of a figure: its caption or description, if there is one."""
    bbox: Box | None
    """Left, top, right and bottom in pixels of the page as it was drawn; null where the engine does not say."""
    confidence: float | None
    """From 0 to 1."""
    words: list[Word]
    """In reading order; empty where the engine does not tell words apart."""


class Figure(Body):
    """A picture on the page, cut out. The n-th is the page's n-th block of type `figure` that has a box."""

    name: str
    link: str


class Page(Body):
    """A page that has come to its end."""

    number: int
    """From 1, in the document."""
    status: Literal["completed", "blank", "failed"]
    """`blank`: there is no ink on it, and no engine has seen it. `failed`: see `error`; the text is the best that there
    was, or empty."""
    width: int
    """In pixels as it was drawn; 0 where it could not be."""
    height: int
    rotation: int
    """Degrees clockwise by which it has to be turned to be upright."""
    engine: str | None
    """What read it; null where nothing did."""
    mode: str | None
    """The resolution mode, of engines that have several."""
    source: Literal["ocr", "embedded"]
    """Whether the text was recognised, or is the one that the PDF carries."""
    languages: list[str]
    confidence: float | None
    """From 0 to 1; null where the engine gives none that can be believed."""
    duration: float
    """Seconds that it took, with all tries."""
    tokens: int | None
    """Tokens generated."""
    tries: int
    warnings: list[str]
    error: JobError | None
    """Of the last try of a page that could not be read."""
    text: str
    markdown: str
    """Figures are referred to by their name."""
    blocks: list[Block]
    """In reading order."""
    figures: list[Figure]
    image: str | None
    """Where the picture of the page is, reduced for people to look at."""


class FailedPage(JobError):
    """A page that could not be read, and why."""

    number: int


class DocumentHead(Body):
    """A document that was read, but for its pages."""

    request_id: str
    model: str
    engine: str | None
    media_type: str | None
    page_count: int
    """Of the pages that were asked for."""
    partial: bool
    """Whether some of them could not be read."""
    failed_pages: list[FailedPage]
    searchable_pdf: str | None
    """Where it is, if one was asked for."""


class DocumentResult(DocumentHead):
    """A document that was read."""

    pages: list[Page]
    """Ascending; every page that was asked for is there."""


class StateEvent(Body):
    """`event: state`. The job's state, or the number of its attempt, is another one."""

    status: Literal["queued", "processing", "completed", "failed", "timeout", "cancelled"]
    attempts: int


class PageEvent(PageStanding):
    """`event: page`. A page was begun, or has come to its end."""


class ProgressEvent(Body):
    """`event: progress`."""

    done: int
    total: int | None
    unit: str


class TokenEvent(Body):
    """`event: token`. A piece of an answer, of jobs that were submitted to be streamed."""

    text: str
    """Of the first choice; empty where the piece is about something else."""
    choices: list[dict[str, Any]]
    """As OpenAI's API has them in a chunk: with the log probabilities, the calls of tools, and the other choices."""


class RestartEvent(Body):
    """`event: restart`. What came of the answer before is void: its worker or engine was lost, and it is generated
    anew."""


class EndEvent(Body):
    """`event: end`. The job has ended; nothing comes after it."""

    status: Literal["completed", "failed", "timeout", "cancelled"]
    error: JobError | None
