"""What clients may send, as pydantic models: the routes check bodies by them, and /openapi.json is made from them."""

from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from config.models import Resolution
from gateway.documents import page_ranges

MAX_TEXT = 1_000_000
"""Characters of one text."""
MAX_KEYS = 1024
"""Of an object."""

# What Tesseract calls a language (eng, chi_sim, script/Latin without its slash). It becomes part of a command line.
Language = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{2,10}(_[A-Za-z0-9]{2,10}){0,3}$")]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
BackendName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
TextChoice = Literal["auto", "ocr", "embedded"]
Instruction = Literal["document", "text", "ocr", "figure", "describe", "locate"]
Term = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]
PagesText = Annotated[
    str,
    StringConstraints(max_length=page_ranges.LONGEST, pattern=r"^\s*[0-9]{1,6}(\s*[-,]\s*[0-9]{1,6})*\s*$"),
]


def few_keys(given: object) -> object:
    """Of a million keys that are wrong each would be told, and take a kilobyte."""
    if isinstance(given, dict) and len(given) > MAX_KEYS:
        raise PydanticCustomError("too_many_keys", "It has more than {most} keys", {"most": MAX_KEYS})
    return given


class Payload(BaseModel):
    """No unknown keys, as a misspelt one would be ignored without a word, and no guessing of types."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _not_flooded(cls, given: object) -> object:
        return few_keys(given)


def tag_of(value: object) -> str | None:
    """The ``type`` of what is sent, by which its model is chosen; None where it has none.

    It stands in angle brackets, so that ``gateway.body`` can tell it from the keys of a body in an error's path.
    """
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if isinstance(kind, str) else None


class TextPart(Payload):
    type: Literal["text"]
    text: Text


class ImageUrl(Payload):
    url: str
    """A `data:` URL in base64: an image or application/pdf. Addresses are not fetched."""
    detail: Literal["auto", "low", "high"] | None = None
    """Taken for compatibility; resolution is chosen by `options.resolution`."""


def _as_image_url(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class ImagePart(Payload):
    type: Literal["image_url"]
    image_url: Annotated[ImageUrl, BeforeValidator(_as_image_url, json_schema_input_type=ImageUrl | str)]


class FileData(Payload):
    file_data: str
    """A `data:` URL in base64."""
    filename: Annotated[str, StringConstraints(max_length=1000)] | None = None


class FilePart(Payload):
    type: Literal["file"]
    file: FileData


Part = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")] | Annotated[FilePart, Tag("<file>")],
    Discriminator(
        tag_of, custom_error_type="part_type", custom_error_message="A part needs the type text, image_url or file"
    ),
]


def _as_parts(value: object) -> object:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class OcrMessage(Payload):
    role: Literal["system", "developer", "user"]
    content: Annotated[
        list[Part], Field(fail_fast=True), BeforeValidator(_as_parts, json_schema_input_type=str | list[Part])
    ]


def _as_languages(value: object) -> object:
    return value.split("+") if isinstance(value, str) else value


Languages = Annotated[
    list[Language],
    Field(min_length=1, max_length=8),
    BeforeValidator(_as_languages, json_schema_input_type=str | list[Language]),
]
LanguageList = Annotated[
    list[Language], Field(min_length=1, max_length=8), BeforeValidator(_as_languages, json_schema_input_type=str)
]


def _canonical_pages(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return page_ranges.written(page_ranges.parse(value))
    except ValueError:
        raise PydanticCustomError(
            "pages", "Give page numbers from 1 and ranges of them, joined by commas, e.g. 1-3,7"
        ) from None


Pages = Annotated[str, BeforeValidator(_canonical_pages, json_schema_input_type=PagesText)]


def _as_flag(value: object) -> object:
    return {"true": True, "1": True, "false": False, "0": False}.get(value, value) if isinstance(value, str) else value


Flag = Annotated[bool, BeforeValidator(_as_flag, json_schema_input_type=Literal["true", "1", "false", "0"])]


class ReadingOptions(Payload):
    """What there is to choose about a document, in each of the three ways in."""

    pages: Pages | None = None
    """The pages to read, e.g. `1-3,7`, or the frames of a TIFF; unset: all of them."""
    text: TextChoice | None = None
    """For PDF pages that carry text of their own. `embedded`: it is taken; `ocr`: it is not looked at; `auto`, the
    default: it is taken where it is sound."""
    instruction: Instruction | None = None
    """What a vision model is to make of a page, the default being `document`, i.e. markdown with its layout. A prompt
    of your own goes before it. `locate` needs a `term`."""
    term: Term | None = None
    """What `locate` is to find."""
    resolution: Resolution | None = None
    """DeepSeek-OCR's mode; the header X-Resolution goes before it."""

    @model_validator(mode="after")
    def _term_for_locate(self) -> Self:
        if self.instruction == "locate" and self.term is None:
            raise PydanticCustomError("term", "The instruction locate needs a term, i.e. what to find")
        if self.instruction != "locate" and self.term is not None:
            raise PydanticCustomError("term", "A term goes only with the instruction locate")
        return self


class OcrOptions(ReadingOptions):
    """How a document is to be read. What an engine has no use for it ignores, but for `searchable_pdf`: a job that asks
    for one of an engine that makes none fails with the code `task_unsupported`."""

    languages: Languages | None = None
    """Tesseract's names, e.g. `["deu", "eng"]` or `"deu+eng"`; unset: chosen for each page by its script."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    searchable_pdf: bool | None = None
    """Whether to make a PDF of the page images with the text under them, too. Tesseract can."""


WebhookEvent = Literal["job.completed", "job.failed", "job.timeout", "job.cancelled"]


def _as_events(value: object) -> object:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class WebhookFields(Payload):
    """Who is to be told that the job has ended. The headers X-Webhook-URL and X-Webhook-Events go before these."""

    webhook_url: Annotated[str, StringConstraints(max_length=2048)] | None = None
    """An address that is told of the job's end, if `outbound.webhooks` is on."""
    webhook_events: (
        Annotated[
            list[WebhookEvent],
            Field(min_length=1, max_length=4),
            BeforeValidator(_as_events, json_schema_input_type=str | list[WebhookEvent]),
        ]
        | None
    ) = None
    """Of which ends, as a list or joined by commas; unset: of any."""

    @model_validator(mode="after")
    def _events_of_something(self) -> Self:
        if self.webhook_events is not None and self.webhook_url is None:
            raise PydanticCustomError("webhook", "webhook_events goes only with webhook_url")
        return self


class OcrRequest(WebhookFields):
    """One document in an `image_url` or `file` part. The texts, if any, are the prompt."""

    model: ModelName | None = None
    messages: Annotated[list[OcrMessage], Field(min_length=1, max_length=100)]
    options: OcrOptions = Field(default_factory=OcrOptions)
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """As `options.max_tokens`."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """As `options.temperature`."""
    stream: Literal[False] = False


class OcrFields(ReadingOptions, WebhookFields):
    """What a form's fields, or the query of a request with the document as its body, may say."""

    model: ModelName | None = None
    """A model's name or alias; unset: the first of `defaults.ocr` that a worker serves."""
    prompt: Text | None = None
    """What to do with the page, for models that are told."""
    language: LanguageList | None = None
    """Tesseract's names, joined by a plus sign, e.g. `deu+eng`; unset: chosen for each page by its script."""
    searchable_pdf: Flag | None = None
    """Whether to make a PDF of the page images with the text under them, too. Tesseract can."""


class ResolutionRequest(Payload):
    """The mode in which a model reads documents."""

    resolution: Resolution
    model: ModelName | None = None
    """A model's name or alias; unset: the first of `defaults.ocr` that has several modes."""


class Simulate(Payload):
    """A fault for the engine `simulator` to commit, where its configuration allows faults."""

    fault: Literal["crash", "hang", "slow", "garbage", "error", "reject"]
    after: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Tokens before the fault."""
    attempts: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many attempts it befalls."""


class ChatMessage(Payload):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[TextPart], Field(fail_fast=True), BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart])
    ]

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content)


class Sampling(Payload):
    """How the answer is chosen; unset: as the model does by itself."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None


class ChatRequest(Sampling, WebhookFields):
    """A conversation as `messages`, or one question as `message`, with `system` if wanted."""

    model: ModelName | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=10_000)] | None = None
    message: Text | None = None
    system: Text | None = None
    model_key: Annotated[BackendName | None, Field(alias="modelKey")] = None
    """One of the model's backends, by its name."""
    stream: bool = False
    """Whether the answer can be followed while it is generated, by the job's events."""
    simulate: Simulate | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.messages is None) == (self.message is None):
            raise PydanticCustomError("one_way", "Give either messages or message")
        if self.messages is not None and self.system is not None:
            raise PydanticCustomError("one_way", "system goes with message; in messages it is one of them")
        return self

    def conversation(self) -> list[dict[str, str]]:
        """The messages as an engine takes them, the shorthand written out."""
        if self.messages is not None:
            return [{"role": message.role, "content": message.text} for message in self.messages]
        told = [{"role": "system", "content": self.system}] if self.system else []
        return [*told, {"role": "user", "content": self.message or ""}]


class InferenceRequest(Payload):
    """A text to go on with."""

    prompt: Text
    model: ModelName | None = None
    """A model's name or alias; unset: the first of `defaults.chat` that a worker serves."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    simulate: Simulate | None = None
