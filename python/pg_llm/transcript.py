"""Messages in the shapes of OpenAI, Anthropic and LangChain, and the way back.

A message here is `{"role": …, "content": …}` as llm.messages has it: content is a string or an array of parts. Calls of tools are parts
`{"type": "tool_call", "id": …, "name": …, "arguments": {…}}`, their results parts `{"type": "tool_result", "tool_call_id": …, "content": …}` of
messages with role tool. What a shape has and messages have not stays in an element of that shape that is kept beside the message.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from . import spi

type Message = dict[str, Any]
type Element = dict[str, Any]

_LANGCHAIN_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}
_LANGCHAIN_TYPES = {role: kind for kind, role in _LANGCHAIN_ROLES.items()}
_DATA_URL = "data:"


class _Malformed(Exception):
    """What is wrong with an element, and what it should be."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.hint = hint


def read(document: str, shape: str) -> str:
    """Return the messages of a JSON array of elements as JSON: role, content, and `keep`: whether the element says more than they do."""
    inexact = False

    def number(literal: str) -> float:
        nonlocal inexact
        value = float(literal)
        inexact = inexact or Decimal(repr(value)) != Decimal(literal)
        return value

    reader, writer = _shape(shape)
    messages = []
    for index, element in enumerate(json.loads(document, parse_float=number)):
        try:
            message = reader(_object(element, "it"))
        except _Malformed as malformed:
            raise spi.InvalidParameter(f"element {index} of the transcript is malformed: {malformed}", hint=malformed.hint) from None
        messages.append(message | {"keep": inexact or not _same(writer(message), [element])})
    return json.dumps(messages, ensure_ascii=False)


def write(document: str, shape: str) -> str:
    """Return for each message of a JSON array the elements that it is in a shape, as JSON."""
    _, writer = _shape(shape)
    return json.dumps([writer(message) for message in json.loads(document)], ensure_ascii=False)


def _shape(name: str) -> tuple[Callable[[Element], Message], Callable[[Message], list[Element]]]:
    try:
        return _SHAPES[name]
    except KeyError:
        raise spi.InvalidParameter(f"there is no transcript in shape {name!r}", hint=f"Shapes are {', '.join(_SHAPES)}.") from None


def _same(one: object, other: object) -> bool:
    # As JSON, where 1 is not true.
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


# What elements must have.


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Malformed(f"{what} is {_brief(value)}", "An object is expected there.")
    return value


def _text(element: dict[str, Any], key: str) -> str:
    value = element.get(key)
    if not isinstance(value, str):
        raise _Malformed(f"its {key} is {_brief(value)}", "Text is expected there.")
    return value


def _parts(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise _Malformed(f"its content is {_brief(value)}", "Content is text or an array of parts.")
    for part in value:
        kind = _text(_object(part, "a part of its content"), "type")
        if kind == "text":
            _text(part, "text")
    return value


def _content(value: object) -> str | list[dict[str, Any]]:
    return value if isinstance(value, str) else _parts(value)


def _brief(value: object) -> str:
    return "missing" if value is None else json.dumps(value, ensure_ascii=False)[:100]


def _as_parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _joined(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    return parts[0]["text"] if len(parts) == 1 and parts[0].keys() == {"type", "text"} and parts[0]["type"] == "text" else parts


def _result_content(part: dict[str, Any]) -> Any:
    return part.get("content", "")


# OpenAI: chat completions.


def _read_openai(element: Element) -> Message:
    role = _text(element, "role")
    if role == "tool":
        result = {"type": "tool_result", "tool_call_id": _text(element, "tool_call_id"), "content": _content(element.get("content"))}
        return {"role": role, "content": [result]}
    if role not in ("user", "assistant", "system", "developer"):
        raise _Malformed(f"its role is {_brief(role)}", "Roles are system, developer, user, assistant and tool.")
    content = element.get("content")
    if role != "assistant":
        return {"role": "system" if role == "developer" else role, "content": _content(content)}
    calls = element.get("tool_calls") or []
    if not isinstance(calls, list):
        raise _Malformed(f"its tool_calls are {_brief(calls)}", "An array is expected there.")
    if not calls and content is None and element.get("refusal"):
        content = _text(element, "refusal")
    if not calls:
        return {"role": role, "content": _content(content)}
    said = _as_parts(_content(content)) if content else []
    return {"role": role, "content": [*said, *map(_read_openai_call, calls)]}


def _read_openai_call(call: object) -> dict[str, Any]:
    element = _object(call, "one of its tool_calls")
    function = _object(element.get("function"), "the function of one of its tool_calls")
    arguments: Any = _text(function, "arguments")
    try:
        parsed = json.loads(arguments)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict):
        arguments = parsed
    return {"type": "tool_call", "id": _text(element, "id"), "name": _text(function, "name"), "arguments": arguments}


def _write_openai(message: Message) -> list[Element]:
    role, content = message["role"], message["content"]
    if isinstance(content, str):
        return [{"role": role, "content": content} | ({"tool_call_id": ""} if role == "tool" else {})]
    results = [
        {"role": "tool", "tool_call_id": part.get("tool_call_id", ""), "content": _result_content(part)}
        for part in content
        if part["type"] == "tool_result"
    ]
    calls = [
        {
            "id": part.get("id"),
            "type": "function",
            "function": {"name": part.get("name"), "arguments": _arguments_text(part.get("arguments"))},
        }
        for part in content
        if part["type"] == "tool_call"
    ]
    said = [_openai_part(part) for part in content if part["type"] not in ("tool_result", "tool_call")]
    if not said and not calls:
        return results
    element = {"role": "user" if role == "tool" else role, "content": said}
    if role == "assistant":
        element["content"] = _joined(said) if said else None
        if calls:
            element["tool_calls"] = calls
    return [*results, element]


def _arguments_text(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))


def _openai_part(part: dict[str, Any]) -> dict[str, Any]:
    source = part.get("source")
    if part["type"] != "image" or not isinstance(source, dict):
        return part
    url = source.get("url") or f"{_DATA_URL}{source.get('media_type')};base64,{source.get('data')}"
    return {"type": "image_url", "image_url": {"url": url}}


# Anthropic: messages. Its system prompt stands apart: the caller moves it.


def _read_anthropic(element: Element) -> Message:
    role = _text(element, "role")
    if role not in ("user", "assistant", "system"):
        raise _Malformed(f"its role is {_brief(role)}", "Roles are user and assistant; the system prompt is the transcript's system.")
    content = _content(element.get("content"))
    if isinstance(content, str) or role == "system":
        return {"role": role, "content": content}
    parts = [_read_anthropic_part(part) for part in content]
    if role == "user" and parts and all(part["type"] == "tool_result" for part in parts):
        role = "tool"
    return {"role": role, "content": parts}


def _read_anthropic_part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "tool_use":
        arguments = _object(part.get("input"), "the input of a tool_use")
        return {"type": "tool_call", "id": _text(part, "id"), "name": _text(part, "name"), "arguments": arguments}
    if part["type"] == "tool_result":
        result = {"type": "tool_result", "tool_call_id": _text(part, "tool_use_id"), "content": _content(part.get("content", ""))}
        return result | ({"is_error": part["is_error"]} if "is_error" in part else {})
    return part


def _write_anthropic(message: Message) -> list[Element]:
    role = "user" if message["role"] == "tool" else message["role"]
    content = message["content"]
    return [{"role": role, "content": content if isinstance(content, str) else [_anthropic_part(part) for part in content]}]


def _anthropic_part(part: dict[str, Any]) -> dict[str, Any]:
    match part["type"]:
        case "tool_call":
            arguments = part.get("arguments")
            given = arguments if isinstance(arguments, dict) else {"arguments": arguments}
            return {"type": "tool_use", "id": part.get("id"), "name": part.get("name"), "input": given}
        case "tool_result":
            result = {"type": "tool_result", "tool_use_id": part.get("tool_call_id"), "content": _result_content(part)}
            return result | ({"is_error": part["is_error"]} if "is_error" in part else {})
        case "image_url" if isinstance(part.get("image_url"), dict):
            return {"type": "image", "source": _anthropic_source(str(part["image_url"].get("url")))}
    return part


def _anthropic_source(url: str) -> dict[str, Any]:
    media, separator, data = url.removeprefix(_DATA_URL).partition(";base64,")
    if url.startswith(_DATA_URL) and separator:
        return {"type": "base64", "media_type": media, "data": data}
    return {"type": "url", "url": url}


# LangChain: what langchain_core.messages.messages_to_dict() gives.


def _read_langchain(element: Element) -> Message:
    kind = _text(element, "type")
    if kind not in _LANGCHAIN_ROLES:
        raise _Malformed(f"its type is {_brief(kind)}", f"Types are {', '.join(_LANGCHAIN_ROLES)}.")
    role = _LANGCHAIN_ROLES[kind]
    data = _object(element.get("data"), "its data")
    content = _content([part if isinstance(part, dict) else {"type": "text", "text": part} for part in data["content"]]
                       if isinstance(data.get("content"), list) else data.get("content"))  # fmt: skip
    if role == "tool":
        result = {"type": "tool_result", "tool_call_id": _text(data, "tool_call_id"), "content": content}
        return {"role": role, "content": [result | ({"is_error": True} if data.get("status") == "error" else {})]}
    calls = data.get("tool_calls") or []
    if role != "assistant" or not calls:
        return {"role": role, "content": content}
    if not isinstance(calls, list):
        raise _Malformed(f"its tool_calls are {_brief(calls)}", "An array is expected there.")
    said = [part for part in _as_parts(content) if part["type"] != "tool_use"] if content else []
    return {"role": role, "content": [*said, *map(_read_langchain_call, calls)]}


def _read_langchain_call(call: object) -> dict[str, Any]:
    element = _object(call, "one of its tool_calls")
    arguments = _object(element.get("args"), "the args of one of its tool_calls")
    return {"type": "tool_call", "id": element.get("id"), "name": _text(element, "name"), "arguments": arguments}


def _write_langchain(message: Message) -> list[Element]:
    role, content = message["role"], message["content"]
    if isinstance(content, str):
        return [_langchain(role, content, {"tool_call_id": ""} if role == "tool" else {})]
    results = [
        _langchain(
            "tool",
            _result_content(part),
            {"tool_call_id": part.get("tool_call_id"), "status": "error" if part.get("is_error") else "success"},
        )
        for part in content
        if part["type"] == "tool_result"
    ]
    calls = [
        {"name": part.get("name"), "args": _arguments(part.get("arguments")), "id": part.get("id"), "type": "tool_call"}
        for part in content
        if part["type"] == "tool_call"
    ]
    said = [_openai_part(part) for part in content if part["type"] not in ("tool_result", "tool_call")]
    if not said and not calls:
        return results
    more = {"tool_calls": calls} if role == "assistant" else {}
    shown = (_joined(said) if said else "") if role == "assistant" else said
    return [*results, _langchain("user" if role == "tool" else role, shown, more)]


def _arguments(arguments: object) -> object:
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}


def _langchain(role: str, content: Any, more: dict[str, Any]) -> Element:
    kind = _LANGCHAIN_TYPES[role]
    data = {"content": content, "additional_kwargs": {}, "response_metadata": {}, "type": kind, "name": None, "id": None}
    if role == "assistant":
        data |= {"tool_calls": [], "invalid_tool_calls": [], "usage_metadata": None}
    if role == "tool":
        data |= {"artifact": None, "status": "success"}
    return {"type": kind, "data": data | more}


_SHAPES: dict[str, tuple[Callable[[Element], Message], Callable[[Message], list[Element]]]] = {
    "openai": (_read_openai, _write_openai),
    "anthropic": (_read_anthropic, _write_anthropic),
    "langchain": (_read_langchain, _write_langchain),
}
