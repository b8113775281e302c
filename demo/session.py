"""Users: who gets in, who is kept out, and what a token opens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import psycopg

from demo.config import ask
from demo.stage import Stage

PASSWORD = "correct horse battery"  # noqa: S105

#: Connections that guess a password at the same moment.
GUESSERS = 16

VERIFICATIONS = 2_000


def play(stage: Stage) -> None:
    """Play the scene."""
    with stage.connect("app") as acme:
        ann, token = log_in(stage, acme)
        request(stage, token)
        guess(stage, acme)
        end(stage, acme, ann, token)


def log_in(stage: Stage, connection: psycopg.Connection) -> tuple[Any, str]:
    """Make two users and log one in."""
    stage.scene("Users: Ann logs in")
    for name in ("ann", "bob"):
        ((user,),) = ask(connection, "acme", "select llm.create_user(%s, %s)", name, PASSWORD)
        stage.sql(f"select llm.create_user('{name}', …);")
    begin = perf_counter()
    ((outcome, ann),) = ask(connection, "acme", "select outcome, user_id from llm.authenticate('ann', %s)", PASSWORD)
    stage.sql(f"select * from llm.authenticate('ann', …);  -- {outcome}, bcrypt took {(perf_counter() - begin) * 1000:.0f} ms")
    ((session, token),) = ask(connection, "acme", "select * from llm.open_session(%s, p_device => 'laptop')", ann)
    stage.sql("select * from llm.open_session(…, p_device => 'laptop');")
    stage.table(("session", "token, shown this once"), [(session, token[:25] + "…")])
    assert user != ann
    return ann, token


def request(stage: Stage, token: str) -> None:
    """Serve a request by its token alone, and measure the check."""
    with stage.connect("app") as connection, connection.transaction():
        connection.execute("select llm.resume_session(%s)", [token])
        stage.say("A request needs its token only; it then works for Ann of acme, and sees nobody else:")
        stage.sql("select llm.resume_session('llms_…');  select username from llm.users;")
        stage.table(("username",), connection.execute("select username from llm.users").fetchall())
        begin = perf_counter()
        for _ in range(VERIFICATIONS):
            connection.execute("select * from llm.verify_session(%s)", [token], prepare=True).fetchall()
        stage.say(f"  llm.verify_session() through a client: {(perf_counter() - begin) / VERIFICATIONS * 1e6:.0f} µs, and nothing is written.")


def guess(stage: Stage, connection: psycopg.Connection) -> None:
    """Let many connections guess at once."""
    stage.scene(f"{GUESSERS} connections guess Bob's password at the same moment")

    def attempt(number: int) -> None:
        with stage.connect("app") as guesser:
            ask(guesser, "acme", "select llm.authenticate('bob', %s)", f"guess {number}")

    with stage.step("select llm.authenticate('bob', 'guess …')") as step, ThreadPoolExecutor(GUESSERS) as pool:
        list(pool.map(attempt, range(GUESSERS)))
        step.result = "all refused"
    ((outcome,),) = ask(connection, "acme", "select outcome from llm.authenticate('bob', %s)", PASSWORD)
    stage.say(f"Five were looked at, then Bob was locked: his own password is {outcome} now, and no answer says why. The audit log does:")
    with stage.connect() as examiner:
        events = "select action, details ->> 'reason', count(*) from llm.audit_log where object_type = 'authentication' group by 1, 2 order by 1, 2"
        stage.table(("event", "reason", "times"), examiner.execute(events).fetchall())


def end(stage: Stage, connection: psycopg.Connection, ann: Any, token: str) -> None:
    """Delete Ann, softly."""
    stage.scene("Ann is deleted")
    ask(connection, "acme", "select llm.delete_user(%s)", ann)
    stage.sql("select llm.delete_user(…);")
    try:
        connection.execute("select llm.resume_session(%s)", [token])
    except psycopg.errors.InvalidAuthorizationSpecification as error:
        stage.say(f"  Her token: {error.diag.message_primary}. HINT: {error.diag.message_hint}")
