"""What a body of ``POST /v1/responses`` asks for: a chat with all that is known of the conversation, as pure code.

The chat is checked as any other, so that its bounds hold here too. What the response tells of its own request is kept
with the job as one text: it is nobody's business but the client's, who may have put any keys in it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from broker.job import Job
from gateway.v1.responses.input import Message, answer_message, messages_of
from gateway.v1.responses.requests import FunctionChoice, ResponseRequest, SchemaFormat
from gateway.v1.work import Work, work_of

API = "responses"
MOST_ECHOED = 8192
"""Characters of instructions that are kept with what else a response tells of its request."""


def response_work(request: ResponseRequest, before: Sequence[Message]) -> Work:
    """``before``: the conversation so far. Raises Problem ``invalid_request``."""
    work = work_of("/v1/chat/completions", chat_body(request, before))
    asked = {
        "api": API,
        "model": request.model,
        "background": bool(request.background),
        "stored": request.store is not False,
        "instructed": request.instructions is not None,
        "apart": _apart(request),
        "echo": json.dumps(_echo(request), separators=(",", ":")),
    }
    return replace(work, asked=asked, stream=bool(request.stream))


def _apart(request: ResponseRequest) -> bool:
    """Whether the instructions are too long to be kept twice: then the payload alone has them."""
    return len(request.instructions or "") > MOST_ECHOED


def instructions_apart(job: Job, payload: Mapping[str, Any]) -> str | None:
    """The instructions that the response of ``job`` tells of, where only its payload has them."""
    return str(payload["messages"][0]["content"]) if job.asked.get("apart") else None


def chat_body(request: ResponseRequest, before: Sequence[Message]) -> dict[str, Any]:
    """The chat that a response is the answer of, as ``POST /v1/chat/completions`` takes it."""
    told = [] if request.instructions is None else [{"role": "system", "content": request.instructions}]
    given = {
        "max_completion_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
        "response_format": _format(request),
        "logprobs": request.wants_logprobs or None,
        "top_logprobs": request.top_logprobs if request.wants_logprobs else None,
        "modelKey": request.model_key,
        "simulate": request.simulate.model_dump() if request.simulate else None,
        **_tools(request),
    }
    chat = {key: value for key, value in given.items() if value is not None}
    return {"model": request.model, "messages": [*told, *before, *messages_of(request.input)], **chat}


def _tools(request: ResponseRequest) -> dict[str, Any]:
    choice = request.tool_choice
    if isinstance(choice, FunctionChoice):
        wanted: Any = {"type": "function", "function": {"name": choice.name}}
    else:
        wanted = choice
    if not request.tools:
        # Clients say what is so without tools anyway; anything else the chat refuses.
        return {} if choice in (None, "auto", "none") else {"tool_choice": wanted}
    tools = [
        {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)} for tool in request.tools
    ]
    return {"tools": tools, "tool_choice": wanted, "parallel_tool_calls": request.parallel_tool_calls}


def _format(request: ResponseRequest) -> dict[str, Any] | None:
    wanted = request.text.format if request.text else None
    if isinstance(wanted, SchemaFormat):
        schema = wanted.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
        return {"type": "json_schema", "json_schema": schema}
    return None if wanted is None or wanted.type == "text" else {"type": wanted.type}


def _echo(request: ResponseRequest) -> dict[str, Any]:
    """What the response tells of its request, with what counts where the client has left it open."""
    choice, text, reasoning = request.tool_choice, request.text, request.reasoning
    given = text.format if text else None
    return {
        "background": bool(request.background),
        "instructions": None if _apart(request) else request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "temperature": request.temperature,
        "text": {"format": {"type": "text"} if given is None else given.model_dump(by_alias=True)},
        "tool_choice": choice.model_dump() if isinstance(choice, FunctionChoice) else choice or "auto",
        "tools": [tool.model_dump() for tool in request.tools or ()],
        "top_logprobs": request.top_logprobs,
        "top_p": request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }


def conversation(job: Job, payload: Mapping[str, Any], result: Mapping[str, Any] | None) -> list[Message]:
    """What the response of ``job`` was the answer to, without its instructions; with ``result``, the answer too."""
    messages = payload["messages"][1 if job.asked["instructed"] else 0 :]
    return [*messages, *([] if result is None else [answer_message(result)])]
