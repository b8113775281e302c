"""Appending messages: numbers without a gap, exact counters, whatever happens at the same time."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.errors import (
    InvalidParameterValue,
    InvalidTextRepresentation,
    NoDataFound,
    SerializationFailure,
    UniqueViolation,
)
from psycopg.types.json import Jsonb

from tests.conftest import new_database
from tests.support import Client, Database, at_once, raises, wait_until
from tools.cluster import Cluster

ID = UUID(int=10)

#: Conversations whose numbers have a gap, or whose counters are not those of their messages.
BROKEN = """
select c.conversation_id
from llm.conversations c
cross join lateral (
    select
        count(*) as rows, coalesce(max(m.seq), 0) as newest, count(distinct m.seq) as numbers, coalesce(min(m.seq), 1) as oldest,
        count(*) filter (where m.deleted_at is null) as messages,
        coalesce(sum(m.token_count) filter (where m.deleted_at is null), 0) as tokens,
        coalesce(sum(m.cost) filter (where m.deleted_at is null), 0) as cost
    from llm.messages m
    where (m.tenant_id, m.conversation_id) = (c.tenant_id, c.conversation_id)
) m
where (c.last_seq, c.last_seq, c.last_seq, 1, c.message_count, c.token_count, c.cost)
    is distinct from (m.rows, m.newest, m.numbers, m.oldest, m.messages, m.tokens, m.cost)
"""


@pytest.fixture
def conversation(bound: Client) -> UUID:
    """An empty conversation of bound."""
    created: UUID = bound.one("select llm.create_conversation('talk')")
    return created


def append(client: Client, conversation: UUID, content: str = "x", **more: object) -> tuple[Any, ...]:
    """Append a message of a user and return its id, branch, number and whether it is new."""
    named = "".join(f", p_{name} => %s" for name in more)
    return client.row(f"select * from llm.append_message(%s, %s, %s{named})", conversation, "user", content, *more.values())


def contents(client: Client, conversation: UUID) -> list[Any]:
    return client.column("select content from llm.get_messages(%s, p_limit => null)", conversation)


def test_a_message_is_as_it_was_appended(bound: Client, conversation: UUID) -> None:
    appended = append(bound, conversation, "Héllo ✨", token_count=3, cost=0.000125, metadata=Jsonb({"k": 1}), is_pinned=True, message_id=ID)
    assert appended == (ID, 0, 1, True)
    message = bound.row("select * from llm.get_message(%s)", ID)
    assert message[:13] == (conversation, ID, 0, 1, "user", "Héllo ✨", "complete", True, 3, Decimal("0.000125"), None, None, {"k": 1})
    assert bound.row("select last_seq, message_count, token_count, cost from llm.get_conversation(%s)", conversation) == (
        1,
        1,
        3,
        Decimal("0.000125"),
    )


@pytest.mark.parametrize("statement", [
    "select llm.append_message(%s, 'user', 'x', p_create => true)",
    "select llm.append_message(%s, 'user', 'x', p_message_id => gen_random_uuid(), p_create => true)",
    """select llm.append_messages(%s, '[{"role": "user", "content": "x"}]', p_create => true)""",
])  # fmt: skip
def test_a_conversation_is_begun_with_its_first_message(bound: Client, db: Client, statement: str) -> None:
    with bound.transaction():
        bound.run("select llm.set_user(%s)", ID).run(statement, ID).run(statement, ID)
    assert bound.row("select user_id, last_seq from llm.get_conversation(%s)", ID) == (ID, 2)
    with bound.transaction():
        bound.run("select llm.set_user(%s)", UUID(int=11))
        with raises(UniqueViolation, "cannot be created", hint="taken"), bound.transaction():
            bound.run(statement, ID)
    with db.tenant("other"):
        db.run(statement, ID)
        assert db.one("select last_seq from llm.get_conversation(%s)", ID) == 1
    bound.run("select llm.delete_conversation(%s)", ID)
    with raises(UniqueViolation, "cannot be created", hint="taken"):
        bound.run(statement, ID)
    with raises(NoDataFound, "does not exist", hint="list_conversations"):
        bound.run(statement.replace("true", "false"), UUID(int=404))


def test_sixteen_begin_one_conversation(database: Database, db: Client, bound: Client) -> None:
    clients = [bound, *database.clients(15, "app")]
    at_once(clients, "select llm.append_message(%s, 'user', 'x', p_create => true)::text", ID)
    assert db.rows(BROKEN) == []
    assert db.row("select last_seq, message_count from llm.conversations") == (16, 16)


def test_cost_is_counted_exactly(bound: Client, conversation: UUID) -> None:
    for _ in range(10):
        append(bound, conversation, cost=0.1)
    assert bound.one("select cost from llm.get_conversation(%s)", conversation) == Decimal("1.0")


def test_sixteen_appenders_leave_no_gap_and_count_exactly(database: Database, db: Client, bound: Client, conversation: UUID) -> None:
    """Q-06: singly and in batches, to one conversation and to others, with changes and rollbacks in between; nobody deadlocks."""
    others = [bound.one("select llm.create_conversation('other')") for _ in range(2)]
    clients = database.clients(16, "app")

    def work(number: int) -> int:
        client, chance = clients[number], Random(number)
        kept = 0
        for _ in range(25):
            target = chance.choice([conversation, conversation, *others])
            match chance.randrange(5):
                case 0:
                    batch = [{"role": "user", "content": "b", "token_count": 2, "cost": 0.01}] * 3
                    kept += client.one("select llm.append_messages(%s, %s)", target, json.dumps(batch))
                case 1:
                    with pytest.raises(ZeroDivisionError), client.transaction():
                        append(client, target, token_count=5)
                        raise ZeroDivisionError
                case 2:
                    message, *_ = append(client, target, token_count=7, cost=0.5)
                    client.run("select llm.delete_message(%s)", message)
                case 3:
                    message, *_ = append(client, target, token_count=1, status="streaming")
                    client.run("select llm.update_message(%s, 'done', null, 'complete', 4, 0.25)", message)
                    client.run("select llm.rate_message(%s, 1)", message)
                    client.run("select llm.index_messages(50)")
                    kept += 1
                case _:
                    append(client, target, token_count=1, cost=0.001)
                    kept += 1
        return kept

    with ThreadPoolExecutor(16) as pool:
        kept = sum(pool.map(work, range(16)))
    assert db.rows(BROKEN) == []
    assert db.one("select sum(message_count) from llm.conversations") == kept
    assert db.one("select deadlocks from pg_stat_database where datname = current_database()") == 0


def test_a_message_sent_again_is_one_message(database: Database, db: Client, conversation: UUID) -> None:
    """Q-16: sixteen times at the same moment, and once more."""
    clients = database.clients(16, "app")
    statement = "select llm.append_message(%s, 'user', 'once', p_message_id => %s, p_token_count => 5)::text"
    answers = at_once(clients, statement, conversation, ID)
    assert sorted(answers) == sorted([f"({ID},0,1,f)"] * 15 + [f"({ID},0,1,t)"])
    assert clients[0].one(statement, conversation, ID) == f"({ID},0,1,f)"
    assert db.rows(BROKEN) == []
    assert db.row("select message_count, token_count from llm.conversations") == (1, 5)


def test_a_batch_sent_again_appends_what_is_new(bound: Client, db: Client, conversation: UUID) -> None:
    """Q-16"""
    messages = [{"role": "user", "content": str(number), "message_id": str(uuid4()), "token_count": 1} for number in range(6)]
    assert bound.one("select llm.append_messages(%s, %s)", conversation, json.dumps(messages[:4])) == 4
    assert bound.one("select llm.append_messages(%s, %s)", conversation, json.dumps(messages)) == 2
    assert bound.one("select llm.append_messages(%s, %s)", conversation, json.dumps(messages)) == 0
    assert contents(bound, conversation) == list("012345")
    assert db.rows(BROKEN) == []


def test_an_id_is_one_message_only(bound: Client, conversation: UUID) -> None:
    append(bound, conversation, "first", message_id=ID)
    other = bound.one("select llm.create_conversation('other')")
    for target, content in ((conversation, "second"), (other, "first")):
        with raises(UniqueViolation, match=f"message {ID} is not the one that was appended before", hint="id of its own"):
            append(bound, target, content, message_id=ID)
        with raises(UniqueViolation, match="is not the one"):
            bound.run("select llm.append_messages(%s, %s)", target, json.dumps([{"role": "user", "content": content, "message_id": str(ID)}]))
    with raises(UniqueViolation):
        twice = [{"role": "user", "content": "x", "message_id": str(UUID(int=11))}] * 2
        bound.run("select llm.append_messages(%s, %s)", conversation, json.dumps(twice))
    assert contents(bound, conversation) == ["first"]


def test_repeatable_read_conflicts_instead_of_breaking_numbers(database: Database, db: Client, conversation: UUID) -> None:
    first, second = database.clients(2, "app")
    first.run("begin isolation level repeatable read").run("select count(*) from llm.messages")
    append(second, conversation)
    with raises(SerializationFailure):
        append(first, conversation)
    first.run("rollback")
    append(first, conversation)
    assert db.rows(BROKEN) == []


@pytest.mark.parametrize(
    ("parts", "stored"),
    [
        ('"plain"', "plain"),
        ('"nul \\u0000, lone \\ud800"', "nul ␛0000, lone ␛D800"),
        ('[{"type": "text", "text": "\\u0000"}]', [{"type": "text", "text": "␛0000"}]),
        ('"é ✨ \\u2728"', "é ✨ ✨"),
        ('"the mark ␛ itself"', "the mark ␛241B itself"),
        ("[]", []),
    ],
)
def test_text_that_cannot_be_stored_is_marked(bound: Client, conversation: UUID, parts: str, stored: object) -> None:
    bound.run("select llm.append_message(%s, 'user', p_parts => %s)", conversation, parts)
    bound.run("select llm.append_messages(%s, %s)", conversation, f'[{{"role": "user", "content": {parts}}}]')
    assert contents(bound, conversation) == [stored, stored]


def test_odd_bytes_come_back(bound: Client, conversation: UUID) -> None:
    data = b"\x00 \xff \xed\xa0\x80 ok"
    bound.run("select llm.append_message(%s, 'user', llm.clean_text(%s))", conversation, data)
    assert bound.one("select llm.original_bytes(content #>> '{}') from llm.get_messages(%s)", conversation) == data


def test_a_message_of_a_megabyte(bound: Client, conversation: UUID) -> None:
    """Of words that are all different, which no tsvector could hold."""
    text = " ".join(f"{number:x}" for number in range(180_000))
    assert len(text) > 1_000_000
    append(bound, conversation, text)
    bound.run("select llm.append_messages(%s, %s)", conversation, json.dumps([{"role": "assistant", "content": [{"type": "text", "text": text}]}]))
    assert contents(bound, conversation) == [text, [{"type": "text", "text": text}]]
    assert bound.one("select count(*) from llm.search_messages('1a2b')") == 2
    assert bound.one("select llm.index_messages()") == 2
    assert bound.one("select count(*) from llm.search_messages('1a2b')") == 2


BAD = [
    ("'robot', 'x'", "the message has role 'robot'", "user, assistant, system and tool"),
    ("null, 'x'", "the message has role null", "Roles are"),
    ("'user'", "the message has content that is neither text nor parts", '"type": "text"'),
    ("'user', 'x', '\"y\"'", "the message has both p_content and p_parts", "plain text in p_content"),
    ("'user', null, '{\"type\": \"text\"}'", "content that is neither text nor parts", ""),
    ("'user', null, '[{\"text\": \"x\"}]'", "content that is neither text nor parts", ""),
    ("'user', null, '[1]'", "content that is neither text nor parts", ""),
    ("'user', null, '[[{\"type\": \"text\"}]]'", "content that is neither text nor parts", ""),
    ("'user', null, 'null'", "content that is neither text nor parts", ""),
    ("'user', 'x', p_status => 'late'", "the message has status 'late'", "streaming, complete, failed or cancelled"),
]


@pytest.mark.parametrize(("arguments", "match", "hint"), BAD)
def test_what_is_no_message_is_refused(bound: Client, conversation: UUID, arguments: str, match: str, hint: str) -> None:
    with raises(InvalidParameterValue, match=match, hint=hint):
        bound.run(f"select llm.append_message(%s, {arguments})", conversation)
    assert bound.one("select last_seq from llm.get_conversation(%s)", conversation) == 0


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"role": "robot", "content": "x"}, "message 2 has role 'robot'"),
        ({"content": "x"}, "message 2 has role null"),
        ({"role": "user"}, "message 2 has content that is neither"),
        ({"role": "user", "content": 7}, "message 2 has content that is neither"),
        ({"role": "user", "content": [{"text": "x"}]}, "message 2 has content that is neither"),
        ({"role": "user", "content": "x", "status": "late"}, "message 2 has status 'late'"),
    ],
)
def test_a_bad_message_of_a_batch_is_named_and_nothing_stored(bound: Client, conversation: UUID, bad: dict[str, object], match: str) -> None:
    good = {"role": "user", "content": "x"}
    with raises(InvalidParameterValue, match=match):
        bound.run("select llm.append_messages(%s, %s)", conversation, json.dumps([good, good, bad, good]))
    assert contents(bound, conversation) == []


@pytest.mark.parametrize("given", ["{}", "[1]", "null", '["x"]'])
def test_what_is_no_list_of_messages_is_refused(bound: Client, conversation: UUID, given: str) -> None:
    with raises(InvalidParameterValue, match="these are not messages: ", hint="role and content"):
        bound.run("select llm.append_messages(%s, %s)", conversation, given)


def test_numbers_that_cannot_be_are_refused(bound: Client, conversation: UUID) -> None:
    for more in ({"token_count": -1}, {"cost": -0.1}, {"cost": float("nan")}, {"cost": float("inf")}):
        with raises(InvalidParameterValue, match="the message has .* tokens, and cost", hint="finite"):
            append(bound, conversation, **more)
    with raises(InvalidTextRepresentation, match="this is not JSON: '{oops'", hint="double quotes"):
        bound.run("select llm.append_message(%s, 'user', p_parts => '{oops')", conversation)
    with raises(NoDataFound, match=f"conversation {conversation} has no branch 1", hint="llm.branches"):
        append(bound, conversation, branch=1)
    with raises(NoDataFound, match="has no branch -1"):
        bound.run("select llm.append_messages(%s, '[]', -1)", conversation)


def test_the_history_of_a_session_is_its_messages(bound: Client) -> None:
    session = UUID(int=7)
    conversation = bound.one("select llm.create_conversation('talk', p_session_id => %s)", session)
    append(bound, conversation, "Hello")
    bound.run(
        "select llm.append_message(%s, 'assistant', p_parts => %s)",
        conversation,
        '[{"type": "text", "text": "Hi"}, {"type": "tool_call", "id": "1", "name": "n", "arguments": {}}, {"type": "tool_result", "content": "42"}]',
    )
    append(bound, bound.one("select llm.create_conversation('no session')"), "elsewhere")
    assert bound.rows("select session_id, message, role from llm.session_history order by seq") == [
        (session, "Hello", "user"), (session, "Hi\n42", "assistant"),
    ]  # fmt: skip


def test_an_append_stays_on_its_page(bound: Client, db: Client, conversation: UUID) -> None:
    """The conversation's row is updated without touching an index (HOT)."""
    for _ in range(50):
        append(bound, conversation)
    bound.run("select pg_stat_force_next_flush()")
    updates, hot = db.row("select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'conversations'")
    assert updates >= 50
    assert hot == updates


def kill(cluster: Cluster) -> None:
    """Kill the server and all its processes, which get no time to do anything, and start it again."""
    lock = Path(cluster.datadir) / "postmaster.pid"
    postmaster = int(lock.read_text().split()[0])
    options = (Path(cluster.datadir) / "postmaster.opts").read_text().split(" ", 1)[1]
    os.kill(postmaster, signal.SIGSTOP)  # so that it starts no more of them
    children = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _status(path)[1:2] == [str(postmaster)]]
    for pid in (postmaster, *children):
        os.kill(pid, signal.SIGKILL)
    give_up = monotonic() + 30
    while any(_status(Path(f"/proc/{pid}"))[:1] not in ([], ["Z"]) for pid in (postmaster, *children)) and monotonic() < give_up:
        pass
    # A container's first process may never take note of their end; to the server that looks as if they lived.
    for left in (lock, *Path(cluster.unixsocketdir).glob(".s.PGSQL.*.lock")):
        left.unlink()
    cluster.program("pg_ctl", "start", "-w", "-s", "-D", cluster.datadir, "-l", cluster.logfile, "-o", options.strip())


def _status(path: Path) -> list[str]:
    """Return the state and the parent of a process, nothing when it is gone."""
    try:
        return (path / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return []


def test_no_acknowledged_message_is_lost_when_the_server_is_killed(own_cluster: Cluster) -> None:
    """DR-17: kill -9 under sixteen appenders, three times."""
    for database in new_database(own_cluster):
        with own_cluster.connect(database.name) as connection:
            connection.execute("select llm.bind_role('app', 'acme')")
        with own_cluster.connect(database.name, "app") as connection:
            row = connection.execute("select llm.create_conversation('survivor')").fetchone()
            assert row
            conversation = row[0]
        acknowledged: list[int] = []

        def work(number: int, conversation: UUID = conversation, acknowledged: list[int] = acknowledged, database: Database = database) -> None:
            with own_cluster.connect(database.name, "app") as connection:
                try:
                    while True:
                        cursor = connection.execute("select seq from llm.append_message(%s, 'user', %s)", [conversation, str(number)])
                        acknowledged.append(cursor.fetchone()[0])  # type: ignore[index]
                except psycopg.OperationalError:
                    pass

        for _ in range(3):
            before = len(acknowledged)
            with ThreadPoolExecutor(16) as pool:
                for number in range(16):
                    pool.submit(work, number)
                wait_until(lambda: len(acknowledged) >= before + 200)  # noqa: B023 - asked at once
                kill(own_cluster)
            with own_cluster.connect(database.name) as connection:
                assert connection.execute(BROKEN).fetchall() == []
                stored = {seq for (seq,) in connection.execute("select seq from llm.messages")}
            assert set(acknowledged) <= stored
            assert len(set(acknowledged)) == len(acknowledged)
