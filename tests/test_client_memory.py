"""What a saver remembers of a thread is never stored, nor returned, in place of what is there."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from pg_llm_client import PgLlmSaver
from tests.client_support import of, put, values
from tests.support import Client, Database

#: What may become of messages between two steps.
CHANGES: dict[str, Any] = {
    "text": lambda messages: setattr(messages[0], "content", "y" * 300),
    "inside": lambda messages: messages[0].additional_kwargs["deep"].append(None),
    "kind of number": lambda messages: messages[0].additional_kwargs.update(flag=1),
    "an object": lambda messages: messages[0].additional_kwargs.update(when=datetime(2000, 1, 1, tzinfo=UTC)),
    "no field": lambda messages: setattr(messages[0], "not_a_field", "x"),
    "class": lambda messages: messages.__setitem__(1, SystemMessage.model_construct(**vars(messages[1]))),
    "order": lambda messages: messages.reverse(),
    "one less": lambda messages: messages.pop(),
    "nothing left": lambda messages: messages.clear(),
}


class Counting(JsonPlusSerializer):
    """Notes how long the lists are that it is given; short ones it has a type of its own for, if that is asked for."""

    def __init__(self, shorter_than: int = 0) -> None:
        super().__init__()
        self.lengths: list[int] = []
        self.shorter_than = shorter_than

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self.lengths.append(len(obj))
        type_, data = super().dumps_typed(obj)
        return (type_ if len(obj) >= self.shorter_than else "short"), data


def serialized_as_a_whole(db: Client, thread: str, messages: list[Any]) -> bool:
    """Tell whether the thread's last messages are stored as LangGraph's serializer has them."""
    with db.tenant("a"):
        return JsonPlusSerializer().dumps_typed(messages)[1].endswith(db.one("select contents[1] from llm.get_checkpoint(%s)", thread))


@pytest.fixture
def saver(database: Database) -> PgLlmSaver:
    """A saver of tenant a."""
    return PgLlmSaver(database.client("app").connection, tenant="a")


def test_what_is_loaded_may_be_changed_by_who_loaded_it(saver: PgLlmSaver) -> None:
    config = put(saver, of("t"), messages=[AIMessage("x" * 300, id="1", additional_kwargs={"a": []})])
    for _ in range(3):
        (message,) = values(saver, config)["messages"]
        assert message.additional_kwargs == {"a": []}
        message.additional_kwargs["a"].append(1)
        message.content = "changed"


def test_a_message_changed_in_place_is_stored_as_it_is_now(saver: PgLlmSaver, db: Client) -> None:
    for (what, change), is_read in product(CHANGES.items(), (False, True)):
        messages: list[Any] = [AIMessage("x" * 300, id="1", additional_kwargs={"deep": [], "flag": True}), HumanMessage("z" * 300, id="2")]
        messages.append(ToolMessage("t" * 300, tool_call_id="3"))
        config = put(saver, of(f"{what} {is_read}"), messages=messages)
        for _ in range(2):
            if is_read:
                saver.get_tuple(config)
            change(messages)
            messages.append(HumanMessage("more" * 50))
            config = put(saver, config, messages=messages)
            assert serialized_as_a_whole(db, f"{what} {is_read}", messages), what


def test_messages_that_did_not_change_are_not_serialized_again(database: Database) -> None:
    serde = Counting()
    saver = PgLlmSaver(database.client("app").connection, tenant="a", serde=serde)
    messages: list[Any] = [HumanMessage("x" * 300, id=str(number)) for number in range(20)]
    config = put(saver, of("t"), messages=messages)
    for number in range(3):
        saver.get_tuple(config) if number == 1 else None
        messages.append(AIMessage("y" * 300))
        config = put(saver, config, messages=messages)
    config = put(saver, config, messages=messages)
    assert serde.lengths == [20, 1, 1, 1, 0]
    assert values(PgLlmSaver(database.client("app").connection, tenant="a"), config) == {"messages": messages}


def test_messages_of_one_branch_are_stored_in_the_other(database: Database, saver: PgLlmSaver, db: Client) -> None:
    other = PgLlmSaver(database.client("app").connection, tenant="a")
    root, left, right, last = (HumanMessage(letter * 300) for letter in "abcd")
    first = put(saver, of("t"), messages=[root])
    put(saver, first, messages=[root, left])
    fork = put(other, first, messages=[root, right])
    assert values(saver, fork) == {"messages": [root, right]}
    put(saver, fork, messages=[root, left, last])
    assert serialized_as_a_whole(db, "t", [root, left, last])


def test_a_serializer_that_has_another_type_for_a_part_is_given_the_whole(database: Database) -> None:
    serde = Counting(shorter_than=3)
    saver = PgLlmSaver(database.client("app").connection, tenant="a", serde=serde)
    messages: list[Any] = [HumanMessage("x" * 300) for _ in range(5)]
    config = put(saver, of("t"), messages=messages)
    messages += messages[:1]
    assert values(saver, put(saver, config, messages=messages)) == {"messages": messages}
    assert serde.lengths == [5, 1, 6]


def test_what_only_seems_a_message_is_stored(saver: PgLlmSaver) -> None:
    texts = [AIMessage("x" * 100).text, AIMessage("y" * 100).text]
    for _ in range(2):
        assert values(saver, put(saver, of("t"), texts=texts)) == {"texts": texts}


def test_what_was_rolled_back_is_not_built_upon(database: Database) -> None:
    """Another writer's piece may have the same number and length by now."""
    client = database.client("app")
    saver, other = PgLlmSaver(client.connection, tenant="a"), PgLlmSaver(database.client("app").connection, tenant="a")
    first = put(saver, of("t"), words=["x" * 300])
    assert values(other, first)
    with client.connection.transaction(force_rollback=True):
        put(saver, first, words=["x" * 300, "a" * 50])
    put(other, first, words=["x" * 300, "b" * 50])
    last = put(saver, first, words=["x" * 300, "a" * 50, "c" * 50])
    assert values(saver, last)["words"] == ["x" * 300, "a" * 50, "c" * 50]
    assert values(other, last)["words"] == ["x" * 300, "a" * 50, "c" * 50]


def test_little_memory_is_enough(database: Database) -> None:
    saver = PgLlmSaver(database.client("app").connection, tenant="a", memory=1_000)
    config = of("t")
    for count in (100, 101, 102):
        config = put(saver, config, words=["word"] * count, more=["more"] * 300)
        assert values(saver, config) == {"words": ["word"] * count, "more": ["more"] * 300}
