"""Appending and reading messages beside LangChain's history and hand-written SQL: see README.md for what is compared with what."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from time import perf_counter
from uuid import UUID, uuid4

import psycopg
from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_postgres import PostgresChatMessageHistory

from bench.support import AtLeast, database, fact, kept, line, medians, once, one, pgbench, title
from pg_llm_client import PgLlmChatMessageHistory
from tools.cluster import Cluster

PROSE = (Path(__file__).parent.parent / "docs" / "coherence.md").read_text().split()

WINDOW = 50
BATCH = 1_000
MESSAGES_PER_SECOND = 50_000

#: What a developer writes instead of llm.append_message(), in one transaction, on the same tables.
TAKE_NUMBER = """
    update llm.conversations
    set last_seq = last_seq + 1, message_count = message_count + 1, token_count = token_count + %s, updated_at = clock_timestamp()
    where conversation_id = %s and deleted_at is null
    returning tenant_id, last_seq, branch, user_id
    """
INSERT = """
    insert into llm.messages (tenant_id, conversation_id, branch, seq, message_id, user_id, role, content, token_count)
    values (%s, %s, %s, %s, llm.uuid_v7(), %s, 'user', to_jsonb(%s::text), %s)
    returning message_id
    """
SELECT = """
    select role, content #>> '{}' from (
        select seq, role, content from llm.messages
        where conversation_id = %s and branch = 0 and deleted_at is null order by seq desc limit 50
    ) m order by seq
    """
TURN = "select role, content #>> '{}' from llm.append_and_read(%s, 'user', %s, p_token_count => 20)"


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    with database(cluster, "chat") as superuser:
        superuser.execute("create role hand login")
        superuser.execute("grant llm_app to bound, hand")
        superuser.execute("grant insert, update on llm.conversations, llm.messages to hand")
        superuser.execute("select llm.bind_role('bound', 'acme'), llm.bind_role('hand', 'acme')")
        one_by_one(cluster, superuser, quick=quick)
        batches(cluster, quick=quick)
        together(cluster, quick=quick)


def text(words: int) -> str:
    """Return so many words of prose."""
    start = text.position = (getattr(text, "position", 0) + words) % (len(PROSE) - words)  # type: ignore[attr-defined]
    return " ".join(PROSE[start : start + words])


def new_conversation(connection: psycopg.Connection, messages: int) -> UUID:
    """Make a conversation with so many messages."""
    conversation: UUID = one(connection, "select llm.create_conversation('bench')")
    connection.execute("select llm.append_messages(%s, %s)", [conversation, batch(messages)])
    return conversation


def batch(messages: int, words: int = 20) -> str:
    """Return messages as JSON."""
    return json.dumps([{"role": "user", "content": text(words), "token_count": words} for _ in range(messages)], ensure_ascii=False)


def one_by_one(cluster: Cluster, superuser: psycopg.Connection, *, quick: bool) -> None:
    """Append a message and read the last 50."""
    rounds, calls, sessions = (3, 50, 100) if quick else (7, 200, 400)
    with cluster.connect("chat", "bound") as ours, cluster.connect("chat", "hand") as hand, cluster.connect("chat") as theirs:
        for connection in (ours, hand, theirs):
            connection.prepare_threshold = 0
        conversations = [new_conversation(ours, WINDOW - 1) for _ in range(sessions)]
        PostgresChatMessageHistory.create_tables(theirs, "chat_history")
        their_histories = [PostgresChatMessageHistory("chat_history", str(uuid4()), sync_connection=theirs) for _ in range(sessions)]
        our_histories = [PgLlmChatMessageHistory(ours, uuid4()) for _ in range(sessions)]
        for history in (*our_histories, *their_histories):
            history.add_messages([HumanMessage(text(20)) for _ in range(WINDOW - 1)])
        superuser.execute("vacuum analyze")

        def turn(conversation: UUID) -> list[tuple[object, ...]]:
            return ours.execute(TURN, [conversation, text(20)]).fetchall()

        def append_and_get(conversation: UUID) -> list[tuple[object, ...]]:
            ours.execute("select llm.append_message(%s, 'user', %s, p_token_count => 20)", [conversation, text(20)])
            return ours.execute("select role, content #>> '{}' from llm.get_messages(%s)", [conversation]).fetchall()

        def append_by_hand(conversation: UUID) -> list[tuple[object, ...]]:
            with hand.transaction():
                row = hand.execute(TAKE_NUMBER, [20, conversation]).fetchone()
                assert row
                tenant, seq, branch, user = row
                hand.execute(INSERT, [tenant, conversation, branch, seq, user, text(20), 20]).fetchone()
            return hand.execute(SELECT, [conversation]).fetchall()

        def append_to_history(history: BaseChatMessageHistory) -> list[BaseMessage]:
            history.add_messages([HumanMessage(text(20))])
            return history.messages

        for commit in ("off", "on"):
            for connection in (ours, hand, theirs):
                connection.execute(f"set synchronous_commit = {commit}")
            time = medians(
                rounds,
                turn=repeat(turn, conversations, calls),
                calls=repeat(append_and_get, conversations, calls),
                history=repeat(append_to_history, our_histories, calls),
                hand=repeat(append_by_hand, conversations, calls),
                theirs=repeat(append_to_history, their_histories, calls),
            )
            title(f"append a message and read the last {WINDOW} (20 words each, synchronous_commit {commit})")
            line("append_and_read", time["turn"], "PostgresChatMessageHistory", time["theirs"], AtLeast(1.5))
            line("append_message, get_messages", time["calls"], "PostgresChatMessageHistory", time["theirs"])
            line("PgLlmChatMessageHistory", time["history"], "PostgresChatMessageHistory", time["theirs"])
            line("append_and_read", time["turn"], "UPDATE, INSERT, SELECT by hand", time["hand"], AtLeast(0.8))
            line("append_message, get_messages", time["calls"], "UPDATE, INSERT, SELECT by hand", time["hand"], AtLeast(0.8))


def repeat[T](call: Callable[[T], object], values: list[T], calls: int) -> Callable[[], float]:
    """Call a function with one value after the other."""
    each: Iterator[T] = cycle(values)

    def many() -> None:
        for _ in range(calls):
            call(next(each))

    return once(many, calls)


def batches(cluster: Cluster, *, quick: bool) -> None:
    """Append 1,000 messages at once."""
    rounds = 5 if quick else 15
    title(f"append_messages, {BATCH:,} at once, in a transaction of its own, a message")
    with cluster.connect("chat", "bound") as ours, cluster.connect("chat", "hand") as hand:
        conversation, other = new_conversation(ours, 1), new_conversation(ours, 1)
        for words in (20, 100):
            messages = batch(BATCH, words)
            rows = [(message["content"], words) for message in json.loads(messages)]

            def by_hand(rows: list[tuple[str, int]] = rows) -> None:
                with hand.transaction():
                    last, user = hand.execute(
                        "update llm.conversations set last_seq = last_seq + %s, message_count = message_count + %s, token_count = token_count + %s"
                        " where conversation_id = %s returning last_seq, user_id",
                        [len(rows), len(rows), sum(tokens for _, tokens in rows), other],
                    ).fetchone() or (0, None)
                    with hand.cursor() as cursor:
                        cursor.executemany(
                            "insert into llm.messages (tenant_id, conversation_id, seq, message_id, user_id, role, content, token_count)"
                            " values ('acme', %s, %s, %s, %s, 'user', to_jsonb(%s::text), %s)",
                            [(other, last - number, uuid4(), user, content, tokens) for number, (content, tokens) in enumerate(rows)],
                        )

            time = medians(
                rounds,
                ours=once(lambda messages=messages: ours.execute("select llm.append_messages(%s, %s)", [conversation, messages]), BATCH),  # type: ignore[misc]
                hand=once(by_hand, BATCH),
            )
            line(f"{words} words", time["ours"], "UPDATE, executemany INSERT by hand", time["hand"])
            rate = 1e6 / time["ours"]
            bar = f"bar >= {MESSAGES_PER_SECOND:,}  {kept(rate >= MESSAGES_PER_SECOND)}" if words == 20 else ""
            fact(f"{words} words: messages a second", f"{rate:,.0f}", bar)
        start = perf_counter()
        count = one(ours, "select llm.index_messages(10000)")
        fact("index_messages, a message", f"{(perf_counter() - start) / count * 1e6:.1f} us")


def together(cluster: Cluster, *, quick: bool) -> None:
    """Append by 16 clients to one conversation, and to one each."""
    transactions = 50 if quick else 300
    title("16 clients append, a transaction each, synchronous_commit on, a message")
    with cluster.connect("chat", "bound") as app:
        shared = one(app, "select llm.create_conversation('shared', p_conversation_id => gen_random_uuid())")
        own = [one(app, "select llm.create_conversation('own')") for _ in range(16)]
    cases = {
        "shared": f"select * from llm.append_message('{shared}', 'user', 'Hello');",
        "own": f"select * from llm.append_message((array{[str(each) for each in own]}::uuid[])[:client_id + 1], 'user', 'Hello');",
    }
    time = medians(3, **{name: pgbench(cluster, "chat", "bound", script, clients=16, transactions=transactions) for name, script in cases.items()})
    line("to one conversation", time["shared"], "to one each", time["own"])
