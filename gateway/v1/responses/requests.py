"""What ``POST /v1/responses`` takes: what a chat takes, in the words of OpenAI's Responses API.

Anything else is refused by name. What only this API says (how input items are written) is checked here; all bounds of
the chat that a body stands for are checked where chats are, see ``response_work``.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from gateway.payloads import BackendName, ModelName, Payload, Simulate, Text, tag_of
from gateway.v1.objects import MAX_SCHEMA, JsonSchema, Metadata, Short
from gateway.v1.requests import Count, ToolName

# Of OpenAI's API; ``resp_`` and the id of a job.
ResponseId = Annotated[str, StringConstraints(pattern=r"^resp_[0-9a-f]{24}$")]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
# What models of OpenAI's SDK have besides, when what they hold is sent back.
Ignored = Annotated[Any, Field(exclude=True)]


class InputText(Payload):
    type: Literal["input_text"]
    text: Text


class InputImage(Payload):
    type: Literal["input_image"]
    image_url: str
    """A `data:` URL in base64, or an address where the configuration allows that."""
    detail: Literal["auto", "low", "high"] | None = None
    file_id: None = None


class OutputText(Payload):
    type: Literal["output_text"]
    text: Text
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None
    parsed: Ignored = None


class OutputRefusal(Payload):
    type: Literal["refusal"]
    refusal: Text


def _as_input(value: object) -> object:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


def _as_output(value: object) -> object:
    return [{"type": "output_text", "text": value}] if isinstance(value, str) else value


InputPart = Annotated[
    Annotated[InputText, Tag("<input_text>")] | Annotated[InputImage, Tag("<input_image>")],
    Discriminator(
        tag_of, custom_error_type="part_type", custom_error_message="A part is of type input_text or input_image"
    ),
]
OutputPart = Annotated[
    Annotated[OutputText, Tag("<output_text>")]
    | Annotated[OutputRefusal, Tag("<refusal>")]
    | Annotated[InputText, Tag("<input_text>")],
    Discriminator(
        tag_of, custom_error_type="part_type", custom_error_message="A part is of type output_text or refusal"
    ),
]


class InputMessage(Payload):
    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer"]
    content: Annotated[
        list[InputPart], Field(fail_fast=True), BeforeValidator(_as_input, json_schema_input_type=str | list[InputPart])
    ]
    id: Short | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None

    @model_validator(mode="after")
    def _pictures_are_of_users(self) -> Self:
        if self.role != "user" and any(isinstance(part, InputImage) for part in self.content):
            raise PydanticCustomError("part_type", "Only a message of the role user may hold an input_image")
        return self


class OutputMessage(Payload):
    type: Literal["message"] = "message"
    role: Literal["assistant"]
    content: Annotated[
        list[OutputPart],
        Field(fail_fast=True),
        BeforeValidator(_as_output, json_schema_input_type=str | list[OutputPart]),
    ]
    id: Short | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallItem(Payload):
    type: Literal["function_call"]
    call_id: Short
    # A model may have made it up.
    name: Short
    arguments: Text
    id: Short | None = None
    status: ItemStatus | None = None
    caller: None = None
    namespace: None = None
    parsed_arguments: Ignored = None


class FunctionCallOutput(Payload):
    type: Literal["function_call_output"]
    call_id: Short
    output: Annotated[
        list[InputText], Field(fail_fast=True), BeforeValidator(_as_input, json_schema_input_type=str | list[InputText])
    ]
    id: Short | None = None
    status: ItemStatus | None = None
    caller: None = None
    name: ToolName | None = None
    namespace: None = None


class ReasoningItem(Payload):
    """Taken as it was given; no model is told what it has thought before."""

    type: Literal["reasoning"]
    id: Short | None = None
    summary: list[Any] | None = None
    content: list[Any] | None = None
    encrypted_content: Text | None = None
    status: ItemStatus | None = None


def _item(value: object) -> str | None:
    kind = tag_of(value) or "<message>"
    role = value.get("role") if isinstance(value, dict) else getattr(value, "role", None)
    return "<answer>" if kind == "<message>" and role == "assistant" else kind


Item = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[OutputMessage, Tag("<answer>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionCallOutput, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")],
    Discriminator(
        _item,
        custom_error_type="item_type",
        custom_error_message="An item is a message, or of type function_call, function_call_output or reasoning",
    ),
]


def _as_items(value: object) -> object:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class FunctionTool(Payload):
    type: Literal["function"]
    name: ToolName
    description: Annotated[str, StringConstraints(max_length=MAX_SCHEMA)] | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")],
    Discriminator(
        tag_of,
        custom_error_type="tool_type",
        custom_error_message="Tools are of type function; none are run here, such as a search",
    ),
]


class FunctionChoice(Payload):
    type: Literal["function"]
    name: ToolName


class PlainFormat(Payload):
    type: Literal["text", "json_object"]


class SchemaFormat(Payload):
    type: Literal["json_schema"]
    name: ToolName
    schema_: Annotated[JsonSchema, Field(alias="schema")]
    description: Annotated[str, StringConstraints(max_length=MAX_SCHEMA)] | None = None
    strict: bool | None = None


def _format(value: object) -> str | None:
    kind = tag_of(value)
    return "<any>" if kind in ("<text>", "<json_object>") else kind


class TextOptions(Payload):
    format: (
        Annotated[
            Annotated[PlainFormat, Tag("<any>")] | Annotated[SchemaFormat, Tag("<json_schema>")],
            Discriminator(
                _format,
                custom_error_type="format",
                custom_error_message="The type is text, json_object or json_schema",
            ),
        ]
        | None
    ) = None
    verbosity: Literal["medium"] | None = None
    """Models here have no other."""


class Reasoning(Payload):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto"] | None = None
    """None is made here; the reasoning itself is in the answer, where the model's server tells it."""
    generate_summary: None = None


class StreamOptions(Payload):
    include_obfuscation: bool | None = None
    """Taken for compatibility; nothing is obfuscated."""


LOGPROBS = "message.output_text.logprobs"
Include = Literal["message.output_text.logprobs", "message.input_image.image_url", "reasoning.encrypted_content"]


class ResponseRequest(Payload):
    model: ModelName
    input: Annotated[
        list[Item],
        BeforeValidator(_as_items, json_schema_input_type=str | list[Item]),
        Field(min_length=1, max_length=10_000),
    ]
    """A text, or the items of a conversation."""
    instructions: Text | None = None
    """What the model is told first. Those of the response before do not count any more."""
    previous_response_id: ResponseId | None = None
    """A completed response whose conversation this one goes on with."""
    background: bool | None = None
    """Answer at once, and go on without the client."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    """`false`: it can neither be got again nor gone on with. The job is kept as any other is."""
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("<word>")]
            | Annotated[FunctionChoice, Tag("<function>")],
            Discriminator(
                lambda given: "<word>" if isinstance(given, str) else tag_of(given),
                custom_error_type="tool_choice",
                custom_error_message="It is none, auto, required, or of type function",
            ),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    """Taken for compatibility: it bounds tools that a server runs, and there are none here."""
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[Include], Field(max_length=8)] | None = None
    """`message.output_text.logprobs` gives log probabilities. The others are taken for compatibility."""
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    metadata: Metadata | None = None
    """Kept with the response. Keys have 64 characters at most."""
    truncation: Literal["disabled"] | None = None
    """A conversation that is too long for the model is refused, never shortened."""
    service_tier: Literal["auto", "default"] | None = None
    user: Short | None = None
    safety_identifier: Short | None = None
    prompt_cache_key: Short | None = None

    model_key: Annotated[BackendName | None, Field(alias="modelKey")] = None
    """Of a model with several servers, the one to ask. Ours, as is the next."""
    simulate: Simulate | None = None
    """A fault for the engine `simulator` to commit."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options goes only with stream: true")
        if self.background and self.store is False:
            raise PydanticCustomError("store", "background goes only with a response that is stored")
        if self.top_logprobs and not self.wants_logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs goes only with {it} in include", {"it": LOGPROBS})
        return self

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())
