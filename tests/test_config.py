"""Configuration: what its users notice."""

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


# Saving and loading


@pytest.mark.parametrize("value", [None, True, 0, -1.5, 10**30, "", "gpt", "ключ 🦙", [], [1, None], {}, {"a": {"b": [1, "x"]}}])
def test_any_json_value_comes_back_as_it_was(acme: Client, value: Any) -> None:
    assert acme.one(SAVE, "k", Jsonb(value)) is True
    assert acme.one("select llm.load_config('k', '\"default\"')") == value
    assert next_transaction(acme).one("select llm.load_config('k', '\"default\"')") == value
    assert acme.one("select llm.load_config('k', '\"default\"')") == value
    assert acme.one("select llm.load_config('k', '\"default\"', p_cached => false)") == value


@pytest.mark.parametrize("key", ["a", "a b", "ключ 🦙", "100%_\\", "'; drop table llm.config --", "tab\tline\nbell\x07\x1f", "*", "é" * 500])
def test_a_key_is_any_text(acme: Client, key: str) -> None:
    assert acme.one(SAVE, key, Jsonb(1)) is True
    assert next_transaction(acme).one(LOAD, key) == 1
    assert acme.one(LOAD, key) == 1
    assert access(acme, key)["key"] == key
    assert acme.column("select key from llm.load_configs(%s)", key) == [key]


def test_a_json_null_is_a_value_and_no_value_is_the_default(acme: Client) -> None:
    acme.run(SAVE, "nothing", Jsonb(None))
    for cached in (True, True, False):
        assert acme.one("select llm.load_config('nothing', '5', %s)::text", cached) == "null"
        assert acme.one("select llm.load_config('missing', '5', %s)::text", cached) == "5"
        assert acme.one("select llm.load_config('missing', p_cached => %s)::text", cached) is None


def test_saving_the_same_value_again_changes_nothing(acme: Client) -> None:
    assert acme.one("select llm.save_config('k', '{\"a\": 1, \"b\": 2}', 'what it is for')") is True
    assert acme.one("select llm.save_config('k', '{\"b\": 2, \"a\": 1}')") is False
    assert acme.one("select llm.save_config('k', '{\"b\": 2, \"a\": 1}', 'what it is for', 1)") is False
    assert len(config_history(acme, "k")) == 1
    assert acme.one("select llm.save_config('k', '{\"b\": 2, \"a\": 1}', 'another purpose')") is True
    assert access(acme, "k")["version"] == 2


def test_a_description_stays_until_another_is_given(acme: Client) -> None:
    acme.run("select llm.save_config('k', '1', 'what it is for')").run(SAVE, "k", Jsonb(2))
    assert access(acme, "k")["description"] == "what it is for"
    acme.run("select llm.save_config('k', '2', 'another purpose')")
    assert access(acme, "k")["description"] == "another purpose"


def test_a_save_with_the_right_version_succeeds(acme: Client) -> None:
    for version in range(3):
        assert acme.one("select llm.save_config('k', to_jsonb(%s), p_expected_version => %s)", version, version) is True
    assert access(acme, "k")["version"] == 3


@pytest.mark.parametrize(
    ("saved", "expected", "detail"),
    [(0, 1, r"does not exist \(version 0\)"), (1, 0, "version is 1"), (2, 1, "version is 2"), (1, 2, "version is 1"), (1, -1, "version is 1")],
)
def test_a_save_with_another_version_is_refused(acme: Client, saved: int, expected: int, detail: str) -> None:
    for value in range(saved):
        acme.run(SAVE, "k", Jsonb(value))
    with raises(errors.SerializationFailure, f"k is not at version {expected}", detail=detail, hint="Load it again"):
        acme.run("select llm.save_config('k', '99', p_expected_version => %s)", expected)


def test_a_save_of_the_same_value_with_another_version_is_refused(acme: Client) -> None:
    acme.run(SAVE, "k", Jsonb(1)).run(SAVE, "k", Jsonb(2))
    with raises(errors.SerializationFailure, detail="version is 2"):
        acme.run("select llm.save_config('k', '2', p_expected_version => 1)")


def test_versions_count_on_after_a_deletion(acme: Client) -> None:
    acme.run(SAVE, "k", Jsonb(1)).run("select llm.delete_config('k')")
    assert acme.one("select llm.save_config('k', '2', p_expected_version => 0)") is True
    assert config_history(acme, "k") == [("insert", 1, 1), ("delete", None, 2), ("insert", 2, 3)]
    assert access(acme, "k")["version"] == 3


def test_many_values_are_saved_at_once(acme: Client) -> None:
    acme.run("select llm.save_config('same', '1', 'kept')").run(SAVE, "other", Jsonb(1))
    assert acme.one("select llm.save_configs(%s, 'release 7')", Jsonb({"same": 1, "other": 2, "new": None})) == 2
    assert dict(acme.rows("select key, value from llm.load_configs()")) == {"same": 1, "other": 2, "new": None}
    assert acme.column("select reason from llm.config_history where key in ('other', 'new') order by id") == [None, "release 7", "release 7"]
    assert access(acme, "same")["description"] == "kept"
    assert acme.one("select llm.save_configs('{}')") == 0


@pytest.mark.parametrize(("values", "found"), [("[1]", "JSON array"), ('"x"', "JSON string"), ("null", "JSON null"), (None, "null")])
def test_many_values_are_one_object(acme: Client, values: str | None, found: str) -> None:
    with raises(errors.InvalidParameterValue, f"configuration values as {found}", hint="one JSON object"):
        acme.run("select llm.save_configs(%s)", values)


def test_a_bad_key_among_many_saves_none(app: Client) -> None:
    with raises(errors.InvalidParameterValue, "a configuration key of 0 bytes"), app.tenant("acme"):
        app.run("select llm.save_configs('{\"good\": 1, \"\": 2}')")
    with app.tenant("acme"):
        assert app.rows("select * from llm.load_configs()") == []


def test_a_deleted_key_is_gone(acme: Client) -> None:
    acme.run(SAVE, "k", Jsonb(1))
    assert acme.one("select llm.delete_config('k')") is True
    assert acme.one("select llm.delete_config('k')") is False
    assert acme.one(LOAD, "k") is None


def test_a_deletion_with_another_version_is_refused(acme: Client) -> None:
    acme.run(SAVE, "k", Jsonb(1))
    with raises(errors.SerializationFailure, "k is not at version 2", detail="version is 1"), acme.transaction():
        acme.run("select llm.delete_config('k', 2)")
    assert acme.one("select llm.delete_config('k', 1)") is True
    with raises(errors.SerializationFailure, detail="does not exist"):
        acme.run("select llm.delete_config('k', 1)")


# Tenants


def test_a_tenants_value_overrides_the_global_one(admin: Client, app: Client) -> None:
    admin.run(SAVE, "k", Jsonb("global"))
    with app.tenant("acme"):
        assert [app.one(LOAD, "k"), access(app, "k")["tenant_id"]] == ["global", "*"]
        assert app.one(SAVE, "k", Jsonb("own")) is True
        assert [app.one(LOAD, "k"), access(app, "k")["tenant_id"]] == ["own", "acme"]
        assert app.rows("select key, value, tenant_id from llm.load_configs()") == [("k", "own", "acme")]
    with app.tenant("globex"):
        assert app.one(LOAD, "k") == "global"
        assert app.one("select llm.delete_config('k')") is False
    with app.tenant("acme"):
        assert app.one("select llm.delete_config('k')") is True
        assert [app.one(LOAD, "k"), access(app, "k")["tenant_id"]] == ["global", "*"]
    assert admin.one(LOAD, "k") == "global"


def test_one_session_serves_tenants_by_turns(app: Client) -> None:
    for _ in range(3):
        for tenant in ("acme", "globex"):
            with app.tenant(tenant):
                app.run(SAVE, "k", Jsonb(tenant))
        for tenant in ("acme", "globex"):
            with app.tenant(tenant):
                assert [app.one(LOAD, "k") for _ in range(2)] == [tenant] * 2


@pytest.mark.parametrize("call", ["save_config('k', '1')", "save_configs('{\"k\": 1}')", "delete_config('k')", "rollback_config(p_at => now())"])
def test_an_application_without_a_tenant_writes_nothing(app: Client, call: str) -> None:
    with raises(errors.ObjectNotInPrerequisiteState, "no tenant is set", hint=r"select llm\.set_tenant", detail="llm_admin"):
        app.run(f"select llm.{call}")


def test_a_reader_without_a_tenant_sees_what_is_global(database: Database, admin: Client, app: Client) -> None:
    admin.run(SAVE, "k", Jsonb("global"))
    with app.tenant("acme"):
        app.run(SAVE, "own", Jsonb(1))
    reader = database.client("reader")
    assert [reader.one(LOAD, "k"), reader.one(LOAD, "own")] == ["global", None]
    assert reader.column("select key from llm.load_configs()") == ["k"]


# Reading many, and about one


def test_values_are_listed_by_prefix_in_order(acme: Client) -> None:
    acme.run("select llm.save_configs(%s)", Jsonb(dict.fromkeys(("a%b", "a_b", "aXb", "a\\b", "b", "ä", "A"), 1)))
    assert acme.column("select key from llm.load_configs('a%')") == ["a%b"]
    assert acme.column("select key from llm.load_configs('a_')") == ["a_b"]
    assert acme.column("select key from llm.load_configs('a\\')") == ["a\\b"]
    assert set(acme.column("select key from llm.load_configs('a')")) == {"a%b", "a_b", "aXb", "a\\b"}
    everything = acme.column("select key from llm.load_configs()")
    assert everything == acme.column("select k from unnest(%s::text[]) k order by k", everything)
    assert acme.rows("select * from llm.load_configs('none')") == []


def test_an_access_tells_where_a_value_comes_from(acme: Client) -> None:
    acme.run("select llm.save_config('k', '1', 'what it is for')")
    assert acme.one("select \"timestamp\" between now() and clock_timestamp() from llm.config_access('k')") is True
    found = access(next_transaction(acme), "k")
    del found["timestamp"]
    assert found == {"key": "k", "value": 1, "cached": False, "version": 1, "tenant_id": "acme", "description": "what it is for"}
    assert set(access(acme, "unknown").values()) == {None}
