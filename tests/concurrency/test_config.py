"""Many clients change configuration at the same moment."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from tests.support import Client, Database, at_once, raises, wait_until

# Consecutive versions, each with one row, and the last of them is what is stored now.
BROKEN_HISTORY = """
select h.key
from (
    select key, version, lag(version, 1, 0::bigint) over (partition by tenant_id, key order by id) as before
    from llm.config_history
) h
where version <> before + 1
union all
select c.key
from llm.config c
where (c.value, c.version) is distinct from (
    select (h.value, h.version) from llm.config_history h where (h.tenant_id, h.key) = (c.tenant_id, c.key) order by id desc limit 1
)
"""


@pytest.fixture
def clients(database: Database) -> list[Client]:
    """Sixteen clients that work for tenant acme."""
    return [for_acme(client) for client in database.clients(16, "app")]


def for_acme(client: Client) -> Client:
    """Let each statement of a client be a transaction for acme, as a role that is bound to it would."""
    client.run("""
        create function pg_temp.for_acme(p_call text) returns text language plpgsql as $$
        declare
            v_result text;
        begin
            perform llm.set_tenant('acme');
            execute 'select ' || p_call into v_result;
            return v_result;
        exception
            when serialization_failure then
                return 'conflict';
        end $$
    """)
    return client


def call(client: Client, statement: str) -> Any:
    return client.one("select pg_temp.for_acme(%s)", statement)


def wait_until_blocked(db: Client, *blocked: Client) -> None:
    pids = [client.connection.info.backend_pid for client in blocked]
    wait_until(lambda: db.one("select count(distinct pid) from pg_locks where pid = any(%s) and not granted", pids) >= len(pids))


@pytest.mark.parametrize("version", [0, 1])
def test_one_of_many_savers_with_the_same_version_wins(clients: list[Client], db: Client, version: int) -> None:
    if version:
        call(clients[0], "llm.save_config('k', '0')")
    statement = f"select pg_temp.for_acme(format('llm.save_config(''k'', %L, p_expected_version => {version})', pg_backend_pid()))"
    assert sorted(at_once(clients, statement)) == ["conflict"] * 15 + ["true"]
    assert db.one("select version from llm.config") == version + 1
    assert db.column(BROKEN_HISTORY) == []


def test_all_of_many_first_savers_of_a_key_are_in_its_history(clients: list[Client], db: Client) -> None:
    assert at_once(clients, "select pg_temp.for_acme(format('llm.save_config(''k'', %L)', pg_backend_pid()))") == ["true"] * 16
    assert db.one("select version from llm.config") == 16
    assert db.one("select count(distinct value) from llm.config_history") == 16
    assert db.column(BROKEN_HISTORY) == []


def test_batches_in_any_order_of_keys_do_not_deadlock(clients: list[Client], db: Client) -> None:
    """Q-06: multi-row writes are ordered by key."""

    def save(number: int) -> None:
        random = Random(number)
        for round_ in range(10):
            keys = random.sample(range(40), 30)
            call(clients[number], f"llm.save_configs('{{{', '.join(f'"k{key}": {number * 100 + round_}' for key in keys)}}}')")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(save, range(8)))
    assert db.column(BROKEN_HISTORY) == []
    saved = {number * 100 + round_ for number in range(8) for round_ in range(10)}
    assert set(db.column("select distinct value from llm.config_history")) == saved


def test_a_rollback_and_a_batch_do_not_deadlock(database: Database, db: Client) -> None:
    """Q-06: a rollback locks what it deletes and what it brings back in one order, that of the keys."""
    first, batch, rollback = [for_acme(client) for client in database.clients(3, "app")]
    call(first, "llm.save_configs('{\"b\": 1, \"c\": 1}')")
    change = db.one("select max(id) from llm.config_history")
    call(first, "llm.save_configs('{\"b\": 2, \"c\": 2, \"z\": 2}')")

    first.run("begin").run("select llm.set_tenant('acme')").run("select llm.save_config('b', '3')")
    with ThreadPoolExecutor(2) as pool:
        rolled_back: Future[Any] = pool.submit(call, rollback, f"llm.rollback_config({change})")
        wait_until_blocked(db, rollback)
        saved: Future[Any] = pool.submit(call, batch, "llm.save_configs('{\"c\": 4, \"z\": 4}')")
        wait_until(lambda: saved.done() or db.one("select count(*) from pg_locks where pid = %s and not granted", batch.connection.info.backend_pid))
        first.run("commit")
        assert [rolled_back.result(), saved.result()] == ["3", "2"]
    assert db.column(BROKEN_HISTORY) == []


def test_rollbacks_among_saves_keep_history_whole(clients: list[Client], db: Client) -> None:
    call(clients[0], "llm.save_configs('{\"a\": 0, \"b\": 0, \"c\": 0}')")
    change = db.one("select max(id) from llm.config_history")
    calls = [
        "llm.save_configs('{\"a\": 1, \"c\": 1, \"d\": 1}')",
        f"llm.rollback_config({change})",
        "llm.save_config('b', '2')",
        "llm.delete_config('c')",
    ]

    def work(number: int) -> None:
        for round_ in range(10):
            call(clients[number], calls[(number + round_) % len(calls)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert db.column(BROKEN_HISTORY) == []
    call(clients[0], f"llm.rollback_config({change})")
    assert dict(db.rows("select key, value from llm.config")) == {"a": 0, "b": 0, "c": 0}


def test_a_key_made_and_deleted_by_another_does_not_count_its_versions_twice(database: Database, db: Client) -> None:
    other, saver = [for_acme(client) for client in database.clients(2, "app")]
    other.run("begin").run("select llm.set_tenant('acme')").run("select llm.save_config('k', '1')").run("select llm.delete_config('k')")
    with ThreadPoolExecutor(1) as pool:
        saver.run("begin").run("select llm.set_tenant('acme')")
        saved = pool.submit(saver.one, "select llm.save_config('k', '2')")
        wait_until_blocked(db, saver)
        other.run("commit")
        with raises(errors.SerializationFailure, match="configuration key k was deleted at the same time", hint="Try again"):
            saved.result()
    saver.run("rollback")
    assert call(saver, "llm.save_config('k', '2')") == "true"
    assert db.column("select version from llm.config_history order by id") == [1, 2, 3]


def test_a_save_in_repeatable_read_that_comes_second_is_a_conflict(database: Database, db: Client) -> None:
    db.run("select llm.save_config('k', '1')")
    late = database.client().run("begin isolation level repeatable read").run("select 1")
    db.run("select llm.save_config('k', '2')")
    for statement in ("save_config('k', '3')", "save_configs('{\"k\": 3}')", "delete_config('k')"):
        with pytest.raises(errors.SerializationFailure), late.transaction():
            late.run(f"select llm.{statement}")
    late.run("rollback")
    with pytest.raises(errors.SerializationFailure):
        db.run("select llm.save_config('k', %s, p_expected_version => 1)", Jsonb(2.5))
