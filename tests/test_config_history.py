"""The history of configuration: the past, rollback, who and why."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from tests.support import Client, Database, config_history, next_transaction, raises

SAVE = "select llm.save_config(%s, %s)"
LOAD = "select llm.load_config(%s)"


def access(client: Client, key: str) -> dict[str, Any]:
    found: dict[str, Any] = client.one("select to_jsonb(a) from llm.config_access(%s) a", key)
    return found


# The past


def moment(client: Client) -> Any:
    return client.one("select clock_timestamp()")


def test_configuration_is_shown_as_it_was(admin: Client, acme: Client) -> None:
    start = moment(admin)
    admin.run("select llm.save_configs('{\"both\": \"global\", \"global\": 1}')")
    acme.run(SAVE, "own", Jsonb(1))
    before = moment(acme)
    acme.run(SAVE, "both", Jsonb("own")).run(SAVE, "own", Jsonb(2)).run("select llm.delete_config('own')")
    after = moment(acme)
    at = "select key, value, version, tenant_id from llm.config_at(%s)"
    assert acme.rows(at, start) == []
    assert acme.rows(at, before) == [("both", "global", 1, "*"), ("global", 1, 1, "*"), ("own", 1, 1, "acme")]
    assert acme.rows(at, after) == [("both", "own", 1, "acme"), ("global", 1, 1, "*")]
    assert acme.column("select key from llm.config_at(%s, 'gl')", after) == ["global"]
    assert next_transaction(acme).column("select key from llm.config_at('infinity')") == acme.column("select key from llm.load_configs()")


def test_a_diff_names_each_key_that_differs(acme: Client) -> None:
    acme.run("select llm.save_configs('{\"changed\": 1, \"deleted\": 1, \"same\": 1, \"back\": 1, \"emptied\": 1}')")
    start = moment(acme)
    acme.run("select llm.save_configs('{\"changed\": 2, \"new\": null, \"back\": 2, \"emptied\": null}')")
    acme.run("select llm.delete_config('deleted')").run(SAVE, "back", Jsonb(1))
    diff = "select key, operation, old_value::text, new_value::text from llm.config_diff(%s, %s)"
    forth = [("changed", "update", "1", "2"), ("deleted", "delete", "1", None), ("emptied", "update", "1", "null"), ("new", "insert", None, "null")]
    assert acme.rows(diff, start, moment(acme)) == forth
    opposite = {"insert": "delete", "delete": "insert", "update": "update"}
    assert acme.rows(diff, moment(acme), start) == [(key, opposite[operation], new, old) for key, operation, old, new in forth]
    assert next_transaction(acme).rows("select * from llm.config_diff(%s)", start) == acme.rows("select * from llm.config_diff(%s, now())", start)
    assert acme.rows(diff, start, start) == []


@pytest.fixture
def changed(acme: Client) -> tuple[Client, int, Any]:
    """Values that were changed after a certain change, and its time."""
    acme.run("select llm.save_config('changed', '1', 'purpose')").run(SAVE, "deleted", Jsonb(1)).run(SAVE, "same", Jsonb(1))
    change, time = acme.one("select max(id) from llm.config_history"), moment(acme)
    acme.run("select llm.save_config('changed', '2', 'other purpose')").run("select llm.delete_config('deleted')").run(SAVE, "new", Jsonb(1))
    return acme, change, time


@pytest.mark.parametrize("by", ["p_change", "p_at"])
def test_a_rollback_brings_the_whole_set_back_as_new_changes(changed: tuple[Client, int, Any], by: str) -> None:
    client, change, time = changed
    before = client.one("select count(*) from llm.config_history")
    assert client.one(f"select llm.rollback_config({by} => %s)", change if by == "p_change" else time) == 3
    assert dict(client.rows("select key, value from llm.load_configs()")) == {"changed": 1, "deleted": 1, "same": 1}
    assert access(client, "changed")["description"] == "purpose"
    assert client.one("select count(*) from llm.config_history") == before + 3
    assert config_history(client, "changed")[-1] == ("update", 1, 3)
    assert config_history(client, "deleted")[-1] == ("insert", 1, 3)
    assert config_history(client, "new")[-1] == ("delete", None, 2)
    assert all("rollback to" in reason for reason in client.column("select reason from llm.config_history order by id offset %s", before))
    assert client.one(f"select llm.rollback_config({by} => %s)", change if by == "p_change" else time) == 0


def test_a_rollback_can_be_rolled_back(changed: tuple[Client, int, Any]) -> None:
    client, change, _ = changed
    last = client.one("select max(id) from llm.config_history")
    client.run("select llm.rollback_config(%s)", change)
    client.run("select llm.rollback_config(%s)", last)
    assert dict(client.rows("select key, value from llm.load_configs()")) == {"changed": 2, "same": 1, "new": 1}


def test_a_rollback_of_one_key_leaves_the_others(changed: tuple[Client, int, Any]) -> None:
    client, change, time = changed
    assert client.one("select llm.rollback_config(%s, p_key => 'deleted', p_reason => 'it was needed')", change) == 1
    assert client.one("select llm.rollback_config(p_at => %s, p_key => 'new')", time) == 1
    assert client.one("select llm.rollback_config(%s, p_key => 'unknown')", change) == 0
    assert dict(client.rows("select key, value from llm.load_configs()")) == {"changed": 2, "deleted": 1, "same": 1}
    assert client.one("select reason from llm.config_history where key = 'deleted' order by id desc limit 1") == "it was needed"


def test_a_rollback_touches_one_tenant_only(admin: Client, app: Client) -> None:
    start = moment(admin)
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            app.run(SAVE, "k", Jsonb(tenant))
    admin.run(SAVE, "k", Jsonb("global"))
    with app.tenant("acme"):
        assert app.one("select llm.rollback_config(p_at => %s)", start) == 1
        assert app.one(LOAD, "k") == "global"
    with app.tenant("globex"):
        assert app.one(LOAD, "k") == "globex"


@pytest.mark.parametrize("target", ["", "null", "1, now()"])
def test_a_rollback_needs_one_target(acme: Client, target: str) -> None:
    with raises(errors.InvalidParameterValue, "needs a change or a time", hint="p_change"):
        acme.run(f"select llm.rollback_config({target})")


def test_a_rollback_to_a_change_of_another_tenant_is_refused(app: Client, admin: Client) -> None:
    with app.tenant("globex"):
        app.run(SAVE, "k", Jsonb(1))
    change = admin.run(SAVE, "k", Jsonb(1)).one("select max(id) from llm.config_history")
    for unknown in (change - 1, change, 10**12):
        with raises(errors.NoDataFound, f"configuration change {unknown} does not exist", hint="of this tenant"), app.tenant("acme"):
            app.run("select llm.rollback_config(%s)", unknown)


# History


def test_history_tells_who_and_why(database: Database, db: Client, app: Client) -> None:
    db.run("grant app to reader with inherit false, set true")
    with app.tenant("acme"):
        app.run("select llm.save_config('k', '1', p_reason => 'first')").run(SAVE, "k", Jsonb(2))
    other = database.client("reader").run("set role app")
    with other.tenant("acme"):
        other.run("select llm.delete_config('k', p_reason => 'last')")
    db.run("revoke app from reader")
    columns = "select operation, value, version, changed_by, reason from llm.config_history order by id"
    assert db.rows(columns) == [
        ("insert", 1, 1, "app", "first"),
        ("update", 2, 2, "app", None),
        ("delete", None, 3, "reader as app", "last"),
    ]
    assert db.one("select bool_and(changed_at between now() - interval '1 minute' and now()) from llm.config_history") is True


def test_history_names_the_caller_of_a_security_definer_function(db: Client, app: Client) -> None:
    db.run("create function public.through() returns boolean language sql security definer as $$ select llm.save_config('k', '1') $$")
    with app.tenant("acme"):
        app.run("select public.through()")
    assert db.column("select changed_by from llm.config_history") == ["app"]


def test_history_holds_changes_made_without_a_function(db: Client) -> None:
    with db.connection.cursor() as cursor, cursor.copy("copy llm.config (tenant_id, key, value) from stdin") as copy:
        for key in "abc":
            copy.write_row(("acme", key, "1"))
    db.run("update llm.config set value = '2', version = 99, created_at = '-infinity', updated_at = '-infinity' where key = 'a'")
    db.run("update llm.config set key = 'd' where key = 'b'").run("truncate llm.config")
    assert db.rows("select key, operation, value, version, reason from llm.config_history order by id") == [
        ("a", "insert", 1, 1, None),
        ("b", "insert", 1, 1, None),
        ("c", "insert", 1, 1, None),
        ("a", "update", 2, 2, None),
        ("b", "delete", None, 2, None),
        ("d", "insert", 1, 1, None),
        ("a", "delete", None, 3, "truncate"),
        ("c", "delete", None, 2, "truncate"),
        ("d", "delete", None, 2, "truncate"),
    ]


def test_no_application_writes_history(acme: Client) -> None:
    acme.run(SAVE, "k", Jsonb(1))
    for change in ("delete from", "update", "insert into", "truncate"):
        rest = {"update": "set reason = ''", "insert into": "(tenant_id, key, version, operation, changed_by) values ('acme', 'x', 1, 'delete', '')"}
        with pytest.raises(errors.InsufficientPrivilege), acme.transaction():
            acme.run(f"{change} llm.config_history {rest.get(change, '')}")


def test_a_reason_does_not_reach_the_next_change(acme: Client) -> None:
    acme.run("select llm.save_config('k', '1', p_reason => 'first')").run("update llm.config set value = '2'")
    assert acme.column("select reason from llm.config_history order by id") == ["first", None]
