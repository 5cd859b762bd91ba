"""What clients of OpenAI's API may send: what vLLM and other servers understand and what cannot hurt them.

Anything else is refused by name, as some of vLLM's own parameters end its engine, and a misspelt one would be ignored
without a word. The body that passes goes to the engine as it came, but for what is about the answer's way back.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from gateway.outbound.images import checked_url
from gateway.payloads import BackendName, ModelName, Payload, Simulate, Text, TextPart, tag_of
from gateway.v1.objects import MAX_SCHEMA, JsonSchema, LogitBias, Metadata, Short, small

MAX_INPUTS = 2048
MAX_PROMPTS = 64
# Of all prompts of a request together.
MAX_CHOICES = 64


def _form(given: object) -> str | None:
    if isinstance(given, str):
        return "<text>"
    if not isinstance(given, list):
        return None
    match given[:1]:
        case [str()]:
            return "<texts>"
        case [list()]:
            return "<lists>"
        case _:
            return "<tokens>"


_FORMS = Discriminator(
    _form, custom_error_type="form", custom_error_message="It is a text, its tokens, or a list of either"
)

Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
TokenId = Annotated[int, Field(ge=0, le=2**31)]
# Of a million faults the first is told: each takes a kilobyte.
Tokens = Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000, fail_fast=True)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Stops = Annotated[
    Annotated[Stop, Tag("<text>")] | Annotated[Annotated[list[Stop], Field(max_length=16)], Tag("<texts>")],
    Discriminator(
        lambda given: "<texts>" if isinstance(given, list) else "<text>",
        custom_error_type="form",
        custom_error_message="It is a text or a list of texts",
    ),
]
ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


def _image(url: str) -> str:
    try:
        return checked_url(url)
    except ValueError as error:
        raise PydanticCustomError("image", "{why}", {"why": str(error)}) from None


class ImageAddress(Payload):
    url: Annotated[str, AfterValidator(_image)]
    """A `data:` URL in base64 of a PNG, JPEG, WebP or GIF; or its address, where `outbound.images` is on."""
    detail: Literal["auto", "low", "high"] | None = None


class ImageContent(Payload):
    type: Literal["image_url"]
    image_url: ImageAddress


class RefusalContent(Payload):
    type: Literal["refusal"]
    refusal: Text


UserPart = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImageContent, Tag("<image_url>")],
    Discriminator(tag_of, custom_error_type="part_type", custom_error_message="A part is of type text or image_url"),
]
AssistantPart = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[RefusalContent, Tag("<refusal>")],
    Discriminator(tag_of, custom_error_type="part_type", custom_error_message="A part is of type text or refusal"),
]


class SystemMessage(Payload):
    role: Literal["system", "developer"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)]
    name: Short | None = None


class UserMessage(Payload):
    role: Literal["user"]
    content: Text | Annotated[list[UserPart], Field(fail_fast=True)]
    name: Short | None = None


# What OpenAI's SDK adds to a message as it reads it, and sends back with that. No engine is told.
FromSdk = Annotated[Any, Field(exclude=True)]


class FunctionCall(Payload):
    # A model may have made it up.
    name: Short
    arguments: Text
    parsed_arguments: FromSdk = None


class ToolCall(Payload):
    id: Short
    type: Literal["function"] = "function"
    function: FunctionCall
    extra_content: JsonSchema | None = None
    """What Gemini gave with the call, and wants back."""
    index: FromSdk = None


class AssistantMessage(Payload):
    role: Literal["assistant"]
    content: Text | Annotated[list[AssistantPart], Field(fail_fast=True)] | None = None
    name: Short | None = None
    refusal: Text | None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    parsed: FromSdk = None
    # What responses have and clients send back with the rest of a message.
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Payload):
    role: Literal["tool"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)]
    tool_call_id: Short
    name: Short | None = None


def _role(message: object) -> str | None:
    role = message.get("role") if isinstance(message, dict) else getattr(message, "role", None)
    return "<system>" if role == "developer" else f"<{role}>" if isinstance(role, str) else None


Message = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")],
    Discriminator(
        _role,
        custom_error_type="role",
        custom_error_message="A message's role is system, developer, user, assistant or tool",
    ),
]


class Function(Payload):
    name: ToolName
    description: Annotated[str, StringConstraints(max_length=MAX_SCHEMA)] | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class Tool(Payload):
    type: Literal["function"]
    function: Function


class NamedFunction(Payload):
    name: ToolName


class ToolChoice(Payload):
    type: Literal["function"]
    function: NamedFunction


class AnyFormat(Payload):
    type: Literal["text", "json_object"]


class NamedSchema(Payload):
    name: ToolName
    description: Annotated[str, StringConstraints(max_length=MAX_SCHEMA)] | None = None
    schema_: Annotated[JsonSchema | None, Field(alias="schema")] = None
    strict: bool | None = None


class SchemaFormat(Payload):
    type: Literal["json_schema"]
    json_schema: NamedSchema


def _format(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return {"json_schema": "<schema>", "text": "<any>", "json_object": "<any>"}.get(str(kind))


ResponseFormat = Annotated[
    Annotated[AnyFormat, Tag("<any>")] | Annotated[SchemaFormat, Tag("<schema>")],
    Discriminator(
        _format, custom_error_type="format", custom_error_message="The type is text, json_object or json_schema"
    ),
]


class StreamOptions(Payload):
    include_usage: bool | None = None
    """Whether a last chunk tells the tokens that were used."""
    include_obfuscation: bool | None = None
    """Taken for compatibility; nothing is obfuscated."""


class Generation(Payload):
    """What chats and completions have in common. The second group is vLLM's own; other servers may refuse it."""

    model: ModelName
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stop: Stops | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: LogitBias | None = None
    user: Short | None = None
    """Taken for compatibility; who asks is told by the token, and `X-Client-ID` labels jobs."""

    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    bad_words: Annotated[list[Stop], Field(max_length=128)] | None = None

    model_key: Annotated[BackendName | None, Field(alias="modelKey")] = None
    """One of the model's backends, by its name."""
    simulate: Simulate | None = None
    """A fault for the engine `simulator` to commit."""

    @model_validator(mode="after")
    def _options_of_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options goes only with stream: true")
        return self


class ChatCompletionRequest(Generation):
    messages: Annotated[list[Message], Field(min_length=1, max_length=10_000)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    store: bool | None = None
    """Taken for compatibility: every answer is kept with its job."""
    metadata: Metadata | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: Short | None = None
    """Taken for compatibility: vLLM finds by itself what prompts have in common."""
    safety_identifier: Short | None = None
    """Taken for compatibility, as `user`."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    include_reasoning: bool | None = None
    chat_template_kwargs: JsonSchema | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs goes only with logprobs: true")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise PydanticCustomError("tool_choice", "tool_choice goes only with tools")
        if self.tools:
            small([tool.model_dump(mode="json", by_alias=True) for tool in self.tools])
        return self


class CompletionRequest(Generation):
    prompt: Annotated[
        Annotated[Text, Tag("<text>")]
        | Annotated[Tokens, Tag("<tokens>")]
        | Annotated[Annotated[list[Text], Field(max_length=MAX_PROMPTS)], Tag("<texts>")]
        | Annotated[Annotated[list[Tokens], Field(max_length=MAX_PROMPTS)], Tag("<lists>")],
        _FORMS,
    ]
    """A text or its tokens, or a list of either: the choices of each follow those of the one before."""
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: Text | None = None

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        if (len(self.prompt) if several else 1) * (self.n or 1) > MAX_CHOICES:
            raise PydanticCustomError("n", "All prompts together have {most} choices at most", {"most": MAX_CHOICES})
        return self


class EmbeddingRequest(Payload):
    model: ModelName
    input: Annotated[
        Annotated[Text, Tag("<text>")]
        | Annotated[Tokens, Tag("<tokens>")]
        | Annotated[Annotated[list[Text], Field(max_length=MAX_INPUTS)], Tag("<texts>")]
        | Annotated[Annotated[list[Tokens], Field(max_length=MAX_INPUTS)], Tag("<lists>")],
        _FORMS,
    ]
    """A text or its tokens, or a list of either."""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None
    model_key: Annotated[BackendName | None, Field(alias="modelKey")] = None
    """One of the model's backends, by its name."""
    user: Short | None = None

    def inputs(self) -> list[Any]:
        """Always as a list: of texts, or of lists of tokens."""
        single = isinstance(self.input, str) or isinstance(self.input[0], int)
        return [self.input] if single else list(self.input)


# What is about the way back, or taken for compatibility only. No engine is told.
_NOT_FOR_ENGINES = {
    "model",
    "stream",
    "stream_options",
    "user",
    "store",
    "metadata",
    "service_tier",
    "prompt_cache_key",
    "safety_identifier",
    "modalities",
    "encoding_format",
}


def engine_payload(body: Payload) -> dict[str, Any]:
    """What a job carries for its engine."""
    payload: dict[str, Any] = body.model_dump(
        mode="json", by_alias=True, exclude=_NOT_FOR_ENGINES, exclude_unset=True, exclude_none=True
    )
    if isinstance(body, EmbeddingRequest):
        payload["input"] = body.inputs()
    return payload
