"""What an assistant remembers of a user, what it may call, and how all of it is forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from demo.config import ask
from demo.stage import Stage

ANNE, BOB = UUID("018f2f6e-0000-7000-8000-00000000000a"), UUID("018f2f6e-0000-7000-8000-00000000000b")

#: What was said, and what an assistant made of it: when it began, predicate, value, in words.
FACTS = (
    ("2 years", "lives in", "Oslo", "Anne lives in Oslo, near the river."),
    ("1 year", "works as", "bicycle mechanic", "She repairs bicycles for a living."),
    ("90 days", "pet", "a grey cat called Müsli", "She has a grey cat called Müsli."),
    ("4 days", "lives in", "Bergen", "She has moved to Bergen, which she said only today."),
)


def play(stage: Stage) -> None:
    """Play the scene."""
    with stage.connect("app") as app:
        remember(stage, app)
        call_tools(stage, app)
    with stage.connect() as superuser:
        forget(stage, superuser)


def remember(stage: Stage, app: psycopg.Connection) -> None:
    """Tell facts, one of which contradicts another, and ask by time and by words."""
    stage.scene("What is remembered of a user")
    stage.sql("select llm.remember('user', anne, 'lives in', '\"Bergen\"', p_valid_from => now() - interval '4 days');")
    statement = """
        select llm.remember('user', %s, %s, to_jsonb(%s::text), p_content => %s, p_valid_from => now() - %s::interval)
        """
    for since, predicate, value, content in FACTS:
        ask(app, "acme", statement, str(ANNE), predicate, value, content, since)
    ask(app, "acme", statement, str(BOB), "lives in", "Oslo", "Bob lives in Oslo.", "1 year")
    history = """
        select h.value, h.valid_from::date, h.valid_to::date, case when h.known_to is null then 'known now' else 'believed before' end
        from llm.list_memories('user', %s, p_predicate => 'lives in') m, llm.memory_history(m.memory_id) h
        """
    stage.say("The move became known four days late. What was believed stays; what holds is said anew, and at no time twice:")
    stage.table(("lives in", "from", "until", ""), ask(app, "acme", history, str(ANNE)))
    as_of = "select value from llm.memory_as_of(now() - %s::interval, 'user', %s, p_predicate => 'lives in', p_known_at => clock_timestamp())"
    stage.say("Where she lived, as is known now:")
    stage.table(("days ago", "lives in"), ((days, ask(app, "acme", as_of, f"{days} days", str(ANNE))[0][0]) for days in (1, 10, 100)))
    stage.sql("select * from llm.search_memories('cat or bicycle');")
    found = ask(app, "acme", "select round(score::numeric, 2), (memory).content from llm.search_memories('cat or bicycle')")
    stage.table(("score", "fact"), found)


def call_tools(stage: Stage, app: psycopg.Connection) -> None:
    """Register a tool, refuse a bad schema, log calls."""
    stage.scene("Tools")
    stage.sql("select llm.register_tool('weather', '{\"type\": \"object\", \"properties\": {\"city\": {\"type\": \"strin\"}}}');")
    register = "select llm.register_tool('weather', jsonb_build_object('type', 'object', 'properties', jsonb_build_object('city', %s::jsonb)))"
    try:
        ask(app, "acme", register, '{"type": "strin"}')
    except psycopg.errors.InvalidParameterValue as error:
        message = (error.diag.message_primary or "").rpartition("InvalidParameter: ")[2]
        stage.say(f"  [red]ERROR {error.sqlstate}:[/] {message}\n  DETAIL: {error.diag.message_detail}")
    ask(app, "acme", register, '{"type": "string"}')
    for user, city in ((ANNE, "Bergen"), (BOB, "Oslo"), (ANNE, "Tromsø")):
        log = "select llm.log_tool_call('weather', jsonb_build_object('city', %s::text), p_duration => '0.8 s', p_user_id => %s)"
        ask(app, "acme", log, city, user)
    ask(app, "acme", "select llm.log_tool_call('wether', '{}', p_error => 'unknown tool', p_user_id => %s)", ANNE)
    stage.table(("tool", "calls", "failures", "known"), ask(app, "acme", "select tool, calls, failures, is_known from llm.tool_stats()"))


def forget(stage: Stage, superuser: psycopg.Connection) -> None:
    """Forget a user, show the receipt, and that nothing else is gone."""
    stage.scene("A user is forgotten")
    see_to_a_master_key(stage, superuser)
    with superuser.transaction():
        superuser.execute("select llm.set_tenant('acme')")
        superuser.execute("insert into llm.users (user_id, username) values (%s, 'anne'), (%s, 'bob') on conflict do nothing", [ANNE, BOB])
        superuser.execute("select llm.log_audit_event('call', 'person', '1', p_user_id => %s, p_sensitive => 'What she said.')", [str(ANNE)])
        # What the application forgot to register, and a note on her among what is Bob's.
        superuser.execute("create table llm.drafts (draft_id bigint primary key, about text)").execute("alter table llm.drafts owner to llm_owner")
        superuser.execute("insert into llm.drafts values (1, 'Ask Anne Larsen about the cat')")
    stage.sql("select * from llm.forget_user(anne, 'asked for today', p_also => '{Anne Larsen}');")
    receipt = ask(
        superuser, "acme",
        "select relation, action, rows, residual, columns from llm.forget_user(%s, 'asked for today', p_also => '{Anne Larsen}')"
        " where rows > 0 or residual > 0", ANNE,
    )  # fmt: skip
    stage.table(("table", "action", "rows", "left", "in"), ((*row[:4], ", ".join(row[4])) for row in receipt))
    stage.say("A draft is found, which nobody had registered, and her name in messages that quote an example. The audit log has it, too:")
    events = (
        "select object_id, details ->> 'reason', details ->> 'rows', details ->> 'residual' from llm.get_audit_logs(p_action => 'user_forgotten')"
    )
    stage.table(("user", "reason", "rows", "left"), ask(superuser, "acme", events))
    left: list[tuple[Any, ...]] = ask(superuser, "acme", "select content from llm.list_memories('user')")
    stage.say(f"Still remembered, of Bob: {left[0][0]}")
    superuser.execute("drop table llm.drafts")


def see_to_a_master_key(stage: Stage, superuser: psycopg.Connection) -> None:
    """Make a key store outside the database, if there is none."""
    if superuser.execute("select from llm.master_keys").fetchone() is None:
        directory = Path(stage.cluster.directory) / "keys"
        directory.mkdir(mode=0o700)
        superuser.execute("select llm.add_master_key(%s)", [str(directory)])
