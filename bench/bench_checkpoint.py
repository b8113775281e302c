"""Checkpoints of a LangGraph run beside langgraph-checkpoint-postgres: see README.md."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any, TypedDict
from uuid import uuid4

import psycopg
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from psycopg.rows import dict_row

from bench.support import AtLeast, database, fact, kept, line, one, title
from pg_llm_client import PgLlmSaver
from tools.cluster import Cluster

STEPS = 200

#: What the messages say.
PROSE = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))

OURS = ("llm.checkpoint_threads", "llm.checkpoints", "llm.checkpoint_pieces", "llm.checkpoint_blobs", "llm.checkpoint_writes")
THEIRS = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")


class State(TypedDict):
    """What the graph works on."""

    messages: Annotated[list[AnyMessage], add_messages]
    turns: int


def paragraphs() -> Iterator[str]:
    """Yield real prose, for ever."""
    texts = [part for path in PROSE for part in path.read_text().split("\n\n") if 100 <= len(part) <= 2_000]
    return cycle(texts)


def graph(saver: BaseCheckpointSaver[Any], steps: int) -> Any:
    """Return an agent that calls a tool at every other step, so many steps in all."""
    prose = paragraphs()

    def model(state: State) -> dict[str, Any]:
        call = {"name": "search", "args": {"query": next(prose)[:60]}, "id": str(uuid4())}
        return {"messages": [AIMessage(next(prose), id=str(uuid4()), tool_calls=[call])], "turns": state["turns"] + 1}

    def tool(state: State) -> dict[str, Any]:
        asked = state["messages"][-1]
        assert isinstance(asked, AIMessage)
        return {"messages": [ToolMessage(next(prose), id=str(uuid4()), tool_call_id=asked.tool_calls[0]["id"])]}

    builder = StateGraph(State)
    builder.add_node("model", model)
    builder.add_node("tool", tool)
    builder.add_edge(START, "model")
    builder.add_edge("model", "tool")
    builder.add_conditional_edges("tool", lambda state: "model" if state["turns"] < steps // 2 else END)
    return builder.compile(checkpointer=saver)


class Watch:
    """Adds up the time that a saver takes, method by method."""

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self.saver = saver
        self.seconds: dict[str, list[float]] = {}
        for name in ("get_tuple",):
            setattr(saver, name, self._timed(name, getattr(saver, name)))

    def _timed(self, name: str, method: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            start = perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self.seconds.setdefault(name, []).append(perf_counter() - start)

        return call

    def run(self, steps: int) -> dict[str, float]:
        """Run the agent in a new thread, then load its last state some times; return microseconds a step, and a load."""
        self.seconds.clear()
        config: Any = {"configurable": {"thread_id": str(uuid4())}, "recursion_limit": steps + 10}
        start = perf_counter()
        graph(self.saver, steps).invoke({"messages": [HumanMessage("Tell me all.", id=str(uuid4()))], "turns": 0}, config, durability="sync")
        whole = perf_counter() - start
        self.seconds.clear()
        for _ in range(20):
            loaded = self.saver.get_tuple(config)
            assert loaded
            assert len(loaded.checkpoint["channel_values"]["messages"]) == steps + 1
        return {"load": median(self.seconds["get_tuple"]) * 1e6, "run": whole / steps * 1e6}


class Recorder(InMemorySaver):
    """Keeps the calls that a run makes, so that they can be made again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        """Store a checkpoint."""
        values = {name: list(value) if isinstance(value, list) else value for name, value in checkpoint["channel_values"].items()}
        self.calls.append(("put", (config, {**checkpoint, "channel_values": values}, metadata, new_versions)))
        return super().put(config, checkpoint, metadata, new_versions)

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        """Store what a task wrote."""
        self.calls.append(("put_writes", (config, writes, task_id, task_path)))
        super().put_writes(config, writes, task_id, task_path)


def saves(calls: list[tuple[str, tuple[Any, ...]]], savers: tuple[BaseCheckpointSaver[Any], ...], steps: int) -> list[float]:
    """Make the calls of a run on each saver, in turns call by call; return each one's microseconds a step."""
    thread = str(uuid4())
    seconds = [0.0] * len(savers)
    for number, (name, (config, *arguments)) in enumerate(calls):
        there = {**config, "configurable": {**config["configurable"], "thread_id": thread}}
        for place in (0, 1) if number % 2 else (1, 0):
            start = perf_counter()
            getattr(savers[place], name)(there, *arguments)
            seconds[place] += perf_counter() - start
    return [each / steps * 1e6 for each in seconds]


def size(connection: psycopg.Connection, tables: tuple[str, ...]) -> int:
    """Return the bytes of tables, with their indexes and all."""
    return int(one(connection, "select sum(pg_total_relation_size(name::regclass)) from unnest(%s::text[]) name", list(tables)))


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    steps, rounds = STEPS, 2 if quick else 7
    with (
        database(cluster, "checkpoint") as superuser,
        psycopg.Connection.connect(cluster.dsn("checkpoint"), autocommit=True, prepare_threshold=0, row_factory=dict_row) as peer,
        cluster.connect("checkpoint", "app") as app,
    ):
        superuser.execute("grant llm_app to app")
        PostgresSaver(peer).setup()
        app.prepare_threshold = 0
        ours, theirs = Watch(PgLlmSaver(app, tenant="acme")), Watch(PostgresSaver(peer))
        before = size(superuser, OURS), size(superuser, THEIRS)
        times: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
        ours.run(4)
        theirs.run(4)
        for _ in range(rounds):
            times["ours"].append(ours.run(steps))
            times["theirs"].append(theirs.run(steps))
        after = size(superuser, OURS), size(superuser, THEIRS)
        time = {f"{who} {what}": median(each[what] for each in runs) for who, runs in times.items() for what in ("load", "run")}
        title(f"a LangGraph run of {steps} steps, a message each (synchronous durability; the tenant is set in each call)")
        peer_name = "langgraph-checkpoint-postgres"
        line(f"loading {steps + 1} messages", time["ours load"], peer_name, time["theirs load"], AtLeast(1.2))
        line("the whole run, a step", time["ours run"], peer_name, time["theirs run"])
        grown = [(now - then) / rounds for now, then in zip(after, before, strict=True)]
        recorder = Recorder()
        Watch(recorder).run(steps)
        for commit in ("on", "off"):
            for connection in (peer, app):
                connection.execute(f"set synchronous_commit = {commit}")
            both = [saves(recorder.calls, (ours.saver, theirs.saver), steps) for _ in range(rounds)]
            one_step, peers = (median(each[place] for each in both) for place in (0, 1))
            line(f"saving a step, synchronous_commit {commit}", one_step, peer_name, peers, AtLeast(1.2))
        share = grown[0] / grown[1]
        fact(
            "bytes on disk, a run", f"{grown[0] / 1024:,.0f} kB", f"peer {grown[1] / 1024:,.0f} kB; {share:.2f}x, bar <= 0.25x  {kept(share <= 0.25)}"
        )
        for table in OURS:
            fact(f"  {table}", f"{size(superuser, (table,)) / rounds / 1024:,.0f} kB")
