"""The log of calls of tools."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from psycopg.errors import DatetimeFieldOverflow, InsufficientPrivilege, InvalidParameterValue, ObjectNotInPrerequisiteState
from psycopg.types.json import Jsonb

from tests.support import Client, raises

ANNE, BOB = UUID(int=1), UUID(int=2)


@pytest.fixture
def acme(app: Client) -> Iterator[Client]:
    """An application's client in a transaction for tenant acme."""
    with app.tenant("acme"):
        yield app


def test_calls_are_logged_and_listed(acme: Client) -> None:
    acme.run("select llm.register_tool('weather', '{\"type\": \"object\"}')")
    now = datetime.now(UTC)
    acme.run(
        "select llm.log_tool_call('weather', '{\"city\": \"Oslo\"}', '{\"t\": 3}', p_duration => '1.5 s', p_user_id => %s,"
        " p_tool_call_id => 'toolu_1')",
        ANNE,
    )
    acme.run("select llm.log_tool_call('wether', '{}', p_error => 'unknown tool', p_conversation_id => %s)", BOB)
    row = acme.row("select tool, version, user_id, tool_call_id, arguments, result, error, duration, started_at from llm.list_tool_calls('weather')")
    assert row[:-1] == ("weather", 1, ANNE, "toolu_1", {"city": "Oslo"}, {"t": 3}, None, timedelta(seconds=1.5))
    assert timedelta(seconds=-60) < row[-1] - now < timedelta(seconds=60)
    for narrowed in (f"p_conversation_id => '{BOB}'", "p_failed => true", "'wether'"):
        assert acme.rows(f"select tool, version, error from llm.list_tool_calls({narrowed})") == [("wether", None, "unknown tool")]
    assert acme.column(f"select tool from llm.list_tool_calls(p_user_id => '{ANNE}', p_failed => false, p_from => now() - interval '1 h')") == [
        "weather"
    ]
    assert acme.rows("select * from llm.list_tool_calls(p_to => now() - interval '1 h')") == []
    assert acme.rows("select tool, calls, failures, is_known, p50, last_error from llm.tool_stats()") == [
        ("weather", 1, 0, True, timedelta(seconds=1.5), None),
        ("wether", 1, 1, False, None, "unknown tool"),
    ]


def test_q_16_a_call_that_is_logged_again_is_logged_once(acme: Client) -> None:
    call = acme.one("select llm.uuid_v7()")
    for _ in range(2):
        assert acme.one("select llm.log_tool_call('weather', '{}', p_call_id => %s)", call) == call
    assert acme.rows("select call_id, abs(extract(epoch from started_at - now())) < 60 from llm.list_tool_calls()") == [(call, True)]


def test_many_calls_are_logged_at_once(acme: Client) -> None:
    calls = [{"tool": f"t{number % 3}", "arguments": {"n": number}, "duration": f"{number} ms", "user_id": str(ANNE)} for number in range(30)]
    assert acme.one("select llm.log_tool_calls(%s)", Jsonb(calls)) == 30
    assert acme.rows("select tool, calls, p50 from llm.tool_stats()")[0] == ("t0", 10, timedelta(milliseconds=13.5))
    with raises(InvalidParameterValue, match="a call of tool 't0' with arguments null"), acme.transaction():
        acme.run("select llm.log_tool_calls(%s)", Jsonb([*calls, {"tool": "t0"}]))
    assert len(acme.rows("select * from llm.list_tool_calls()")) == 30
    for bad in ("3", "[1]", None):
        with raises(InvalidParameterValue, match="these are not calls of tools", hint="array of objects"), acme.transaction():
            acme.run("select llm.log_tool_calls(%s)", bad)


@pytest.mark.parametrize("arguments", ["null, '{}'", "'', '{}'", "repeat('x', 201), '{}'", "'t', null", "'t', '{}', p_duration => '-1 s'"])
def test_what_is_no_call_is_refused(acme: Client, arguments: str) -> None:
    with raises(InvalidParameterValue, match="a call of tool .* with arguments .* in", hint="Say which tool"):
        acme.run(f"select llm.log_tool_call({arguments})")


@pytest.mark.parametrize("at", ["2000-01-01Z", "infinity", "2999-01-01Z"])
def test_a_call_of_an_impossible_time_is_refused(acme: Client, at: str) -> None:
    with raises(DatetimeFieldOverflow, match="is too far from now"):
        acme.run("select llm.log_tool_call('t', '{}', p_started_at => %s)", at)


def test_a_log_is_not_rewritten_by_applications(acme: Client) -> None:
    acme.run("select llm.log_tool_call('t', '{}')")
    for statement in ("update llm.tool_calls set error = null", "delete from llm.tool_calls"):
        with pytest.raises(InsufficientPrivilege), acme.transaction():
            acme.run(statement)


def test_a_users_calls_are_his_and_his_tenants(app: Client) -> None:
    """RLS-02, RLS-04: two tenants, two users."""
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            for user in (ANNE, BOB):
                app.run("select llm.set_user(%s)", user)
                app.run("select llm.log_tool_call('t', to_jsonb(%s::text))", f"of {user} at {tenant}")
    with app.tenant("acme"):
        assert sorted(app.column("select arguments from llm.list_tool_calls()")) == [f"of {ANNE} at acme", f"of {BOB} at acme"]
        app.run("select llm.set_user(%s)", ANNE)
        assert app.column("select arguments from llm.list_tool_calls()") == [f"of {ANNE} at acme"]
        assert app.column("select calls from llm.tool_stats()") == [1]
        with raises(InsufficientPrivilege, match="user_isolation"):
            app.run("select llm.log_tool_call('t', '{}', p_user_id => %s)", BOB)


def test_without_a_tenant_no_call_is_logged(app: Client) -> None:
    with raises(ObjectNotInPrerequisiteState, match="no tenant is set"):
        app.run("select llm.log_tool_call('t', '{}')")
