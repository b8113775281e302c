"""Scene: a LangGraph agent reads the documentation; every step is saved, and takes the room of what it adds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypedDict

import psycopg
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from demo.config import ask
from demo.memory import ANNE
from demo.stage import Stage
from pg_llm_client import PgLlmSaver

#: What the agent reads, a page a step.
PAGES = [page for page in sorted((Path(__file__).parent.parent / "docs").glob("*.md")) if page.stem != "reference"][:30]


class State(TypedDict):
    """What the agent works on."""

    messages: Annotated[list[AnyMessage], add_messages]


def play(stage: Stage) -> None:
    """Play the scene."""
    with stage.connect("app") as app:
        graph = agent(PgLlmSaver(app, tenant="acme", user_id=ANNE))
        run(stage, app, graph)
        go_back(stage, app, graph)


def agent(saver: PgLlmSaver) -> Any:
    """Return a graph that reads a page at each step."""

    def read(state: State) -> dict[str, Any]:
        page = PAGES[len(state["messages"]) - 1]
        return {"messages": [AIMessage(f"{page.name} says: {page.read_text()}")]}

    builder = StateGraph(State)
    builder.add_node("read", read)
    builder.add_edge(START, "read")
    builder.add_conditional_edges("read", lambda state: "read" if len(state["messages"]) <= len(PAGES) else END)
    return builder.compile(checkpointer=saver)


def run(stage: Stage, app: psycopg.Connection, graph: Any) -> None:
    """Run the agent, and compare what it left with a copy of its state at each step."""
    stage.scene(f"A LangGraph agent of Anne's, saved at each of {len(PAGES)} steps")
    stage.sql('graph = builder.compile(checkpointer=PgLlmSaver(connection, tenant="acme", user_id=anne))')
    with stage.step("graph.invoke(…)") as step:
        result = graph.invoke({"messages": [HumanMessage("Read me the documentation.")]}, config(), durability="sync")
        step.result = f"{len(result['messages'])} messages, saved before the next step begins"
    usage(stage, app)


def go_back(stage: Stage, app: psycopg.Connection, graph: Any) -> None:
    """Change an earlier state, which makes a branch, and read both from the server."""
    middle = next(state for state in graph.get_state_history(config()) if len(state.values["messages"]) == len(PAGES) // 2)
    stage.say(f"Back to step {middle.metadata['step']}, and on from there with another answer. Nothing is copied, and nothing is lost:")
    stage.sql("graph.update_state(earlier_state.config, {'messages': [AIMessage('Enough for today.')]})")
    branch = graph.update_state(middle.config, {"messages": [AIMessage("Enough for today.")]})
    usage(stage, app)
    again = agent(PgLlmSaver(app, tenant="acme", user_id=ANNE))
    lengths = [len(again.get_state(place).values["messages"]) for place in (branch, middle.config)]
    stage.say(f"  As another process reads it: {lengths[0]} messages in the new branch, {lengths[1]} where it left the old one.")


def usage(stage: Stage, app: psycopg.Connection) -> None:
    """Show what the thread takes."""
    stage.sql("select * from llm.checkpoint_usage('reading');")
    statement = "select checkpoints, pieces, round(piece_bytes / 1024.0), round(value_bytes / 1024.0) from llm.checkpoint_usage('reading')"
    stage.table(("checkpoints", "pieces", "kB of values", "kB if each had its own copy"), ask(app, "acme", statement))


def config() -> Any:
    """Return where the agent's states are."""
    return {"configurable": {"thread_id": "reading"}, "recursion_limit": len(PAGES) + 10}
