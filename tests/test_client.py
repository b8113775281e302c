"""The Python client, as LangGraph and LangChain use it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import zipfile
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict
from uuid import UUID, uuid4

import psycopg
import psycopg_pool
import pytest
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, interrupt
from psycopg.errors import InsufficientPrivilege, InvalidParameterValue, ObjectNotInPrerequisiteState

from pg_llm_client import PgLlmChatMessageHistory, PgLlmSaver
from pg_llm_client import text as client_text
from tests.client_support import of, put, values
from tests.support import Client, Database, raises
from tools.cluster import ROOT

USER = UUID(int=1)


class State(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]
    turns: int


def agent(saver: BaseCheckpointSaver[Any], steps: int = 1) -> Any:
    """Return a graph that says so many things."""

    def speak(state: State) -> dict[str, Any]:
        return {"messages": [AIMessage(f"answer {state['turns']}: {'x' * 300}")], "turns": state["turns"] + 1}

    builder = StateGraph(State)
    builder.add_node("speak", speak)
    builder.add_edge(START, "speak")
    builder.add_conditional_edges("speak", lambda state: "speak" if state["turns"] < steps else END)
    return builder.compile(checkpointer=saver)


@pytest.fixture
def saver(database: Database) -> PgLlmSaver:
    """A saver of tenant a."""
    return PgLlmSaver(database.client("app").connection, tenant="a")


@contextmanager
def pool(database: Database) -> Iterator[psycopg_pool.ConnectionPool]:
    dsn = database.cluster.dsn(database.name, "app")
    with psycopg_pool.ConnectionPool(dsn, min_size=2, max_size=8, kwargs={"autocommit": True}) as connections:
        yield connections


def counted_right(db: Client) -> bool:
    """Tell whether references are as many as counted."""
    return db.rows("select * from llm.verify_checkpoints()") == []


def test_the_saver_conforms_to_langgraphs_own_suite(database: Database) -> None:
    @checkpointer_test(name="PgLlmSaver")
    async def saver() -> AsyncGenerator[BaseCheckpointSaver[Any]]:
        dsn = database.cluster.dsn(database.name, "app")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            yield PgLlmSaver(connection, tenant="a")

    report = asyncio.run(validate(saver))
    assert {name: result.failures for name, result in report.results.items() if not result.passed} == {}
    assert len(report.results) == 8
    assert counted_right(database.client())


def test_a_synchronous_pool_serves_asynchronous_methods_as_well(database: Database) -> None:
    with pool(database) as connections:
        saver = PgLlmSaver(connections, tenant="a")
        result = asyncio.run(agent(saver, 3).ainvoke({"messages": [HumanMessage("hello")], "turns": 0}, of("t")))
        assert len(result["messages"]) == 4
        assert values(saver, of("t"))["messages"] == result["messages"]


def test_an_asynchronous_pool_serves_a_graph(database: Database) -> None:
    async def run() -> list[BaseMessage]:
        dsn = database.cluster.dsn(database.name, "app")
        async with psycopg_pool.AsyncConnectionPool(dsn, open=False, kwargs={"autocommit": True}) as connections:
            saver = PgLlmSaver(connections, tenant="a")
            await agent(saver, 3).ainvoke({"messages": [HumanMessage("hello")], "turns": 0}, of("t"))
            found = await saver.aget_tuple(of("t"))
            assert found
            assert len([each async for each in saver.alist(of("t"))]) == 5
            with pytest.raises(TypeError, match="use the asynchronous methods"):
                saver.get_tuple(of("t"))
            messages: list[BaseMessage] = found.checkpoint["channel_values"]["messages"]
            return messages

    assert [message.type for message in asyncio.run(run())] == ["human", "ai", "ai", "ai"]


def test_a_graph_goes_on_in_another_process(database: Database, saver: PgLlmSaver) -> None:
    agent(saver).invoke({"messages": [HumanMessage("one")], "turns": 0}, of("t"))
    other = PgLlmSaver(database.client("app").connection, tenant="a")
    result = agent(other, 2).invoke({"messages": [HumanMessage("two")]}, of("t"))
    assert [message.type for message in result["messages"]] == ["human", "ai", "human", "ai"]
    assert values(saver, of("t"))["messages"] == result["messages"]
    assert values(PgLlmSaver(database.client("app").connection, tenant="a"), of("t"))["messages"] == result["messages"]


def test_an_interrupted_run_is_resumed(saver: PgLlmSaver) -> None:
    def ask(state: State) -> dict[str, Any]:
        return {"messages": [AIMessage(f"you said {interrupt('what?')}")]}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_edge(START, "ask")
    graph = builder.compile(checkpointer=saver)
    graph.invoke({"messages": [], "turns": 0}, of("t"))
    assert graph.get_state(of("t")).interrupts[0].value == "what?"
    assert graph.invoke(Command(resume="this"), of("t"))["messages"][-1].content == "you said this"


def test_time_travel_forks_a_thread_without_copying_it(db: Client, saver: PgLlmSaver) -> None:
    graph = agent(saver, 5)
    graph.invoke({"messages": [HumanMessage("hello")], "turns": 0}, of("t"))
    whole = values(saver, of("t"))["messages"]
    third = next(state for state in graph.get_state_history(of("t")) if len(state.values["messages"]) == 3)
    before = db.one("select count(*) from llm.checkpoint_pieces where number = 1")
    forked = graph.update_state(third.config, {"messages": [AIMessage("another answer " * 10)]})
    assert [message.content for message in values(saver, forked)["messages"]] == [
        *(message.content for message in whole[:3]), "another answer " * 10
    ]  # fmt: skip
    assert values(saver, third.config)["messages"] == whole[:3]
    assert db.one("select count(*) from llm.checkpoint_pieces where number = 1") == before
    assert graph.invoke(None, forked)["messages"][3].content == "another answer " * 10


def test_what_a_step_adds_is_all_that_is_stored(saver: PgLlmSaver, db: Client) -> None:
    agent(saver, 100).invoke({"messages": [HumanMessage("hello")], "turns": 0}, of("t") | {"recursion_limit": 200})
    with db.tenant("a"):
        _, checkpoints, _, stored, whole = db.row("select * from llm.checkpoint_usage('t')")
    assert checkpoints == 102
    assert whole > 40 * stored


def test_a_list_is_stored_from_where_it_changed(saver: PgLlmSaver, db: Client) -> None:
    words = [f"word {number} {'x' * 50}" for number in range(100)]
    config = put(saver, of("t"), words=words)
    for changed in ([*words[:50], "other", *words[51:]], words[:20], [*words[:20], "y" * 200], words[1:], [], words):
        config = put(saver, config, words=changed)
        assert values(saver, config)["words"] == changed
        assert values(PgLlmSaver(db.connection, tenant="a"), config)["words"] == changed
    assert [each.checkpoint["channel_values"]["words"] for each in saver.list(of("t"))] == [
        words, [], words[1:], [*words[:20], "y" * 200], words[:20], [*words[:50], "other", *words[51:]], words
    ]  # fmt: skip
    assert counted_right(db)


def test_values_of_all_kinds_come_back(saver: PgLlmSaver, database: Database) -> None:
    wanted = {
        "none": None, "nan": "NaN", "number": 1.0, "large": 2**63, "bytes": b"\0\xff" * 5_000, "text": "a\0b \N{GRINNING FACE} \u241b0000",
        "set": {1, 2}, "uuid": uuid4(), "empty": [], "nested": {"list": [{"a": [None, True]}] * 200},
        "messages": [SystemMessage("s"), HumanMessage("h" * 3_000), AIMessage("", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "1"}]),
                     ToolMessage("r", tool_call_id="1")],
    }  # fmt: skip
    config = put(saver, of("t"), **wanted)
    assert values(saver, config) == wanted
    assert values(saver, config) == wanted, "a second time, of what was remembered"
    assert values(PgLlmSaver(database.client("app").connection, tenant="a"), config) == wanted


def test_a_megabyte_of_state_is_stored_once(saver: PgLlmSaver, db: Client) -> None:
    document = "".join(chr(97 + number * 7919 % 26) for number in range(1_000_000))
    config = put(saver, of("one"), document=document)
    put(saver, of("two"), document=document)
    saver.put_writes(config, [("document", document)], "task")
    assert values(saver, of("two"))["document"] == document
    assert db.column("select refs from llm.checkpoint_blobs where octet_length(content) > 900000") == [3]
    saver.delete_thread("one")
    assert db.column("select refs from llm.checkpoint_blobs") == [1]
    assert values(saver, of("two"))["document"] == document
    saver.delete_thread("two")
    assert db.one("select count(*) from llm.checkpoint_blobs") == 0


def test_a_value_that_the_parent_lost_is_sent_again(saver: PgLlmSaver, db: Client) -> None:
    config = put(saver, of("t"), kept=["x" * 300])
    saver.delete_thread("t")
    checkpoint = empty_checkpoint() | {"channel_values": {"kept": ["x" * 300]}, "channel_versions": {"kept": 1}}
    config = saver.put(config, checkpoint, {}, {})
    assert values(saver, config) == {"kept": ["x" * 300]}


def test_metadata_keeps_nul_and_lone_surrogates(saver: PgLlmSaver) -> None:
    odd = {"nul\0key": "a\0b", "surrogate": "\ud800", "mark": "\u241b0000", "nested": [{"x": "\0"}], "emoji": "\N{GRINNING FACE}", "slash": "\\u0000"}
    saver.put(of("t"), empty_checkpoint(), odd, {})  # type: ignore[arg-type]
    found = saver.get_tuple(of("t"))
    assert found
    assert found.metadata == odd
    assert len(list(saver.list(of("t"), filter={"nul\0key": "a\0b"}))) == 1
    assert list(saver.list(of("t"), filter={"nul\0key": "ab"})) == []


@pytest.mark.parametrize("value", ["", "a\0", "\ud800x", "\u241b", "\u241bD800", "\\u0000", "\\\\u241b", {"\0": ["\0"]}])
def test_text_is_cleaned_as_the_server_does_it(db: Client, value: Any) -> None:
    document = client_text.dumps(value)
    assert client_text.loads(document) == value
    if isinstance(value, str):
        cleaned = db.one("select llm.clean_text(%s)", value.encode("utf-8", "surrogatepass"))
        assert client_text.original(client_text.clean(value)) == value
        assert "\ud800" in value or cleaned == client_text.clean(value)


def test_threads_are_a_tenants_and_a_users(database: Database) -> None:
    """RLS-02, RLS-04"""
    connection = database.client("app").connection
    everybody = PgLlmSaver(connection, tenant="a")
    ann, bob = (PgLlmSaver(connection, tenant="a", user_id=UUID(int=number)) for number in (1, 2))
    other = PgLlmSaver(connection, tenant="b")
    put(ann, of("ann's"), secret=["of ann"] * 100)
    put(bob, of("bob's"), secret=["of bob"] * 100)
    put(other, of("ann's"), secret=["of b"] * 100)
    assert values(ann, of("ann's")) == {"secret": ["of ann"] * 100}
    assert values(everybody, of("ann's")) == {"secret": ["of ann"] * 100}
    assert values(other, of("ann's")) == {"secret": ["of b"] * 100}
    assert bob.get_tuple(of("ann's")) is None
    assert [each.config["configurable"]["thread_id"] for each in bob.list(None)] == ["bob's"]
    for act in (
        lambda: put(bob, of("ann's"), secret=["of bob"]),
        lambda: bob.put_writes(of("ann's", checkpoint_id="1"), [("a", "b")], "task"),
    ):
        with raises(InsufficientPrivilege, "is not this user's", hint="another thread_id"):
            act()
    bob.delete_thread("ann's")
    bob.prune(["ann's"], strategy="delete")
    assert values(ann, of("ann's")) == {"secret": ["of ann"] * 100}
    with pytest.raises(psycopg.errors.NoDataFound, match="does not exist"):
        bob.copy_thread("ann's", "copy")
    with raises(ObjectNotInPrerequisiteState, "no tenant is set", hint="set_tenant"):
        PgLlmSaver(connection).get_tuple(of("ann's"))


def test_many_savers_put_at_once(database: Database, db: Client) -> None:
    document = ["shared document"] * 1_000
    with pool(database) as connections:
        savers = [PgLlmSaver(connections, tenant="a") for _ in range(8)]

        def work(number: int) -> None:
            saver = savers[number]
            for turn in range(10):
                config = put(saver, of(f"thread {number % 4}"), document=document, own=[f"{number}.{turn}"] * 100)
                saver.put_writes(config, [("document", document), ("own", number)], f"task {number}")
                assert values(saver, config) == {"document": document, "own": [f"{number}.{turn}"] * 100}

        with ThreadPoolExecutor(8) as workers:
            list(workers.map(work, range(8)))
            list(workers.map(lambda number: savers[number].prune([f"thread {number % 4}"]), range(8)))
        assert counted_right(db)
        savers[0].prune([f"thread {number}" for number in range(4)], strategy="delete")
    assert db.one("select count(*) from llm.checkpoint_blobs") == 0


def test_listing_goes_on_from_page_to_page(saver: PgLlmSaver) -> None:
    config = of("t")
    for number in range(120):
        config = put(saver, config, number=number)
    found = list(saver.list(of("t")))
    assert [each.checkpoint["channel_values"]["number"] for each in found] == list(range(119, -1, -1))
    assert len(list(saver.list(of("t"), limit=70))) == 70
    assert len(list(saver.list(None, limit=70))) == 70
    assert len(list(saver.list(of("t"), before=found[60].config))) == 59
    assert list(saver.list(of("t"), limit=0)) == []
    only = list(saver.list(found[60].config))
    assert [each.config for each in only] == [found[60].config]


def test_versions_of_another_saver_go_on_in_their_form(saver: PgLlmSaver) -> None:
    assert saver.get_next_version(None, None) == 1
    assert saver.get_next_version(41, None) == 42
    assert saver.get_next_version("0041.5", None).startswith(f"{42:032}.")


def test_another_serializer_is_taken_as_it_is(database: Database) -> None:
    class Reversed:
        def dumps_typed(self, value: Any) -> tuple[str, bytes]:
            kind, data = JsonPlusSerializer().dumps_typed(value)
            return f"{kind}+reversed", data[::-1]

        def loads_typed(self, data: tuple[str, bytes]) -> Any:
            return JsonPlusSerializer().loads_typed((data[0].partition("+")[0], data[1][::-1]))

    saver = PgLlmSaver(database.client("app").connection, tenant="a", serde=Reversed())
    config = of("t")
    for count in (100, 101, 102):
        config = put(saver, config, words=["word"] * count)
        assert values(saver, config) == {"words": ["word"] * count}


def test_misuse_is_told(saver: PgLlmSaver) -> None:
    with pytest.raises(TypeError, match="a single string"):
        saver.prune("thread")
    with pytest.raises(InvalidParameterValue):
        put(saver, of(""))


def test_neither_langgraph_nor_langchain_is_imported_before_it_is_needed() -> None:
    script = "import pg_llm_client, sys; print([name for name in sys.modules if name.startswith('lang')], hasattr(pg_llm_client, 'nothing'))"
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert found.stdout == "[] False\n"


def test_a_chat_history_keeps_messages_exactly(database: Database) -> None:
    connection = database.client("app").connection
    history = PgLlmChatMessageHistory(connection, UUID(int=9), tenant="a", user_id=USER)
    assert history.messages == []
    wanted = [
        SystemMessage("be brief\0", id="s"),
        HumanMessage([{"type": "text", "text": "hello"}, "and more"], name="ann"),
        AIMessage("", tool_calls=[{"name": "f", "args": {"x": 1}, "id": "1", "type": "tool_call"}],
                  usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}),
        ToolMessage("fails", tool_call_id="1", status="error", artifact={"a": 1}),
        AIMessage("done", additional_kwargs={"deep": [1.5]}),
    ]  # fmt: skip
    history.add_messages(wanted[:2])
    PgLlmChatMessageHistory(connection, UUID(int=9), tenant="a", user_id=USER).add_messages(wanted[2:])
    assert history.messages == wanted
    client = Client(connection)
    with client.tenant("a"):
        assert client.rows("select role, token_count from llm.get_messages(%s)", UUID(int=9)) == [
            ("system", None), ("user", None), ("assistant", 2), ("tool", None), ("assistant", None)
        ]  # fmt: skip
        client.run("select llm.append_message(%s, 'user', 'by another client')", UUID(int=9))
    assert history.messages[-1].content == "by another client"
    assert PgLlmChatMessageHistory(connection, UUID(int=9), tenant="b").messages == []
    history.clear()
    assert history.messages == []
    history.messages = wanted[:1]
    assert history.messages == wanted[:1]
    with pytest.raises(ValueError, match="has no place in a conversation"):
        history.add_messages([wanted[0], ChatMessage(content="x", role="other")])
    assert history.messages == wanted[:1]


def test_a_chat_history_stores_plain_text_plainly(database: Database) -> None:
    connection = database.client("app").connection
    history = PgLlmChatMessageHistory(connection, UUID(int=9), tenant="a")
    wanted = [HumanMessage("hello"), AIMessage("hi"), SystemMessage("brief"), HumanMessage("NUL \0, \u241b, \ud800"), AIMessage("x", id="1")]
    for message in wanted:
        history.add_messages([message])
    assert history.messages == wanted
    client = Client(connection)
    with client.tenant("a"):
        assert client.column("select metadata is null from llm.get_messages(%s)", UUID(int=9)) == [True] * 4 + [False]


def test_a_chat_history_reads_what_others_wrote(database: Database) -> None:
    connection = database.client("app").connection
    history = PgLlmChatMessageHistory(connection, UUID(int=9), tenant="a")
    history.add_messages([HumanMessage("hello")])
    client = Client(connection)
    with client.tenant("a"):
        client.run("""select llm.append_message(%s, 'user', p_parts => '[{"type": "text", "text": "look"}]')""", UUID(int=9))
        client.run("select llm.append_message(%s, 'tool', 'result')", UUID(int=9))
    kinds = [HumanMessage("hello"), HumanMessage([{"type": "text", "text": "look"}]), ToolMessage("result", tool_call_id="")]
    assert history.messages == kinds


def test_a_chat_history_is_asynchronous_too(database: Database) -> None:
    async def run() -> list[BaseMessage]:
        dsn = database.cluster.dsn(database.name, "app")
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            history = PgLlmChatMessageHistory(connection, UUID(int=9), tenant="a")
            await history.aadd_messages([HumanMessage("hello")])
            found = await history.aget_messages()
            await history.aclear()
            assert await history.aget_messages() == []
            return found

    assert asyncio.run(run()) == [HumanMessage("hello")]


def test_the_python_of_the_page_runs(database: Database) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/client.md").read_text(), re.DOTALL | re.MULTILINE)
    names = {"DSN": database.cluster.dsn(database.name, "app"), "ADMIN_DSN": database.cluster.dsn(database.name, "admin")}
    exec("\n".join(blocks), names)  # noqa: S102 - our own page
    names["connection"].close()  # type: ignore[attr-defined]


def test_the_client_is_built_as_a_wheel(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(ROOT / "python/pg_llm_client"),
    ]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("pg_llm_client-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {
        f"pg_llm_client/{name}"
        for name in ("__init__.py", "py.typed", "saver.py", "history.py", "connection.py", "values.py", "text.py", "vectorstore.py", "embed.py")
    } <= set(names)
