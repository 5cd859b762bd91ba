"""Items of the Responses API as messages of a chat, and back, as pure code.

Calls of functions that follow each other, or the text before them, are one message of a chat. What a model has
thought is left out.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gateway.v1.responses.requests import (
    FunctionCallItem,
    FunctionCallOutput,
    InputImage,
    InputMessage,
    InputText,
    Item,
    OutputMessage,
    OutputRefusal,
    OutputText,
    ReasoningItem,
)

Message = dict[str, Any]


def messages_of(items: Sequence[Item]) -> list[Message]:
    """The chat that ``items`` are."""
    messages: list[Message] = []
    # An earlier turn is nothing to add calls to.
    together = False
    for item in items:
        match item:
            case ReasoningItem():
                continue
            case FunctionCallItem():
                if not together:
                    messages.append({"role": "assistant", "content": None})
                messages[-1].setdefault("tool_calls", []).append(_call(item))
            case FunctionCallOutput():
                text = "".join(part.text for part in item.output)
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
            case OutputMessage():
                messages.append({"role": "assistant", "content": _content([_output(part) for part in item.content])})
            case InputMessage():
                messages.append({"role": item.role, "content": _content([_input(part) for part in item.content])})
        together = isinstance(item, FunctionCallItem | OutputMessage)
    return messages


def _call(item: FunctionCallItem) -> Message:
    return {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}


def _input(part: InputText | InputImage) -> Message:
    if isinstance(part, InputText):
        return {"type": "text", "text": part.text}
    detail = {} if part.detail is None else {"detail": part.detail}
    return {"type": "image_url", "image_url": {"url": part.image_url, **detail}}


def _output(part: OutputText | OutputRefusal | InputText) -> Message:
    if isinstance(part, OutputRefusal):
        return {"type": "refusal", "refusal": part.refusal}
    return {"type": "text", "text": part.text}


def _content(parts: list[Message]) -> str | list[Message]:
    """One text as it is: templates of some models take nothing else."""
    if all(part["type"] == "text" for part in parts) and len(parts) <= 1:
        return "".join(part["text"] for part in parts)
    return parts


def answer_message(result: Mapping[str, Any]) -> Message:
    """The answer of a chat as a message of the next one."""
    message = result["choices"][0]["message"]
    kept = {key: message[key] for key in ("refusal", "tool_calls") if message.get(key)}
    return {"role": "assistant", "content": message.get("content"), **kept}


def items_of(messages: Sequence[Mapping[str, Any]], key: str) -> list[dict[str, Any]]:
    """``messages`` of a chat as items, whose ids are made of ``key``."""
    items: list[dict[str, Any]] = []
    for message in messages:
        for item in _items(message):
            items.append({"id": f"{_PREFIXES[item['type']]}_{key}_in_{len(items)}", "status": "completed", **item})
    return items


_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}


def _items(message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    content = message.get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if message["role"] == "tool":
        text = "".join(part["text"] for part in parts)
        yield {"type": "function_call_output", "call_id": message["tool_call_id"], "output": text}
        return
    if message["role"] != "assistant":
        yield {"type": "message", "role": message["role"], "content": [_input_part(part) for part in parts]}
        return
    told = [_output_part(part) for part in parts if part.get("text") or part.get("refusal")]
    if message.get("refusal"):
        told.append({"type": "refusal", "refusal": message["refusal"]})
    if told or not message.get("tool_calls"):
        yield {"type": "message", "role": "assistant", "content": told}
    for call in message.get("tool_calls") or ():
        yield {"type": "function_call", "call_id": call["id"], **call["function"]}


def _input_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    image = part["image_url"]
    return {"type": "input_image", "image_url": image["url"], "detail": image.get("detail") or "auto", "file_id": None}


def _output_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "refusal":
        return {"type": "refusal", "refusal": part["refusal"]}
    return {"type": "output_text", "text": part["text"], "annotations": [], "logprobs": []}
