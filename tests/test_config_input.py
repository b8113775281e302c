"""Configuration: what is refused, and what the largest, the strangest and the most ordinary client sends."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from tests.support import Client, Database, raises

SAVE = "select llm.save_config(%s, %s)"
LOAD = "select llm.load_config(%s)"


@pytest.mark.parametrize(("key", "size"), [("", "0"), ("x" * 1001, "1001"), ("x" * 10_000, "10000"), ("é" * 501, "1002"), (None, "null")])
def test_a_key_of_another_length_is_refused(db: Client, key: str | None, size: str) -> None:
    with raises(errors.InvalidParameterValue, f"a configuration key of {size} bytes", hint="1 to 1000 bytes"):
        db.run(SAVE, key, Jsonb(1))
    if key is not None:
        with pytest.raises(errors.CheckViolation):
            db.run("insert into llm.config (tenant_id, key, value) values ('*', %s, '1')", key)


@pytest.mark.parametrize("key", ["", "x" * 10_000, None, "unknown"])
def test_a_key_that_nobody_can_have_saved_has_no_value(db: Client, key: str | None) -> None:
    for _ in range(2):
        assert db.one(LOAD, key) is None
        assert db.one("select llm.load_config(%s, '5')", key) == 5
    assert db.one("select llm.get_cached_config(%s)", key) is None
    assert db.one("select llm.cache_config(%s)", key) is False
    assert db.one("select llm.delete_config(%s)", key) is False
    assert db.one("select (llm.config_access(%s)).key", key) is None


@pytest.mark.parametrize("is_new", [True, False])
def test_no_value_is_refused(db: Client, is_new: bool) -> None:
    if not is_new:
        db.run(SAVE, "k", Jsonb(1))
    with raises(errors.NullValueNotAllowed, "the value of configuration key k is null", hint="delete_config"):
        db.run(SAVE, "k", None)


@pytest.mark.parametrize("value", ["", "{", "gpt", "{'a': 1}", "[1,]", "NaN"])
def test_what_is_not_json_is_refused(db: Client, value: str) -> None:
    with raises(errors.InvalidTextRepresentation, "invalid input syntax for type json"):
        db.run(SAVE, "k", value)
    assert db.one(LOAD, "k") is None


def test_a_nul_is_refused_unless_it_is_cleaned(db: Client) -> None:
    for value in ('"a\\u0000b"', '{"\\u0000": 1}'):
        with raises(errors.UntranslatableCharacter, "unsupported Unicode escape sequence"):
            db.run(SAVE, "k", value)
    db.run("select llm.save_config('k', llm.clean_jsonb(%s))", '"a\\u0000b"')
    assert db.one(LOAD, "k") == "a\u241b0000b"


def test_a_value_of_64_megabytes_is_stored_and_loaded_but_not_cached(db: Client) -> None:
    db.run("select llm.save_config('huge', to_jsonb(repeat('x', 64 * 1024 * 1024)))")
    assert db.one("select length(llm.load_config('huge') #>> '{}')") == 64 * 1024 * 1024
    assert db.one("select llm.get_cached_config('huge')") is None
    assert db.rows("select * from llm.config_cache()") == []


@pytest.mark.parametrize("prepare", [False, True])
def test_parameters_are_taken_as_psycopg_sends_them(db: Client, prepare: bool) -> None:
    def run(statement: str, *arguments: object) -> Any:
        row = db.connection.execute(statement, arguments, prepare=prepare).fetchone()
        return row and row[0]

    for round_ in range(2):
        key, twin = f"key {round_}", f"twin {round_}"
        assert run("select llm.save_config(%s, %s)", key, Jsonb(1.5)) is True
        assert run("select llm.save_config(%s, %s)", key, '"text"') is True
        assert run("select llm.save_config(%s, to_jsonb(%s::float8), %s, %s, %s)", key, 2.5, "purpose", 2, "reason") is True
        assert run("select llm.save_config(p_key => %s, p_value => %s, p_expected_version => %s)", key, Jsonb({}), None) is True
        assert run("select llm.save_configs(%s, %s)", Jsonb({twin: 1}), None) == 1
        assert run("select llm.load_config(%s, %s)", "unknown", Jsonb(7)) == 7
        assert run("select llm.load_config(%s, %s, %s)", "unknown", None, False) is None
        assert run("select count(*) from llm.load_configs(%s)", "key") == round_ + 1
        last = run("select max(id) from llm.config_history")
        assert run("select llm.rollback_config(%s, %s, %s)", last, None, key) == 0
        assert run("select count(*) from llm.watch_config(%s, %s, %s)", None, "", 1) <= 1
        assert run("select count(*) from llm.watch_config(%s, %s, %s)", last, "", 10**6) == 0
        assert run("select llm.delete_config(%s, %s, %s)", twin, 1 if round_ == 0 else None, "reason") is True
        assert run("select llm.cache_config(%s)", key) in (True, False)
        assert run("select llm.invalidate_config_cache(%s)", None) in (None, "")


CALLS = {
    "load_config": "llm.load_config('k')",
    "load_configs": "llm.load_configs()",
    "config_access": "llm.config_access('k')",
    "config_at": "llm.config_at(now())",
    "config_diff": "llm.config_diff(now())",
    "watch_config": "llm.watch_config()",
    "get_cached_config": "llm.get_cached_config('k')",
    "cache_config": "llm.cache_config('k')",
    "config_cache": "llm.config_cache()",
    "save_config": "llm.save_config('k', '1')",
    "save_configs": "llm.save_configs('{}')",
    "delete_config": "llm.delete_config('k')",
    "rollback_config": "llm.rollback_config(1)",
    "invalidate_config_cache": "llm.invalidate_config_cache()",
}
WRITES = ("save_config", "save_configs", "delete_config", "rollback_config", "invalidate_config_cache")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_stranger_may_call_nothing(database: Database, call: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        database.client("nobody").run(f"select {call}")


@pytest.mark.parametrize("name", WRITES)
def test_a_reader_writes_nothing(database: Database, name: str) -> None:
    reader = database.client("reader")
    with pytest.raises(errors.InsufficientPrivilege), reader.tenant("acme"):
        reader.run(f"select {CALLS[name]}")


@pytest.mark.parametrize("name", sorted(CALLS.keys() - set(WRITES)))
def test_a_reader_reads_everything(database: Database, name: str) -> None:
    reader = database.client("reader")
    with reader.tenant("acme"):
        reader.run(f"select {CALLS[name]}")


@pytest.mark.parametrize("call", ["llm.save_config('k', '2')", "llm.save_configs('{\"k\": 2}')", "llm.delete_config('k')"])
def test_a_read_only_transaction_reads_but_writes_nothing(db: Client, call: str) -> None:
    db.run(SAVE, "k", Jsonb(1)).run("set default_transaction_read_only = on")
    assert [db.one(LOAD, "k") for _ in range(3)] == [1] * 3
    with pytest.raises(errors.ReadOnlySqlTransaction):
        db.run(f"select {call}")
    assert db.one(LOAD, "k") == 1


def test_nothing_works_without_its_storage(db: Client, app: Client) -> None:
    db.run(SAVE, "k", Jsonb(1)).run("update llm.schema_migrations set checksum = '' where name = 'pg_llm'")
    for name in ("load_config", "load_configs", "config_access", "config_at", "watch_config", "save_config", "save_configs", "delete_config"):
        with raises(errors.ObjectNotInPrerequisiteState, "the storage of pg_llm is at", hint=r"select llm\.setup\(\)"), app.tenant("acme"):
            app.run(f"select {CALLS[name]}")
