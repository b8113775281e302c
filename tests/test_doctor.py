"""llm.doctor(): content with a healthy installation, and never with one that is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.errors import InsufficientPrivilege

from tests.conftest import new_cluster, new_database
from tests.support import Client, Database, raises
from tools.cluster import Cluster, Installation


def failures(client: Client) -> dict[str, str]:
    """Return the checks that are not ok, with what was found."""
    return {name: detail for name, ok, detail, _ in client.rows("select * from llm.doctor()") if not ok}


@pytest.fixture(scope="module")
def server(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server with the settings that a user's has: the tests' own do not flush."""
    with new_cluster(installation, tmp_path_factory.mktemp("healthy"), "fsync=on", "full_page_writes=on") as server:
        yield server


@pytest.fixture(scope="module")
def healthy(server: Cluster) -> Iterator[Database]:
    """A database in which every check is ok, and stays so: tests undo what they do."""
    with a_database(server) as database:
        assert failures(database.client()) == {}
        yield database


@pytest.fixture
def db(healthy: Database) -> Iterator[Client]:
    """A superuser's client of it."""
    client = healthy.client()
    yield client
    client.close()


a_database = contextmanager(new_database)


def test_every_check_says_what_was_found_and_what_to_do(db: Client) -> None:
    checks = db.rows("select * from llm.doctor()")
    assert len(checks) > 15
    assert len({name for name, *_ in checks}) == len(checks)
    for name, ok, detail, hint in checks:
        assert ok is True, (name, detail)
        assert name and detail and hint, name


_PARTITION = "create table llm.p (tenant_id text, id int) partition by list (id); create table llm.p1 partition of llm.p default;"

_EVENTS = ("create table public.ev (at timestamptz not null) partition by range (at);"
           " select llm.create_partitions(('public.ev', 'at', 'daily', null)::llm.partition_strategy);")  # fmt: skip

#: A fault that a superuser can make, the check that finds it ("" for any), and what its detail says.
FAULTS = [
    ("alter table llm.config disable trigger history", "triggers are enabled", "history on llm.config"),
    ("alter table llm.config disable trigger coherence", "triggers are enabled", "coherence on llm.config"),
    ("alter table llm.config enable trigger coherence", "triggers are enabled", "coherence on llm.config"),
    ("alter table llm.config enable replica trigger coherence_truncate", "triggers are enabled", "coherence_truncate on llm.config"),
    ("grant execute on function llm.version() to public", "nothing is granted to PUBLIC", r"llm.version()"),
    ("grant select on llm.config to public", "nothing is granted to PUBLIC", "llm.config"),
    ("grant select (key) on llm.config to public", "", "llm.config"),
    ("grant usage on schema llm to public", "nothing is granted to PUBLIC", "schema llm"),
    ("grant usage on sequence llm.config_history_id_seq to public", "nothing is granted to PUBLIC", "llm.config_history_id_seq"),
    ("create table llm.foreign_table ()", "storage belongs to llm_owner", "llm.foreign_table"),
    ("create sequence llm.foreign_sequence", "storage belongs to llm_owner", "llm.foreign_sequence"),
    ("update llm.schema_migrations set checksum = '' where name = 'pg_llm'", "storage version", "the storage of pg_llm is at version"),
    ("drop table llm.schema_migrations", "storage version", "the storage of pg_llm is at no version"),
    ("create role gone; select llm.bind_role('gone', 'a'); drop role gone", "bound roles exist", "gone"),
    ("grant llm_owner to nobody", "llm_owner has no members", "llm_owner has member nobody"),
    ("set session_replication_role = replica", "triggers fire", "session_replication_role is replica"),
    ("alter table llm.config no force row level security", "row-level security", "llm.config"),
    ("alter table llm.config disable row level security", "row-level security", "llm.config"),
    ("drop policy own_binding on llm.tenant_roles; drop policy any_binding on llm.tenant_roles; drop policy administration on llm.tenant_roles",
     "row-level security", "llm.tenant_roles"),
    ("drop policy tenant_isolation on llm.config", "", "llm.config"),
    ("create policy planted on llm.config using (true)", "", "llm.config"),
    ("create view llm.leak as select * from llm.config", "views use their caller's rights", "llm.leak"),
    ("alter function llm.version() security definer", "functions have the right owner", "llm.version()"),
    ("alter function llm.version() owner to nobody", "functions have the right owner", "llm.version()"),
    ("alter function llm._config_history() owner to postgres", "functions have the right owner", "llm._config_history()"),
    (f"{_PARTITION} grant select on llm.p1 to llm_app", "nothing is granted on partitions", "llm.p1"),
    (f"{_PARTITION} grant select (id) on llm.p1 to llm_app", "nothing is granted on partitions", "llm.p1"),
    (f"{_PARTITION} alter table llm.p1 disable row level security", "partitions are protected", "llm.p1"),
    ("alter event trigger llm_protect_new_partitions disable", "new partitions get protected", "llm_protect_new_partitions"),
    ("alter event trigger llm_protect_new_partitions enable", "new partitions get protected", "llm_protect_new_partitions"),
    (f"{_EVENTS} update llm.partition_sets set created_at = now() - interval '3 days'", "partitions are looked after", "public.ev: never yet"),
    (f"{_EVENTS} insert into public.ev values ('0001-01-01')", "default partitions are empty", "public.ev"),
    (f"{_EVENTS} do $$ begin execute format('drop table public.ev_p%s', to_char(now() + interval '1 day', 'YYYYMMDD')); end $$",
     "partitions are made ahead", "public.ev"),
    ("""insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, "timestamp")
            values ('a', 'u', 'x', 't', 'o', now() - interval '2 hours')""", "the audit log is sealed", "1 rows wait since"),
    ("insert into llm.audit_anchor (path, server_id) select '/nowhere/file', system_identifier from pg_control_system()",
     "the audit log is anchored", "/nowhere/file cannot be read"),
    ("grant create on schema llm to nobody", "only superusers and llm_owner create in schema llm", "nobody"),
    ("grant truncate on llm.config to llm_app", "", "llm.config"),
    ("set log_parameter_max_length_on_error = 100", "parameters stay out of error logs", "log_parameter_max_length_on_error is 100B"),
    ("update pg_extension set extversion = '4.9' where extname = 'pg_partman'", "extension pg_partman", "version 4.9, at least 5 is needed"),
    ("update pg_extension set extversion = '0.0.9' where extname = 'pg_llm'", "code version", "extension 0.0.9"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "check", "detail"), FAULTS, ids=[fault for fault, *_ in FAULTS])
def test_a_fault_is_found(db: Client, fault: str, check: str, detail: str) -> None:
    with db.connection.transaction(force_rollback=True):
        db.run(fault)
        found = failures(db)
    assert any(detail in text for name, text in found.items() if check in ("", name)), found
    assert failures(db) == {}


def test_a_server_that_does_not_flush_is_found(database: Database) -> None:
    """The tests' own."""
    assert list(failures(database.client())) == ["crash safety"]


def test_a_prepared_transaction_is_no_fault_while_it_is_young(db: Client) -> None:
    db.run("begin").run("select pg_current_xact_id()").run("prepare transaction 'young'")
    assert failures(db) == {}
    db.run("rollback prepared 'young'")


def test_a_package_that_others_may_write_is_found(db: Client, installation: Installation) -> None:
    (package,) = (installation.pkglibdir / "pg_llm").iterdir()
    mode = package.stat().st_mode
    for writable in (0o775, 0o757):
        package.chmod(writable)
        try:
            assert str(package) in failures(db)["Python's folders are safe"]
        finally:
            package.chmod(mode)


def test_a_module_that_others_may_write_is_found(db: Client, installation: Installation) -> None:
    (module,) = (installation.pkglibdir / "pg_llm").glob("*/config.py")
    mode = module.stat().st_mode
    module.chmod(0o666)
    try:
        assert str(module) in failures(db).get("Python's folders are safe", "")
    finally:
        module.chmod(mode)


def test_a_python_path_in_the_servers_environment_is_found(installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SEC-10"""
    evil = tmp_path / "evil"
    evil.mkdir()
    evil.chmod(0o777)
    monkeypatch.setenv("PYTHONPATH", str(evil))
    with new_cluster(installation, tmp_path / "cluster", "fsync=on") as server, a_database(server) as database:
        found = failures(database.client())
    assert found == {"Python is not redirected": f"PYTHONPATH={evil}", "Python's folders are safe": str(evil)}


def test_a_file_that_was_deleted_is_found(healthy: Database, server: Cluster) -> None:
    reader = healthy.client()
    reader.run("select llm.cache_config('k')")
    (file,) = Path(server.datadir).glob("pg_stat_tmp/pg_llm.coherence*")
    file.unlink()
    try:
        assert list(failures(reader)) == ["caches share one file"]
        assert list(failures(healthy.client())) == ["caches share one file"], "a session that comes later does not see it"
    finally:
        healthy.close()


def test_administrators_and_auditors_call_the_doctor(healthy: Database, db: Client) -> None:
    everything = db.rows("select * from llm.doctor()")
    for user in ("admin", "auditor"):
        assert healthy.client(user).rows("select * from llm.doctor()") == everything
    for user in ("app", "reader", "nobody"):
        with raises(InsufficientPrivilege, match="permission denied"):
            healthy.client(user).run("select * from llm.doctor()")


@pytest.mark.parametrize("user", ["admin", "auditor"])
def test_who_is_no_superuser_sees_the_same_faults(server: Cluster, user: str) -> None:
    with a_database(server) as database:
        db = database.client()
        db.run("create role gone").run("select llm.bind_role('gone', 'a')").run("drop role gone")
        db.run("alter table llm.config disable trigger history").run("create table llm.foreign_table ()")
        assert set(failures(db)) == {"triggers are enabled", "bound roles exist", "storage belongs to llm_owner"}
        assert failures(database.client(user)) == failures(db)
