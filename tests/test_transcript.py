"""Transcripts: in and out in three shapes, exactly; malformed ones leave nothing."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
from psycopg.errors import InvalidParameterValue, UniqueViolation

from tests.support import Client, raises

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}

OPENAI = [
    {"role": "system", "content": "Be nice."},
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": "Weather?", "name": "ann"},
    {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL | {"id": "c2", "function": {"name": "w", "arguments": '{ "spaced": 1.50 }'}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "12 °C"},
    {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "11"}]},
    {"role": "assistant", "content": "Cold.", "refusal": None, "annotations": []},
    {"role": "assistant", "content": None, "refusal": "I can't."},
    {"role": "assistant", "content": "Calling", "tool_calls": [CALL | {"function": {"name": "bad", "arguments": "{not json"}}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
]

ANTHROPIC = {
    "model": "claude-sonnet-4-5",
    "system": [{"type": "text", "text": "Be nice.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "text", "text": "Looking."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris", "digits": 0.1234567890123456789012345}},
        ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "12 °C", "is_error": False}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1"}, {"type": "text", "text": "And?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Cold.", "citations": None}]},
        {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}]},
    ],
}  # fmt: skip


def langchain(kind: str, **data: object) -> dict[str, object]:
    return {"type": kind, "data": {"type": kind, "additional_kwargs": {}, "response_metadata": {}, "name": None, "id": None} | data}


LANGCHAIN = [
    langchain("system", content="Be nice."),
    langchain("human", content="Weather?", id="h1", example=False),
    langchain("ai", content="", tool_calls=[{"name": "weather", "args": {"city": "Paris"}, "id": "c1", "type": "tool_call"}], invalid_tool_calls=[],
              usage_metadata={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}),
    langchain("tool", content="12", tool_call_id="c1", artifact=None, status="success"),
    langchain("tool", content="boom", tool_call_id="c2", artifact={"x": 1}, status="error"),
    langchain("ai", content=["plain", {"type": "text", "text": "Cold."}], tool_calls=[], invalid_tool_calls=[], usage_metadata=None),
]  # fmt: skip

SHAPES = {"openai": OPENAI, "anthropic": ANTHROPIC, "langchain": LANGCHAIN}


def exported(client: Client, conversation: UUID, shape: str) -> str:
    """Return a transcript as PostgreSQL writes it, so that no digit is lost on the way."""
    text: str = client.one("select llm.export_conversation(%s, %s)::text", conversation, shape)
    return text


def imported(client: Client, document: object, shape: str, **more: object) -> UUID:
    named = "".join(f", p_{name} => %s" for name in more)
    text = document if isinstance(document, str) else json.dumps(document)
    conversation: UUID = client.one(f"select llm.import_conversation(%s, %s{named})", text, shape, *more.values())
    return conversation


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_imported_is_exported_exactly(bound: Client, shape: str) -> None:
    document = json.dumps(SHAPES[shape]).replace("0.12345678901234568", "0.1234567890123456789012345")
    conversation = imported(bound, document, shape, title="t")
    assert exported(bound, conversation, shape) == bound.one("select %s::jsonb::text", document)
    assert bound.one("select title from llm.get_conversation(%s)", conversation) == "t"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("frame", [{"model": "m", "temperature": 0.10}, {}, None])
def test_what_is_around_the_messages_comes_back(bound: Client, shape: str, frame: dict[str, Any] | None) -> None:
    messages: Any = SHAPES[shape]["messages"] if shape == "anthropic" else SHAPES[shape]  # type: ignore[index]
    document = messages if frame is None else frame | {"messages": messages}
    conversation = imported(bound, document, shape)
    assert json.loads(exported(bound, conversation, shape)) == document


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("other", SHAPES)
def test_every_shape_can_be_had_of_every_other_and_read_again(bound: Client, shape: str, other: str) -> None:
    conversation = imported(bound, SHAPES[shape], shape)
    text = exported(bound, conversation, other)
    again = imported(bound, text, other)
    assert exported(bound, again, other) == text


def test_own_messages_come_through_each_shape_as_they_are(bound: Client) -> None:
    conversation = bound.one("select llm.create_conversation('own')")
    call = {"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Paris"}}
    for role, content in (
        ("system", "Be nice."), ("user", "Weather?"), ("assistant", [{"type": "text", "text": "Looking."}, call]),
        ("tool", [{"type": "tool_result", "tool_call_id": "c1", "content": "12 °C"}]), ("assistant", "Cold."),
    ):  # fmt: skip
        bound.run("select llm.append_message(%s, %s, p_parts => %s)", conversation, role, json.dumps(content))
    said = "select role, content from llm.get_messages(%s)"
    for shape in SHAPES:
        assert bound.rows(said, imported(bound, exported(bound, conversation, shape), shape)) == bound.rows(said, conversation)
    openai = json.loads(exported(bound, conversation, "openai"))
    assert openai[2] == {"role": "assistant", "content": "Looking.", "tool_calls": [CALL]}
    assert openai[3] == {"role": "tool", "tool_call_id": "c1", "content": "12 °C"}
    anthropic = json.loads(exported(bound, conversation, "anthropic"))
    assert anthropic["system"] == "Be nice."
    assert anthropic["messages"][2] == {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "12 °C"}]}


def test_langchain_reads_what_is_exported(bound: Client) -> None:
    messages = pytest.importorskip("langchain_core.messages")
    for shape, document in SHAPES.items():
        text = exported(bound, imported(bound, document, shape), "langchain")
        read = messages.messages_from_dict(json.loads(text))
        again = imported(bound, json.dumps(messages.messages_to_dict(read)), "langchain")
        assert json.loads(exported(bound, again, "langchain")) == messages.messages_to_dict(read)


def test_text_that_cannot_be_stored_is_marked(bound: Client) -> None:
    conversation = imported(bound, '[{"role": "user", "content": "nul \\u0000, lone \\udc00"}]', "openai")
    assert json.loads(exported(bound, conversation, "openai")) == [{"role": "user", "content": "nul ␛0000, lone ␛DC00"}]


GOOD = {"role": "user", "content": "x"}
MALFORMED = [
    ("openai", {"role": "robot", "content": "x"}, 'its role is "robot"', "Roles are"),
    ("openai", {"content": "x"}, "its role is missing", "Text is expected"),
    ("openai", 7, "it is 7", "An object is expected"),
    ("openai", {"role": "user"}, "its content is missing", "an array of parts"),
    ("openai", {"role": "user", "content": [7]}, "a part of its content is 7", "object"),
    ("openai", {"role": "user", "content": [{"type": "text"}]}, "its text is missing", "Text"),
    ("openai", {"role": "tool", "content": "x"}, "its tool_call_id is missing", "Text"),
    ("openai", {"role": "assistant", "content": None, "tool_calls": 7}, "its tool_calls are 7", "array"),
    ("openai", {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "the function of one of its tool_calls is missing", "object"),
    ("openai", {"role": "assistant", "content": None}, "its content is missing", ""),
    ("anthropic", {"role": "tool", "content": "x"}, 'its role is "tool"', "user and assistant"),
    ("anthropic", {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "n"}]}, "the input of a tool_use is missing", "object"),
    ("anthropic", {"role": "user", "content": [{"type": "tool_result"}]}, "its tool_use_id is missing", "Text"),
    ("langchain", {"type": "robot", "data": {"content": "x"}}, 'its type is "robot"', "human, ai, system, tool"),
    ("langchain", {"type": "human"}, "its data is missing", "object"),
    ("langchain", {"type": "ai", "data": {"content": "", "tool_calls": [{"name": "n"}]}}, "the args of one of its tool_calls is missing", "object"),
    ("langchain", {"type": "ai", "data": {"content": "", "tool_calls": 7}}, "its tool_calls are 7", "array"),
]


@pytest.mark.parametrize(("shape", "bad", "problem", "hint"), MALFORMED)
def test_a_malformed_element_is_named_and_nothing_stored(bound: Client, db: Client, shape: str, bad: object, problem: str, hint: str) -> None:
    good = langchain("human", content="x") if shape == "langchain" else GOOD
    for document in ([good, good, bad, good], {"system": "s", "messages": [good, good, bad]}):
        with raises(InvalidParameterValue, match=f"element 2 of the transcript is malformed: {problem}", hint=hint):
            imported(bound, document, shape)
    assert db.one("select count(*) from llm.conversations") == 0


@pytest.mark.parametrize("document", ["7", "{}", '{"messages": 7}', "null", '"x"'])
def test_what_is_no_transcript_is_refused(bound: Client, document: str) -> None:
    with raises(InvalidParameterValue, match="the transcript has no array of messages", hint="Give an array", detail="It begins with"):
        imported(bound, document, "openai")


def test_an_unknown_shape_is_refused(bound: Client) -> None:
    with raises(InvalidParameterValue, match="there is no transcript in shape 'xml'", hint="openai, anthropic, langchain"):
        imported(bound, "[]", "xml")
    with raises(InvalidParameterValue, match="there is no transcript in shape"):
        exported(bound, imported(bound, "[]", "openai"), "xml")


def test_a_transcript_is_not_mixed_with_other_messages(bound: Client) -> None:
    conversation = imported(bound, [GOOD], "openai")
    with raises(UniqueViolation, match=f"conversation {conversation} has messages already", hint="a conversation of its own"):
        imported(bound, [GOOD], "openai", conversation_id=conversation)


def test_a_branch_is_exported(bound: Client) -> None:
    conversation = imported(bound, OPENAI, "openai")
    bound.run("select llm.fork_conversation(%s, 1)", conversation).run("select llm.append_message(%s, 'user', 'else')", conversation)
    assert json.loads(exported(bound, conversation, "openai")) == [OPENAI[0], {"role": "user", "content": "else"}]
