"""Sessions: who is logged in, on what, until when."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter
from typing import Any
from uuid import UUID

import pytest
from psycopg.errors import (
    CheckViolation,
    ForeignKeyViolation,
    InsufficientPrivilege,
    InvalidParameterValue,
    NoDataFound,
    ObjectNotInPrerequisiteState,
)

from tests.session_support import ANN, BOB, Sessions, invalid, open_sessions, verified
from tests.support import Client, Database, raises


@pytest.fixture
def sessions(app: Client) -> Sessions:
    """A session (id, token) of ann and of bob, of tenants acme and globex each."""
    return open_sessions(app)


def test_a_token_is_its_sessions(sessions: Sessions, app: Client) -> None:
    for (tenant, user), (session, token) in sessions.items():
        assert verified(app, token, tenant=tenant) == [(tenant, user, session)]
    with app.tenant("acme"):
        found = app.row(
            "select user_id, metadata, context, device, expires_at - created_at = '24 hours' from llm.verify_session(%s)", sessions["acme", ANN][1]
        )
    assert found == (ANN, {"n": 1}, {}, "phone", True)


def test_resuming_sets_tenant_and_user(sessions: Sessions, app: Client) -> None:
    for (tenant, user), (session, token) in sessions.items():
        with app.transaction():
            assert app.row("select session_id, tenant_id from llm.resume_session(%s)", token) == (session, tenant)
            assert app.row("select llm.current_tenant(), llm.current_user_id()") == (tenant, user)
            assert app.column("select session_id from llm.sessions") == [session]
    with app.tenant("acme"):
        app.run("select llm.resume_session(%s)", sessions["acme", ANN][1])
        assert app.one("select user_id from llm.resume_session(%s)", sessions["acme", BOB][1]) == BOB
        with invalid(), app.transaction():
            app.run("select llm.resume_session(%s)", sessions["globex", BOB][1])
        assert app.row("select llm.current_tenant(), llm.current_user_id()") == ("acme", BOB)


def test_a_token_of_another_tenant_is_unknown(sessions: Sessions, db: Client, database: Database) -> None:
    """RLS-04: for a transaction, and for a role, that work for one tenant."""
    app = database.client("app")
    assert verified(app, sessions["globex", ANN][1]) == []
    assert app.rows("select * from llm.verify_session(%s)", sessions["acme", ANN][1]) == []
    db.run("select llm.bind_role('app', 'acme')")
    bound = database.client("app")
    with invalid():
        bound.run("select llm.resume_session(%s)", sessions["globex", ANN][1])
    assert bound.one("select user_id from llm.resume_session(%s)", sessions["acme", ANN][1]) == ANN


def test_what_is_of_others_is_out_of_reach(sessions: Sessions, app: Client) -> None:
    """RLS-04: every function with the session of another tenant, and of another user of this one."""
    for setting, stranger in ((None, sessions["globex", BOB][0]), (ANN, sessions["acme", BOB][0]), (None, UUID(int=9))):
        with app.tenant("acme"):
            app.run("select llm.set_user(%s)", setting)
            for call in ("touch_session(%s)", "update_session(%s, '{}')", "end_session(%s)", "delete_session(%s)"):
                assert app.one(f"select llm.{call}", stranger) is False, call
            assert app.rows("select * from llm.get_session(%s)", stranger) == []
            with raises(NoDataFound, match=f"session {stranger} is not live", hint="logs in again"), app.transaction():
                app.run("select llm.issue_session_token(%s)", stranger)
    with app.tenant("acme"):
        app.run("select llm.set_user(%s)", ANN)
        assert app.rows("select * from llm.verify_session(%s)", sessions["acme", BOB][1]) == []
        assert app.one("select llm.end_sessions(%s)", BOB) == 0
        assert app.one("select llm.purge_sessions('infinity')") == 0
        for call in ("create_session", "open_session"):
            with raises(NoDataFound, match="does not exist", hint="that one only"), app.transaction():
                app.run(f"select llm.{call}(%s)", BOB)
        with raises(InsufficientPrivilege, match="user_isolation"), app.transaction():
            app.run("insert into llm.sessions (user_id) values (%s)", BOB)
    for (tenant, _), (_, token) in sessions.items():
        assert len(verified(app, token, tenant=tenant)) == 1


def test_every_changed_character_is_refused(sessions: Sessions, app: Client) -> None:
    token = sessions["acme", ANN][1]
    assert len(token) == 85
    with app.tenant("acme"):
        for position, character in enumerate(token):
            forged = token[:position] + ("0" if character != "0" else "1") + token[position + 1 :]
            assert app.rows("select * from llm.verify_session(%s)", forged) == [], position
        for forged in (token[:-1], token + "0", token.upper(), token + " ", sessions["acme", BOB][1][:21] + token[21:]):
            assert app.rows("select * from llm.verify_session(%s)", forged) == []
        assert len(app.rows("select * from llm.verify_session(%s)", token)) == 1


def test_what_is_no_token_is_refused(sessions: Sessions, app: Client) -> None:
    for token in ("", "llms_", "llms_0123456789abcdef", "x" * 85, "é" * 85, "llms_" + "0" * 80, "\\", "%" * 85, None):
        assert verified(app, token) == [], token
        with invalid():
            app.run("select llm.resume_session(%s)", token)


@pytest.mark.parametrize(
    "change",
    [
        "expires_at = statement_timestamp()",
        "last_active = now() - interval '1 hour'",
        "last_active = now() - interval '10 s', idle_timeout = '10 s'",
        "ended_at = now(), end_reason = 'logout'",
    ],
)
def test_a_session_that_is_over_is_over_for_every_function(sessions: Sessions, db: Client, app: Client, change: str) -> None:
    session, token = sessions["acme", ANN]
    db.run(f"update llm.sessions set {change} where session_id = %s", session)
    with app.tenant("acme"):
        assert app.rows("select * from llm.verify_session(%s)", token) == []
        assert app.rows("select * from llm.get_session(%s)", session) == []
        assert app.one("select llm.touch_session(%s)", session) is False
        assert app.one("select llm.update_session(%s, '{}')", session) is False
        with raises(NoDataFound, match="is not live"), app.transaction():
            app.run("select llm.issue_session_token(%s)", session)
    with invalid():
        app.run("select llm.resume_session(%s)", token)
    assert len(verified(app, sessions["acme", BOB][1])) == 1


def test_a_session_lives_until_its_last_moment(sessions: Sessions, db: Client, app: Client) -> None:
    session, token = sessions["acme", ANN]
    db.run("update llm.sessions set expires_at = now() + interval '1 hour', last_active = now() - interval '59 minutes'")
    assert verified(app, token) == [("acme", ANN, session)]


def test_a_long_transaction_does_not_prolong_a_session(sessions: Sessions, db: Client, app: Client) -> None:
    session, token = sessions["acme", ANN]
    with app.tenant("acme"):
        assert len(app.rows("select * from llm.verify_session(%s)", token)) == 1
        db.run("update llm.sessions set expires_at = clock_timestamp() where session_id = %s", session)
        assert app.rows("select * from llm.verify_session(%s)", token) == []


def test_a_session_may_be_of_one_device(sessions: Sessions, app: Client) -> None:
    token = sessions["acme", ANN][1]
    assert len(verified(app, token, "phone")) == 1
    for device in ("laptop", "", "PHONE"):
        assert verified(app, token, device) == []
    with invalid():
        app.run("select llm.resume_session(%s, 'laptop')", token)


def test_a_new_token_replaces_the_old(sessions: Sessions, db: Client, app: Client) -> None:
    session, token = sessions["acme", ANN]
    with app.tenant("acme"):
        new = app.one("select llm.issue_session_token(%s)", session)
    assert verified(app, token) == []
    assert verified(app, new) == [("acme", ANN, session)]
    assert len({new, *(each for _, each in sessions.values())}) == 5


def test_the_token_itself_is_nowhere(sessions: Sessions, db: Client) -> None:
    session, token = sessions["acme", ANN]
    prefix, salt, stored = db.row("select token_prefix, token_salt, token_hash from llm.sessions where session_id = %s", session)
    assert (prefix, stored) == (token[5:21], hashlib.sha256(salt + token.encode()).digest())
    assert db.one("select count(*) from llm.sessions s where s::text like %s", f"%{token[21:]}%") == 0
    assert db.one("select count(*) from llm.audit_log a where a::text like %s", f"%{token[21:]}%") == 0


def test_a_wrong_token_takes_the_work_of_a_right_prefix(sessions: Sessions, db: Client, database: Database) -> None:
    """ENC-16: the same single look-up, whatever is wrong; blocks and function calls are counted, which no load on the machine disturbs."""
    db.run("insert into llm.sessions (tenant_id, user_id, token_prefix, token_salt, token_hash)"
           " select 'acme', %s, t.prefix, t.salt, t.hash from generate_series(1000, 4000) i, llm._new_token(i::text) t", ANN)  # fmt: skip
    db.run("analyze llm.sessions")
    app = database.client("app")
    token = sessions["acme", ANN][1]
    app.run("set plan_cache_mode = force_generic_plan")
    with app.tenant("acme"):
        app.run("prepare v (text) as select * from llm.verify_session($1)")
        plans = {
            "\n".join(line for line in app.column(f"explain (costs off) execute v('{forged}')") if "Index" in line)
            for forged in (token[:-1] + "x", "llms_" + "0" * 80, "")
        }
    assert len(plans) == 1
    assert "Index Scan using sessions_by_token" in plans.pop()


def test_the_time_of_a_check_does_not_tell_the_prefix(sessions: Sessions, database: Database) -> None:
    """ENC-16, advisory: only a difference that would be seen across a network fails, five microseconds in the median of interleaved calls."""
    app = database.client("app")
    app.connection.prepare_threshold = 0
    token = sessions["acme", ANN][1]
    times: dict[str, list[float]] = {token[:-1] + ("0" if token[-1] != "0" else "1"): [], "llms_" + "0" * 80: []}
    with app.tenant("acme"):
        for _ in range(3000):
            for forged, taken in times.items():
                start = perf_counter()
                app.connection.execute("select * from llm.verify_session(%s)", [forged])
                taken.append(perf_counter() - start)
    known, unknown = (median(taken) * 1e6 for taken in times.values())
    assert abs(known - unknown) < max(5, 0.25 * unknown), (known, unknown)


def writes(db: Client, session: UUID) -> str:
    """Return the place of the row version that a session is now."""
    return str(db.one("select ctid from llm.sessions where session_id = %s", session))


def test_a_touch_writes_only_when_it_is_due(sessions: Sessions, db: Client, app: Client) -> None:
    session, token = sessions["acme", ANN]
    before = writes(db, session)
    with app.tenant("acme"):
        assert app.one("select llm.touch_session(%s)", session) is True
        app.run("select llm.resume_session(%s)", token)
    assert writes(db, session) == before
    then = db.one("update llm.sessions set last_active = now() - interval '61 s' where session_id = %s returning last_active", session)
    with app.tenant("acme"):
        due = "select is_touch_due from llm.verify_session(%s) union all select is_touch_due from llm.get_session(%s)"
        assert app.column(due, token, session) == [True, True]
        assert app.column(due, sessions["acme", BOB][1], sessions["acme", BOB][0]) == [False, False]
        assert app.one("select llm.touch_session(%s)", session) is True
    assert db.one("select last_active > %s + interval '61 s' from llm.sessions where session_id = %s", then, session) is True
    # A tenth of a short idle time-out.
    db.run("update llm.sessions set idle_timeout = '60 s', last_active = now() - interval '7 s' where session_id = %s", session)
    before = writes(db, session)
    with app.transaction():
        app.run("select llm.resume_session(%s)", token)
    assert writes(db, session) != before


def test_a_touch_is_a_hot_update_and_two_statements(sessions: Sessions, db: Client, database: Database) -> None:
    session, _ = sessions["acme", ANN]
    db.run("vacuum llm.sessions")
    app = database.client("app")
    with app.tenant("acme"):
        for _ in range(20):
            app.run("update llm.sessions set last_active = last_active - interval '61 s' where session_id = %s", session)
            app.run("select llm.touch_session(%s)", session)
        changed, hot = app.row("select n_tup_upd, n_tup_hot_upd from pg_stat_xact_user_tables where relname = 'sessions'")
    assert changed >= 40
    assert changed - hot <= 2


def test_touches_at_once_do_not_wait_for_each_other(sessions: Sessions, db: Client, database: Database) -> None:
    session, token = sessions["acme", ANN]
    db.run("update llm.sessions set last_active = now() - interval '5 minutes'")
    first, *others = database.clients(9, "app")
    first.run("begin").run("select llm.resume_session(%s)", token)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda client: client.one("select session_id from llm.resume_session(%s)", token), others)) == [session] * 8
    first.run("commit")


def test_a_read_only_transaction_may_resume(sessions: Sessions, db: Client, app: Client) -> None:
    db.run("update llm.sessions set last_active = now() - interval '5 minutes'")
    with app.transaction():
        app.run("set transaction read only")
        assert app.one("select user_id from llm.resume_session(%s)", sessions["acme", ANN][1]) == ANN


def test_metadata_and_context_are_kept(sessions: Sessions, app: Client) -> None:
    session, token = sessions["acme", ANN]
    with app.tenant("acme"):
        assert app.one("""select llm.update_session(%s, '{"a": [1]}')""", session) is True
        assert app.one("""select llm.update_session(%s, null, '{"topic": "x"}')""", session) is True
        assert app.row("select metadata, context from llm.verify_session(%s)", token) == ({"a": [1]}, {"topic": "x"})
        with raises(CheckViolation, match="a session whose metadata are array", hint="objects"), app.transaction():
            app.run("select llm.update_session(%s, '[]')", session)


def test_a_session_without_a_token_is_nobodys_log_in(sessions: Sessions, app: Client) -> None:
    with app.tenant("acme"):
        session = app.one("""select llm.create_session(%s, '{"chat": true}')""", ANN)
        assert app.row("select user_id, metadata from llm.get_session(%s)", session) == (ANN, {"chat": True})
        assert app.rows("select * from llm.verify_session(null)") == app.rows("select * from llm.verify_session('')") == []


@pytest.mark.parametrize("zone", ["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "UTC"])
def test_a_session_lasts_its_hours_on_days_when_clocks_change(sessions: Sessions, db: Client, zone: str) -> None:
    """Q-13"""
    with db.tenant("acme"):
        db.run("select set_config('timezone', %s, true)", zone)
        session = db.one("select llm.create_session(%s, p_lifetime => '200 days', p_idle_timeout => '1 day')", ANN)
        lasts, idle = db.row(
            "select extract(epoch from expires_at - created_at)::int, idle_timeout::text from llm.sessions where session_id = %s", session
        )
        # 200 days cross a change of clocks, whenever this runs.
        assert (lasts, idle) == (200 * 86400, "24:00:00")
        with raises(CheckViolation, match="idle_timeout"), db.transaction():
            db.run("update llm.sessions set idle_timeout = '1 day' where session_id = %s", session)


def test_durations_come_from_the_call_the_tenant_or_the_default(sessions: Sessions, app: Client) -> None:
    def lasts(arguments: str) -> tuple[Any, ...]:
        session = app.one(f"select llm.create_session(%s{arguments})", ANN)
        return app.row("select extract(epoch from expires_at - created_at)::int, idle_timeout::text from llm.sessions where session_id = %s", session)

    with app.tenant("acme"):
        assert lasts("") == (86400, "01:00:00")
        app.run("""select llm.save_configs('{"session/lifetime": "90 minutes", "session/idle_timeout": "5 minutes"}')""")
        assert lasts("") == (5400, "00:05:00")
        assert lasts(", p_lifetime => '1 minute', p_idle_timeout => '10 s'") == (60, "00:00:10")
        session = app.one("select llm.create_session(%s, p_lifetime => 'infinity', p_idle_timeout => 'infinity')", ANN)
        assert app.one("select expires_at = 'infinity' from llm.get_session(%s)", session) is True
        assert app.one("select llm.touch_session(%s)", session) is True
        for bad in ("0", "-1 hour"):
            with raises(InvalidParameterValue, match="a duration of"), app.transaction():
                app.run("select llm.create_session(%s, p_lifetime => %s)", ANN, bad)


def test_log_ins_and_log_outs_are_in_the_audit_log(sessions: Sessions, db: Client, app: Client) -> None:
    session, _ = sessions["acme", ANN]
    with app.tenant("acme"):
        app.run("select llm.issue_session_token(%s)", session)
        app.run("select llm.end_session(%s)", session)
        app.run("select llm.end_session(%s, 'revoked')", sessions["acme", BOB][0])
    events = db.rows(
        "select action, user_id, details ->> 'session' from llm.audit_log where tenant_id = 'acme' and object_type = 'authentication' order by id"
    )
    assert [event for event in events if event[1] == str(ANN)] == [
        ("token_issued", str(ANN), str(session)), ("token_refreshed", str(ANN), str(session)), ("logout", str(ANN), str(session))
    ]  # fmt: skip
    assert events[-1][0] == "session_revoked"
    assert db.one("select client_info from llm.audit_log where action = 'token_issued' limit 1") == {"device": "phone", "ip_address": "192.0.2.7"}


def test_sessions_are_of_users_that_exist(sessions: Sessions, db: Client, app: Client) -> None:
    """RLS-13: a user of another tenant is as unknown as nobody."""
    stranger = db.one("insert into llm.users (tenant_id, username) values ('globex', 'zoe') returning user_id")
    messages = set()
    for user in (stranger, UUID(int=99)):
        with app.tenant("acme"), raises(ForeignKeyViolation) as caught:
            app.run("insert into llm.sessions (user_id) values (%s)", user)
        messages.add((caught.value.diag.message_primary, str(caught.value.diag.message_detail).replace(str(user), "")))
    assert len(messages) == 1


def test_without_a_tenant_there_are_no_sessions(app: Client) -> None:
    for call in (
        "create_session(null)", "open_session(null)", "issue_session_token(null)", "get_session(null)", "update_session(null, null)",
        "end_session(null)", "end_sessions(null)", "delete_session(null)", "purge_sessions(now())",
    ):  # fmt: skip
        with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
            app.run(f"select llm.{call}")
