"""A LangChain chat message history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage, message_to_dict, messages_from_dict

from . import text
from .connection import Server, Steps

if TYPE_CHECKING:
    from .connection import AnyConnection, Row

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}

#: What a role and a text are, where nothing else is known of a message.
_PLAIN: dict[str, type[BaseMessage]] = {"user": HumanMessage, "assistant": AIMessage, "system": SystemMessage}

#: Of a message: its role, its text when it is nothing but text, and its JSON when it was more to LangChain.
_COLUMNS = (
    "m.role, case when jsonb_typeof(m.content) = 'string' then m.content #>> '{}' end, "
    "case when m.metadata #>> '{original,shape}' = 'langchain' then m.metadata #>> '{original,element}' end"
)


class PgLlmChatMessageHistory(BaseChatMessageHistory):
    """The messages of a conversation in a database with pg_llm: exactly as they were added, and for all other clients of the conversation too.

    `connection`, `tenant` and `user_id` are as for `PgLlmSaver`. The conversation is made when the first message is added, unless it is there.
    """

    def __init__(self, connection: AnyConnection, conversation_id: UUID, *, tenant: str | None = None, user_id: UUID | None = None) -> None:
        self.conversation_id = conversation_id
        self._server = Server(connection, tenant=tenant, user_id=user_id)

    @property
    def messages(self) -> list[BaseMessage]:
        """All messages, oldest first."""
        return self._server.run(self._get())

    @messages.setter
    def messages(self, messages: list[BaseMessage]) -> None:
        self.clear()
        self.add_messages(messages)

    async def aget_messages(self) -> list[BaseMessage]:
        """Return all messages, oldest first."""
        return await self._server.arun(self._get())

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Add messages: all of them, or none."""
        self._server.run(self._add(messages))

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """As `add_messages`."""
        await self._server.arun(self._add(messages))

    def clear(self) -> None:
        """Delete all messages."""
        self._server.run(self._clear())

    async def aclear(self) -> None:
        """As `clear`."""
        await self._server.arun(self._clear())

    def _all(self, columns: str) -> Steps[list[Row]]:
        """Ask for columns of all messages m: none where there is no conversation yet."""
        messages = "get_conversations cross join lateral llm.get_messages(r.conversation_id, null::bigint, null::bigint, null::bigint) m"
        return (yield columns, messages, "uuid[]", [[self.conversation_id]])

    def _get(self) -> Steps[list[BaseMessage]]:
        rows = yield from self._all(_COLUMNS)
        if all(original is not None or (said is not None and role in _PLAIN) for role, said, original in rows):
            return [
                _PLAIN[role](text.original(said)) if original is None else messages_from_dict([text.loads(original)])[0]
                for role, said, original in rows
            ]
        ((transcript,),) = yield "r::text", "export_conversation", "uuid, text", [self.conversation_id, "langchain"]
        return messages_from_dict(text.loads(transcript))

    def _add(self, messages: Sequence[BaseMessage]) -> Steps[None]:
        elements = [_message(message) for message in messages]
        match elements:
            case [{"role": role, "content": str(said), **more}] if not more and text.is_clean(said):
                arguments = [self.conversation_id, role, said, True]
                yield "r", "append_message", "uuid, p_role => text, p_content => text, p_create => boolean", arguments
            case _:
                yield "r", "append_messages", "uuid, text, bigint, boolean", [self.conversation_id, json.dumps(elements), None, True]

    def _clear(self) -> Steps[None]:
        yield from self._all("llm.delete_message(m.message_id)")


def _message(message: BaseMessage) -> dict[str, Any]:
    """Return what `llm.append_messages()` takes: what all clients understand, and the message itself where it is more than that."""
    if message.type not in _ROLES:
        raise ValueError(f"a message of type {message.type!r} has no place in a conversation: types are {', '.join(_ROLES)}")
    role = _ROLES[message.type]
    said: Any = message.content
    if isinstance(said, str) and role in _PLAIN and message == _PLAIN[role](said):
        return {"role": role, "content": said}
    if not isinstance(said, str):
        said = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in said]
    found: dict[str, Any] = {"role": role, "content": said}
    if isinstance(message, ToolMessage):
        result = {"type": "tool_result", "tool_call_id": message.tool_call_id, "content": said}
        found["content"] = [result | ({"is_error": True} if message.status == "error" else {})]
    elif isinstance(message, AIMessage):
        calls = [{"type": "tool_call", "id": call["id"], "name": call["name"], "arguments": call["args"]} for call in message.tool_calls]
        if calls:
            parts = [{"type": "text", "text": said}] if isinstance(said, str) and said else list(said)
            found["content"] = [*(part for part in parts if part["type"] != "tool_use"), *calls]
        if message.usage_metadata:
            found["token_count"] = message.usage_metadata["output_tokens"]
    return found | {"metadata": {"original": {"shape": "langchain", "element": message_to_dict(message)}}}
