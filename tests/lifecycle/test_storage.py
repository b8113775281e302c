"""llm.setup() and llm.migrate_down(): the storage, and its migrations."""

from __future__ import annotations

import pytest
from psycopg.errors import (
    CheckViolation,
    InsufficientPrivilege,
    InvalidParameterValue,
    LockNotAvailable,
    ObjectNotInPrerequisiteState,
)

from tests.lifecycle.releases import LATER, NEXT, NOW
from tests.lifecycle.support import contents, differences, fingerprint, storage, user_data
from tests.support import Client, Database, at_once, raises

ADD_OWNER, PRINTABLE_KEYS = "config/9001_add_owner", "config/9002_printable_keys"


@pytest.fixture
def updated(db: Client) -> Client:
    """A client of a database whose code is at NEXT and whose storage is not."""
    return db.run("alter extension pg_llm update")


def test_no_part_of_the_storage_is_a_member(db: Client) -> None:
    members = db.column(
        "select distinct d.classid::regclass::text from pg_depend d join pg_extension e on e.oid = d.refobjid"
        " where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e' and e.extname = 'pg_llm'"
        " and not (d.classid = 'pg_class'::regclass and d.objid in (select oid from pg_class where relkind = 'c')) order by 1"
    )
    assert members == ["pg_event_trigger", "pg_proc", "pg_type"]
    assert db.one("select count(*) from pg_class where relnamespace = 'llm'::regnamespace and relkind in ('r', 'p')") > 0


def test_a_second_setup_changes_nothing(filled: Database) -> None:
    client = filled.client()
    before = fingerprint(client), user_data(client), storage(client)
    assert client.rows("select * from llm.setup()") == []
    assert client.rows("select * from llm.migrate()") == []
    assert (fingerprint(client), user_data(client), storage(client)) == before


def test_every_step_is_recorded(fresh: Client) -> None:
    steps = fresh.rows(
        "select name, version, checksum, duration >= '0', now() - applied_at < '1 hour' from llm.schema_migrations where name <> 'pg_llm'"
    )
    scripts = fresh.rows("select name, version, checksum, true, true from llm._storage_scripts() where kind <> 'down'")
    assert sorted(steps) == sorted(scripts)
    assert all(len(checksum) == 64 for _, _, checksum, *_ in steps)
    assert fresh.rows("select checksum from llm._storage_scripts() where checksum <> encode(sha256(convert_to(script, 'UTF8')), 'hex')") == []
    assert fresh.row("select version, checksum = llm._storage_checksum() from llm.schema_migrations where name = 'pg_llm'") == (NEXT, True)


def test_setup_puts_back_what_was_dropped_or_disabled(db: Client, app: Client) -> None:
    before = fingerprint(db)
    db.run("select llm.save_config('k', '1')")
    assert app.one("select llm.load_config('k')") == 1
    for table, trigger in db.rows(
        "select tgrelid::regclass::text, tgname from pg_trigger where not tgisinternal"
        " and tgrelid in (select oid from pg_class where relnamespace = 'llm'::regnamespace)"
    ):
        db.run(f"drop trigger {trigger} on {table}" if trigger.startswith("c") else f"alter table {table} disable trigger {trigger}")
    for table, policy in db.rows("select tablename, policyname from pg_policies where schemaname = 'llm'"):
        db.run(f"drop policy {policy} on llm.{table}")
    for table in db.column("select oid::regclass::text from pg_class where relnamespace = 'llm'::regnamespace and relrowsecurity"):
        db.run(f"alter table {table} no force row level security, disable row level security")
    db.run("alter table llm.config alter tenant_id drop default")
    db.run("update llm.config set value = '2'")

    assert db.rows("select * from llm.setup()") == []
    assert differences(fingerprint(db), before) == []
    assert app.one("select llm.load_config('k')") == 2


def test_setup_is_for_superusers(database: Database, db: Client) -> None:
    before = storage(db)
    for call in ("llm.setup()", "llm.migrate()", "llm.migrate_down()"):
        with raises(InsufficientPrivilege, "permission denied"):
            database.client("admin").run(f"select {call}")
    db.run("grant execute on all functions in schema llm to admin")
    for call in ("llm.setup()", "llm.migrate()", "llm.migrate_down()"):
        with raises(InsufficientPrivilege, "role admin may not change the storage", hint="superuser"):
            database.client("admin").run(f"select {call}")
    assert storage(db) == before


@pytest.mark.parametrize(
    "relation", ["table llm.mine (n integer)", "view llm.mine as select 1", "sequence llm.mine", "materialized view llm.mine as select 1"]
)
def test_setup_touches_nothing_while_a_foreign_relation_stands_there(db: Client, relation: str) -> None:
    db.run(f"create {relation}")
    before = fingerprint(db), contents(db)
    for call in ("llm.setup()", "llm.migrate_down()"):
        with raises(InsufficientPrivilege, "is not touched: llm.mine belongs to postgres", hint="out of schema llm"):
            db.run(f"select {call}")
    assert (fingerprint(db), contents(db)) == before


def test_setup_waits_ten_seconds_for_a_lock_at_most(db: Client) -> None:
    settings = dict(db.rows("select proname, proconfig from pg_proc where pronamespace = 'llm'::regnamespace"))
    assert "lock_timeout=10s" in settings["setup"]
    assert "lock_timeout=10s" in settings["migrate_down"]


@pytest.mark.parametrize("call", ["setup", "migrate_down"])
def test_a_held_lock_leaves_everything_as_it_was(database: Database, updated: Client, call: str) -> None:
    if call == "migrate_down":
        updated.run("select llm.setup()")
    updated.run(f"alter function llm.{call} set lock_timeout = '50ms'")
    before = fingerprint(updated), contents(updated)
    reader = database.client()
    with reader.transaction():
        reader.run("select from llm.config")
        with raises(LockNotAvailable):
            updated.run(f"select llm.{call}()")
    assert (fingerprint(updated), contents(updated)) == before
    updated.run(f"select llm.{call}()")


def test_of_setups_at_the_same_moment_one_migrates(database: Database, updated: Client) -> None:
    steps = at_once(database.clients(4), "select count(*) from llm.setup()")
    applied = updated.one("select count(*) from llm.schema_migrations where version = %s and name <> 'pg_llm'", NEXT)
    assert sorted(steps) == [0, 0, 0, applied]


def test_pending_migrations_run_in_order_and_nothing_works_before(app: Client, updated: Client) -> None:
    for statement in (
        "select llm.load_config('k')",
        "select llm.save_config('k', '1')",
        "select * from llm.load_configs()",
        "select llm.config_access('k')",
        "select llm.delete_config('k')",
        "select * from llm.watch_config()",
        "select * from llm.config_at(now())",
    ):
        with raises(ObjectNotInPrerequisiteState, f"the storage of pg_llm is at version {NOW}, its code at {NEXT}", hint=r"select llm.setup\(\)"):
            app.run(statement)
    steps = updated.rows("select name, version from llm.setup()")
    assert steps[:2] == [(ADD_OWNER, NEXT), (PRINTABLE_KEYS, NEXT)]
    assert {("config", NEXT), ("note", NEXT)} <= set(steps[2:])
    assert updated.rows("select * from llm.setup()") == []


def test_migrations_are_all_or_nothing(updated: Client) -> None:
    """The second migration meets a row that it cannot accept, after the first one has added a column."""
    updated.run("insert into llm.config (tenant_id, key, value) values ('*', E'a\\tb', '1')")
    before = fingerprint(updated), contents(updated), storage(updated)
    with raises(CheckViolation, "config_key_is_printable"):
        updated.run("select llm.setup()")
    assert (fingerprint(updated), contents(updated), storage(updated)) == before
    with raises(ObjectNotInPrerequisiteState, hint=r"select llm.setup\(\)"):
        updated.run("select llm.load_config('k')")

    updated.run("delete from llm.config")
    assert len(updated.rows("select * from llm.setup()")) >= 2


def test_a_migration_that_changed_after_it_was_applied_is_refused(fresh: Client) -> None:
    fresh.run("update llm.schema_migrations set checksum = 'another' where name = %s", PRINTABLE_KEYS)
    before = contents(fresh)
    detail = "Applied: another. In this version: [0-9a-f]{64}"
    with raises(ObjectNotInPrerequisiteState, f"{PRINTABLE_KEYS} is not the one that was applied", hint="must not change", detail=detail):
        fresh.run("select llm.setup()")
    assert contents(fresh) == before


def test_migrations_are_undone_newest_first(fresh: Client) -> None:
    fresh.run("select llm.save_config('k', '1')")
    before = fingerprint(fresh)
    assert fresh.rows("select name, version from llm.migrate_down()") == [(PRINTABLE_KEYS, NEXT)]
    fresh.run("insert into llm.config (tenant_id, key, value) values ('*', E'a\\tb', '1')").run("delete from llm.config where key <> 'k'")
    with raises(ObjectNotInPrerequisiteState, hint=r"select llm.setup\(\)"):
        fresh.run("select llm.load_config('k')")
    assert fresh.column("select name from llm.setup()") == [PRINTABLE_KEYS]
    assert differences(fingerprint(fresh), before) == []
    assert fresh.one("select llm.load_config('k')") == 1

    assert fresh.column("select name from llm.migrate_down(2)") == [PRINTABLE_KEYS, ADD_OWNER]
    assert fresh.rows("select from pg_attribute where attrelid = 'llm.config'::regclass and attname = 'owner'") == []
    assert fresh.column("select name from llm.migrate()") == [ADD_OWNER, PRINTABLE_KEYS]
    assert differences(fingerprint(fresh), before) == []


def test_a_cached_value_is_not_served_once_a_migration_was_undone(fresh: Client) -> None:
    fresh.run("select llm.save_config('k', '1')")
    assert fresh.column("select llm.load_config('k') from generate_series(1, 2)") == [1, 1]
    fresh.run("select llm.migrate_down()")
    with raises(ObjectNotInPrerequisiteState, hint=r"select llm.setup\(\)"):
        fresh.run("select llm.load_config('k')")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (10_000, "only [0-9]+ of 10000 migrations can be undone"),
        (0, "cannot go down 0 steps"),
        (-1, "cannot go down -1 steps"),
        (None, "cannot go down null steps"),
    ],
)
def test_an_impossible_number_of_steps_down_changes_nothing(fresh: Client, steps: int | None, message: str) -> None:
    before = fingerprint(fresh), contents(fresh)
    with raises(InvalidParameterValue, message, hint="[Mm]igrations"):
        fresh.run("select llm.migrate_down(%s)", steps)
    assert (fingerprint(fresh), contents(fresh)) == before


def test_what_lies_before_a_migration_without_a_way_back_is_not_undone(fresh: Client) -> None:
    fresh.run(f"alter extension pg_llm update to '{LATER}'").run("select llm.setup()")
    before = fingerprint(fresh), contents(fresh)
    with raises(InvalidParameterValue, "can be undone"):
        fresh.run("select llm.migrate_down()")
    assert (fingerprint(fresh), contents(fresh)) == before


def test_one_can_go_back_to_the_older_release(app: Client, updated: Client) -> None:
    updated.run("select llm.setup()").run("select llm.save_config('k', '1')")
    assert len(updated.rows("select * from llm.migrate_down(2)")) == 2
    updated.run("drop extension pg_llm cascade").run(f"create extension pg_llm version '{NOW}'").run("select llm.setup()")
    assert app.row("select llm.version(), llm.load_config('k')") == (NOW, 1)
    assert updated.one("select llm.save_config('k', '2')") is True


def test_an_older_release_does_not_take_newer_storage_for_its_own(updated: Client) -> None:
    """Its code knows nothing of the migrations that were applied."""
    updated.run("select llm.setup()").run("drop extension pg_llm cascade").run(f"create extension pg_llm version '{NOW}'")
    before = storage(updated)
    with raises(ObjectNotInPrerequisiteState, f"the storage has migration {ADD_OWNER}, which pg_llm {NOW} does not know", hint="migrate_down"):
        updated.run("select llm.setup()")
    assert storage(updated) == before
