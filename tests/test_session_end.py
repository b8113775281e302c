"""How sessions end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg.errors import InvalidParameterValue, NoDataFound

from tests.session_support import ANN, BOB, Sessions, invalid, open_sessions, verified
from tests.support import Client, Database, raises


@pytest.fixture
def sessions(app: Client) -> Sessions:
    """A session (id, token) of ann and of bob, of tenants acme and globex each."""
    return open_sessions(app)


def test_a_session_ends_once_and_for_the_reason_given(sessions: Sessions, db: Client, app: Client) -> None:
    session, token = sessions["acme", ANN]
    with app.tenant("acme"):
        assert app.one("select llm.end_session(%s)", session) is True
        assert app.one("select llm.end_session(%s, 'revoked')", session) is False
        for reason in ("expired", "", None):
            with raises(InvalidParameterValue, match="a session cannot be ended as", hint="logout and revoked"), app.transaction():
                app.run("select llm.end_session(%s, %s)", session, reason)
    assert verified(app, token) == []
    assert db.one("select end_reason from llm.sessions where session_id = %s", session) == "logout"


def test_all_sessions_of_a_user_end_but_one(sessions: Sessions, app: Client) -> None:
    with app.tenant("acme"):
        tokens = [app.row("select * from llm.open_session(%s)", ANN) for _ in range(3)]
        assert app.one("select llm.end_sessions(%s, %s)", ANN, tokens[1][0]) == 3
    assert [len(verified(app, token)) for _, token in tokens] == [0, 1, 0]
    assert len(verified(app, sessions["acme", BOB][1])) == len(verified(app, sessions["globex", ANN][1], tenant="globex")) == 1


def test_the_sessions_of_a_deleted_user_end(sessions: Sessions, db: Client, app: Client) -> None:
    with app.tenant("acme"):
        app.run("select llm.delete_user(%s)", ANN)
        with raises(NoDataFound, match="does not exist"), app.transaction():
            app.run("select llm.open_session(%s)", ANN)
    with invalid():
        app.run("select llm.resume_session(%s)", sessions["acme", ANN][1])
    assert db.column("select end_reason from llm.sessions where ended_at is not null") == ["user_deleted"]
    assert len(verified(app, sessions["globex", ANN][1], tenant="globex")) == 1


def test_who_is_being_deleted_opens_no_session(sessions: Sessions, database: Database) -> None:
    """The new session waits for the deletion, and is refused; and the other way round."""
    one, other = database.clients(2, "app")
    waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    watcher = database.client()
    with ThreadPoolExecutor(1) as pool:
        one.run("begin").run("select llm.set_tenant('acme')").run("select llm.delete_user(%s)", ANN)
        other.run("begin").run("select llm.set_tenant('acme')")
        opened = pool.submit(other.row, "select * from llm.open_session(%s)", ANN)
        while watcher.one(waits) == 0:
            assert not opened.done()
        one.run("commit")
        with raises(NoDataFound, match="does not exist"):
            opened.result()
        other.run("rollback")

        one.run("begin").run("select llm.set_tenant('acme')")
        token = one.one("select token from llm.open_session(%s)", BOB)
        other.run("begin").run("select llm.set_tenant('acme')")
        deleted = pool.submit(other.one, "select llm.delete_user(%s)", BOB)
        while watcher.one(waits) == 0:
            assert not deleted.done()
        one.run("commit")
        assert deleted.result() is True
        other.run("commit")
    with invalid():
        one.run("select llm.resume_session(%s)", token)


def test_what_is_over_is_expired_in_batches(sessions: Sessions, db: Client, database: Database) -> None:
    db.run("update llm.sessions set expires_at = now() where user_id = %s", ANN)
    db.run("update llm.sessions set last_active = now() - interval '61 minutes' where user_id = %s", BOB)
    app = database.client("app")
    with app.tenant("acme"):
        assert app.one("select llm.expire_sessions(1)") == 1
        assert app.one("select llm.expire_sessions()") == 1
        assert app.one("select llm.expire_sessions()") == 0
    assert db.one("select count(*) from llm.sessions where tenant_id = 'globex' and ended_at is null") == 2
    assert app.one("select llm.expire_sessions()") == 2
    assert db.rows("select tenant_id, user_id, end_reason from llm.sessions order by 1, 2") == [
        ("acme", ANN, "expired"), ("acme", BOB, "idle"), ("globex", ANN, "expired"), ("globex", BOB, "idle")
    ]  # fmt: skip
    assert db.one("select count(*) from llm.audit_log where action = 'session_expired'") == 4


def test_expiring_skips_what_is_locked(sessions: Sessions, db: Client, database: Database) -> None:
    db.run("update llm.sessions set expires_at = now()")
    holder, *others = database.clients(5)
    holder.run("begin").run("select from llm.sessions where session_id = %s for update", sessions["acme", ANN][0])
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda client: client.one("select llm.expire_sessions()"), others)) == 3
    holder.run("commit")
    assert db.one("select llm.expire_sessions()") == 1


def test_ended_sessions_are_purged(sessions: Sessions, db: Client, app: Client) -> None:
    with app.tenant("acme"):
        app.run("select llm.end_session(%s)", sessions["acme", ANN][0])
        assert app.one("select llm.purge_sessions(now() - interval '1 hour')") == 0
        assert app.one("select llm.purge_sessions(clock_timestamp())") == 1
        assert app.one("select llm.delete_session(%s)", sessions["acme", BOB][0]) is True
        assert app.one("select llm.delete_session(%s)", sessions["acme", BOB][0]) is False
    assert db.column("select distinct tenant_id from llm.sessions") == ["globex"]
