"""Scene: somebody asks about pg_llm and is answered with its own pages; branches, search, a context window, three shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from demo.stage import Stage

PAGES = Path(__file__).parent.parent / "docs"

#: Tokens of the context window: what a small local model takes.
TOKENS = 1200

APPENDERS = 16
APPENDS = 25


def play(stage: Stage) -> None:
    """Play the scene."""
    with stage.connect() as connection:
        connection.execute("create role reader_of_pages login in role llm_app")
        connection.execute("select llm.bind_role('reader_of_pages', 'acme')")
    with stage.connect("reader_of_pages") as connection:
        conversation = take_in(stage, connection)
        branch(stage, connection, conversation)
        look_up(stage, connection, conversation)
        choose(stage, connection, conversation)
        give_out(stage, connection, conversation)
        append_together(stage, connection, conversation)


def transcript() -> Iterator[dict[str, Any]]:
    """Yield the messages of a conversation about the pages, in the shape of OpenAI."""
    yield {"role": "system", "content": "Answer questions about pg_llm. Quote its documentation."}
    for page in sorted(PAGES.glob("*.md")):
        if page.stem == "reference":
            continue
        title, *sections = re.split(r"^#+ ", page.read_text(), flags=re.MULTILINE)[1:]
        for number, section in enumerate([title, *sections]):
            heading, _, text = section.partition("\n")
            call = f"{page.stem}_{number}"
            arguments = json.dumps({"page": page.name, "section": heading}, separators=(",", ":"))
            yield {"role": "user", "content": f"What does {page.name} say about “{heading.strip('`')}”?"}
            yield {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": call, "type": "function", "function": {"name": "read_page", "arguments": arguments}}],
            }
            yield {"role": "tool", "tool_call_id": call, "content": text.strip()}
            yield {"role": "assistant", "content": f"It says: {text.strip().partition('```')[0].strip()}"}


def rows(connection: psycopg.Connection, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
    """Run a statement, in a transaction of its own, and return its rows."""
    return connection.execute(statement, arguments or None).fetchall()


def take_in(stage: Stage, connection: psycopg.Connection) -> UUID:
    """Import the transcript."""
    stage.scene("A conversation about the documentation, with calls of a tool")
    document = json.dumps(list(transcript()), ensure_ascii=False)
    with stage.step("select llm.import_conversation(transcript, 'openai')") as step:
        ((conversation,),) = rows(connection, "select llm.import_conversation(%s, 'openai', 'About pg_llm')", document)
        ((messages,),) = rows(connection, "select message_count from llm.get_conversation(%s)", conversation)
        step.result = f"{messages} messages, {len(document) / 1024:.0f} kB"
    ((same,),) = rows(connection, "select llm.export_conversation(%s) = %s::jsonb", conversation, document)
    stage.say(f"  Exported again it is {'the same document, to the last digit' if same else 'DIFFERENT'}.")
    if not same:
        raise SystemExit("The exported transcript differs.")
    stage.sql("select seq, role, content from llm.get_messages(…, p_after => 1, p_limit => 4);")
    page = rows(connection, "select seq, role, left(content::text, 80) from llm.get_messages(%s, p_after => 1, p_limit => 4)", conversation)
    stage.table(("seq", "role", "content"), page)
    return UUID(str(conversation))


def branch(stage: Stage, connection: psycopg.Connection, conversation: UUID) -> None:
    """Ask an earlier question differently."""
    stage.scene("Another question in an earlier one's place: a branch, nothing is lost")
    ((message, seq),) = rows(
        connection,
        "select message_id, seq from llm.get_messages(%s, p_limit => null) where role = 'user' order by seq offset 20 limit 1",
        conversation,
    )
    rows(connection, "select llm.edit_message(%s, 'Is a cached value ever stale?', p_name => 'asked differently')", message)
    rows(connection, "select llm.append_message(%s, 'assistant', 'No: its check is a comparison in shared memory.')", conversation)
    stage.sql(f"select llm.edit_message(message_{seq}, 'Is a cached value ever stale?');  select * from llm.branches(…);")
    stage.table(
        ("branch", "from", "after message", "name", "active", "own messages"),
        rows(connection, "select branch, parent_branch, forked_at, name, is_active, message_count from llm.branches(%s)", conversation),
    )
    connection.execute("select llm.select_branch(%s, 0)", [conversation])


def look_up(stage: Stage, connection: psycopg.Connection, conversation: UUID) -> None:
    """Search, before and after the index is there."""
    stage.scene("Found at once, whether the index has come to it or not")
    query = '"never stale" or "coherent cache"'
    with stage.step("select llm.search_messages(…), not indexed") as step:
        before = rows(connection, "select seq, headline from llm.search_messages(%s, %s, 3)", query, conversation)
        step.result = f"{len(before)} messages"
    with stage.step("select llm.index_messages()") as step:
        ((count,),) = rows(connection, "select llm.index_messages()")
        step.result = f"{count} messages indexed"
    with stage.step("select llm.search_messages(…), indexed") as step:
        after = rows(connection, "select seq, headline from llm.search_messages(%s, %s, 3)", query, conversation)
        step.result = "the same" if after == before else "DIFFERENT"
    stage.table(("seq", "what was found"), [(seq, " ".join(headline.split())[:90]) for seq, headline in after])


def choose(stage: Stage, connection: psycopg.Connection, conversation: UUID) -> None:
    """Show a context window with its reasons."""
    stage.scene(f"What to send to a model that takes {TOKENS} tokens, and why")
    ((middle, pinned),) = rows(
        connection,
        "select max(seq) / 2, (array_agg(message_id order by seq))[2] from llm.get_messages(%s, p_limit => null) where role = 'user'",
        conversation,
    )
    connection.execute("select llm.pin_message(%s)", [pinned])
    connection.execute("select llm.save_summary(%s, %s, 'Half of the pages were quoted, in the order of their names.')", [conversation, middle])
    stage.sql(f"select * from llm.context_window(…, {TOKENS}, p_query => 'caches that are never stale');")
    window = rows(connection, "select * from llm.context_window(%s, %s, 'caches that are never stale')", conversation, TOKENS)
    stage.table(
        ("seq", "role", "tokens", "reason", "content"),
        [(seq, role, tokens, reason, json.dumps(content, ensure_ascii=False)[:50]) for seq, _, role, content, tokens, _, reason in window],
    )
    stage.say(f"  {sum(row[4] for row in window)} tokens, estimated by length.")


def give_out(stage: Stage, connection: psycopg.Connection, conversation: UUID) -> None:
    """Export in three shapes."""
    stage.scene("The same call of a tool in three shapes")
    for shape in ("openai", "anthropic", "langchain"):
        ((exported,),) = rows(connection, "select llm.export_conversation(%s, %s)", conversation, shape)
        messages = exported["messages"] if isinstance(exported, dict) else exported
        call = next(message for message in messages if "read_page" in json.dumps(message))
        stage.sql(f"select llm.export_conversation(…, '{shape}');")
        text = json.dumps(call, ensure_ascii=False)
        stage.say(f"  {text[:200]}{'…' if len(text) > 200 else ''}".replace("[", "\\["))


def append_together(stage: Stage, connection: psycopg.Connection, conversation: UUID) -> None:
    """Append by many clients at once."""
    stage.scene(f"{APPENDERS} clients append to one conversation")

    def append(number: int) -> None:
        with stage.connect("reader_of_pages") as client:
            for _ in range(APPENDS):
                client.execute("select llm.append_message(%s, 'user', %s, p_token_count => 1)", [conversation, f"client {number}"])

    ((before,),) = rows(connection, "select last_seq from llm.get_conversation(%s)", conversation)
    with stage.step(f"{APPENDERS} × {APPENDS} × select llm.append_message(…)") as step:
        with ThreadPoolExecutor(APPENDERS) as pool:
            list(pool.map(append, range(APPENDERS)))
        ((last, numbers),) = rows(
            connection, "select max(seq), count(distinct seq) from llm.messages where conversation_id = %s and seq > %s", conversation, before
        )
        step.result = f"numbers {before + 1} to {last}, {'without a gap' if last - before == numbers == APPENDERS * APPENDS else 'WITH A GAP'}"
