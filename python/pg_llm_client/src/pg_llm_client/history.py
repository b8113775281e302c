"""A LangChain chat message history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage, message_to_dict, messages_from_dict

from . import text
from .connection import Server, Steps

if TYPE_CHECKING:
    from .connection import AnyConnection

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


class PgLlmChatMessageHistory(BaseChatMessageHistory):
    """The messages of a conversation in a database with pg_llm: exactly as they were added, and for all other clients of the conversation too.

    `connection`, `tenant` and `user_id` are as for `PgLlmSaver`. The conversation is made when the first message is added, unless it is there.
    """

    def __init__(self, connection: AnyConnection, conversation_id: UUID, *, tenant: str | None = None, user_id: UUID | None = None) -> None:
        self.conversation_id = conversation_id
        self._server = Server(connection, tenant=tenant, user_id=user_id)
        self._user_id = user_id

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

    def _exists(self) -> Steps[bool]:
        ((found,),) = yield "r", "conversation_exists", "uuid", [self.conversation_id]
        return bool(found)

    def _get(self) -> Steps[list[BaseMessage]]:
        if not (yield from self._exists()):
            return []
        ((transcript,),) = yield "r::text", "export_conversation", "uuid, text", [self.conversation_id, "langchain"]
        return messages_from_dict(text.loads(transcript))

    def _add(self, messages: Sequence[BaseMessage]) -> Steps[None]:
        elements = [_message(message) for message in messages]
        if not (yield from self._exists()):
            yield (
                "r",
                "create_conversation",
                "text, uuid, uuid, text[], jsonb, jsonb, jsonb, uuid",
                [None, self._user_id, None, [], "{}", "{}", "{}", self.conversation_id],
            )
        if elements:
            yield "r", "append_messages", "uuid, text", [self.conversation_id, json.dumps(elements)]

    def _clear(self) -> Steps[None]:
        if (yield from self._exists()):
            arguments = [self.conversation_id, None, None, None]
            yield "llm.delete_message(r.message_id)", "get_messages", "uuid, bigint, bigint, bigint", arguments


def _message(message: BaseMessage) -> dict[str, Any]:
    """Return what `llm.append_messages()` takes: what all clients understand, and the message itself."""
    if message.type not in _ROLES:
        raise ValueError(f"a message of type {message.type!r} has no place in a conversation: types are {', '.join(_ROLES)}")
    said: Any = message.content
    if not isinstance(said, str):
        said = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in said]
    found: dict[str, Any] = {"role": _ROLES[message.type], "content": said}
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
