"""Keys and plain text where they must not be: logs, statistics, errors, memory that lasts, dumps, backups, WAL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import ConfigFileError, InsufficientPrivilege, ObjectNotInPrerequisiteState, QueryCanceled

from tests.conftest import new_cluster, new_database, new_key_store
from tests.offline import unwrap
from tests.support import Client, Database, raises
from tools.cluster import Cluster, Installation

PLAIN = "canary in clear 5dd7"

#: A server that logs as much as one can ask for.
TALKATIVE = (
    "shared_preload_libraries=auto_explain,pg_stat_statements", "log_statement=all", "log_min_duration_statement=0", "log_min_messages=debug1",
    "log_parameter_max_length=-1", "log_parameter_max_length_on_error=-1", "log_error_verbosity=verbose", "auto_explain.log_min_duration=0",
    "auto_explain.log_nested_statements=on", "auto_explain.log_verbose=on", "auto_explain.log_analyze=on", "auto_explain.log_triggers=on",
    "auto_explain.log_parameter_max_length=-1", "auto_explain.log_settings=on", "pg_stat_statements.track=all", "track_activity_query_size=100000",
    "pg_stat_statements.track_utility=on", "debug_print_plan=on", "debug_print_parse=on", "debug_print_rewritten=on", "log_executor_stats=off",
    "wal_level=logical", "summarize_wal=on",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server that logs everything."""
    with new_cluster(installation, tmp_path_factory.mktemp("talkative"), *TALKATIVE) as server:
        yield server


@pytest.fixture
def database(server: Cluster) -> Iterator[Database]:
    """A database of it."""
    for database in new_database(server):
        database.client().run("create extension pg_stat_statements").run(_CANARY)
        yield database


#: Gives the plain text without saying it: what a client writes into a statement is the client's to hide, and plans show it.
_CANARY = """
    create function public.canary() returns text language plpython3u volatile as $$
    return "".join(reversed("7dd5 raelc ni yranac"))
    $$
"""


def use_everything(database: Database, store: Path) -> set[bytes]:
    """Do all that can be done with keys, and return what must be found nowhere: also of keys that were replaced."""
    db, app, admin = database.client(), database.client("app"), database.client("admin")
    db.run("create table public.notes (id int primary key, body bytea)").run("grant all on public.notes to app, admin")
    db.run("select llm.register_encrypted_column('public.notes', 'body', 'id')")
    place = "'public.notes', 'body', i::text"
    with app.tenant("a"):
        app.run(f"insert into public.notes select i, llm.encrypt_data(public.canary(), null, {place}) from generate_series(1, 50) i")
        app.run(f"insert into public.notes select i, llm.encrypt_data(public.canary(), '(,,,t)', {place}) from generate_series(51, 60) i")
        app.run("select octet_length(llm.decrypt_data(body, null, 'public.notes', 'body', id::text)) from public.notes")
        app.run("select llm.blind_index(public.canary(), 't', 'c')")
        app.run("select llm.generate_key(), llm.rotate_key()")
    with admin.tenant("a"):
        admin.run("select octet_length(llm.break_glass_decrypt(body, 'a test', 'public.notes', 'body', id::text)) from public.notes")
    app.run("call llm.rewrap('public.notes', 'body', 'a')")
    canaries = unwrap(store, db).canaries()
    db.run("select llm.rotate_master_key()").run("select * from llm.doctor()").run("select * from llm.validate_security_compliance()")
    canaries |= unwrap(store, db).canaries()
    with admin.tenant("b"):
        admin.run("select llm.encrypt_data('of b')").run("select llm.revoke_key(null)").run("select llm.shred_key()")
    return canaries


def found(needles: set[bytes], haystack: Path) -> list[str]:
    """Return which of these stand in a file or in any file of a folder."""
    files = [file for file in ([haystack] if haystack.is_file() else haystack.rglob("*")) if file.is_file() and not file.is_symlink()]
    return [f"{needle!r} in {file}" for file in files for content in [file.read_bytes()] for needle in needles if needle in content]


def test_enc_08_nothing_tells_a_key_or_what_was_encrypted(database: Database, server: Cluster, tmp_path: Path) -> None:
    store = new_key_store(database, tmp_path / "keys")
    needles = use_everything(database, store) | {PLAIN.encode(), PLAIN.encode().hex().encode()}
    assert len(needles) > 20
    db = database.client()

    log = Path(server.logfile)
    assert "Query Parameters" in log.read_text(errors="replace"), "auto_explain says nothing about nested statements"
    assert "llm._reserve_uses" in log.read_text(errors="replace")
    # debug_print_plan writes constants as signed numbers, a byte each
    numbers = {" ".join(str((byte + 128) % 256 - 128) for byte in needle).encode() for needle in needles if len(needle) == 32}
    assert found(needles | numbers, log) == []
    seen = str(db.rows("select query from pg_stat_statements union all select query from pg_stat_activity")).encode()
    assert b"llm.encrypt_data" in seen
    assert [needle for needle in needles if needle in seen] == []

    server.program("pg_dump", "-Fp", "-f", tmp_path / "plain.sql", database.name)
    server.program("pg_dump", "-Fc", "-Z0", "-f", tmp_path / "custom.dump", database.name)
    db.run("checkpoint")
    server.program("pg_basebackup", "-D", tmp_path / "backup", "-c", "fast", "-X", "stream")
    for place in (tmp_path / "plain.sql", tmp_path / "custom.dump", tmp_path / "backup", Path(server.datadir)):
        assert found(needles, place) == []
    assert "encrypt" in (tmp_path / "plain.sql").read_text()


def test_enc_08_the_search_finds_what_is_there(database: Database, server: Cluster, tmp_path: Path) -> None:
    """A key as a parameter of a nested statement, and as a row, is found: else the test above would prove nothing."""
    key = b"0123456789abcdef0123456789abcdef"
    db = database.client()
    db.run("create table public.leak as select ''::bytea as key")
    db.run("create function public.leak(p_key bytea) returns void language plpgsql as $$ begin update public.leak set key = p_key; end $$")
    db.run("create function public.key() returns bytea language plpython3u volatile as $$\nreturn bytes(reversed(b'fedcba9876543210' * 2))\n$$")
    db.run("select public.leak(public.key())")
    db.run("checkpoint")
    assert found({key, key.hex().encode()}, Path(server.logfile))
    assert found({key}, Path(server.datadir))


def test_enc_17_a_dump_alone_is_worth_nothing(database: Database, server: Cluster, installation: Installation, tmp_path: Path) -> None:
    store = new_key_store(database, tmp_path / "keys")
    app = database.client("app")
    with app.tenant("a"):
        value = app.one("select llm.encrypt_data('a secret')")
        index = app.one("select llm.blind_index('ada@example.org', 'users', 'email', 256)")
    server.program("pg_dump", "-Fc", "-f", tmp_path / "dump", database.name)
    with new_cluster(installation, tmp_path / "thief") as thief:
        thief.program("createdb", "stolen")
        thief.program("pg_restore", "--exit-on-error", "-d", "stolen", tmp_path / "dump")
        stolen = Client(thief.connect("stolen"))
        stolen.run("select llm.setup()")
        store.rename(tmp_path / "not stolen")
        for statement in ("select llm.decrypt_data(%(value)s)", "select llm.blind_index('ada@example.org', 'users', 'email', 256)"):
            with raises(ConfigFileError, match="master key version 1 is missing"), stolen.tenant("a"):
                stolen.connection.execute(statement, {"value": value})
        # a master key of the thief's own
        fake = tmp_path / "keys"
        fake.mkdir(mode=0o700)
        (fake / "master.1").write_text("00" * 32)
        (fake / "master.1").chmod(0o400)
        for file in (tmp_path / "not stolen").glob("tenant.*"):
            (fake / file.name).write_bytes(bytes(32))
            (fake / file.name).chmod(0o400)
        with raises(ConfigFileError, match="is not the key that it was"), stolen.tenant("a"):
            stolen.run("select llm.decrypt_data(%s)", value)
        stolen.run("update llm.master_keys set fingerprint = f.fingerprint from llm._prepare_master_key(1, %s, null) f", str(fake))
        with raises(psycopg.errors.DataException, match="is not authentic"), stolen.tenant("a"):
            stolen.run("select llm.decrypt_data(%s)", value)
        # with the key store it is the owner's backup
        for file in fake.iterdir():
            file.unlink()
        for file in (tmp_path / "not stolen").iterdir():
            file.rename(fake / file.name)
        with stolen.tenant("a"):
            assert stolen.one("select llm.decrypt_data(%s)", value) == "a secret"
            assert stolen.one("select llm.blind_index('ada@example.org', 'users', 'email', 256)") == index
        stolen.close()


#: Returns everything that this backend's Python holds, as text: what the collector knows, and what that refers to.
_MEMORY = """
    create function public.memory() returns setof bytea language plpython3u as $$
    import gc, types
    seen, queue, texts = set(), [*gc.get_objects(), GD, SD], []
    own = {id(seen), id(queue), id(texts)}
    while queue:
        item = queue.pop()
        if id(item) in seen or id(item) in own:
            continue
        seen.add(id(item))
        if isinstance(item, (bytes, bytearray)):
            texts.append(bytes(item))
        elif isinstance(item, types.CodeType):
            queue.extend(item.co_consts)
        elif isinstance(item, str):
            texts.append(item.encode("utf-8", "surrogatepass"))
        else:
            queue.extend(gc.get_referents(item))
    return texts
    $$
"""


def test_sec_11_memory_that_lasts_holds_no_secret(database: Database, tmp_path: Path) -> None:
    store = new_key_store(database, tmp_path / "keys")
    db = database.client()
    db.run(_MEMORY)
    with db.tenant("a"):
        value = db.one("select llm.encrypt_data(public.canary())")
        db.run("select octet_length(llm.decrypt_data(%s))", value)
        db.run("select octet_length(llm.decrypt_data(llm.encrypt_data(public.canary(), '(,,,t)')))")
        db.run("select llm.blind_index(public.canary(), 't', 'c', 32, 'none'), llm.rotate_key()")
        db.run("select llm.rewrap_value(%s)", value)
    needles = unwrap(store, database.client()).canaries() | {PLAIN.encode()}
    db.run("select llm.rotate_master_key()").run("select * from llm.doctor()")
    with db.tenant("a"), raises(psycopg.errors.DataException), db.transaction():
        db.run("select llm.decrypt_data(%s)", bytes(value[:-1]) + b"\0")
    needles |= unwrap(store, database.client()).canaries()
    db.run("set role nobody").run("discard plans").run("reset role")
    memory = [bytes(text) for text in db.column("select public.memory()")]
    assert any(b"pg_llm tenant key" in text for text in memory), "the walk does not reach our modules"
    assert any(value[2:18] in text for text in memory), "the walk does not reach our caches"
    assert [needle for needle in needles for text in memory if needle in text] == []


def errors(client: Client, statements: list[str], arguments: dict[str, object]) -> list[str]:
    """Run statements that fail, and return all that the errors say."""
    said = []
    for statement in statements:
        with pytest.raises(psycopg.Error) as caught, client.tenant("a"):
            client.connection.execute(statement, arguments)
        diag = caught.value.diag
        said.append(f"{diag.message_primary} {diag.message_detail} {diag.message_hint} {diag.context} {diag.internal_query}")
    return said


def test_sec_12_no_error_tells_a_secret(database: Database, server: Cluster, tmp_path: Path) -> None:
    store = new_key_store(database, tmp_path / "keys")
    app, admin = database.client("app"), database.client("admin")
    with app.tenant("a"):
        value = bytes(app.one("select llm.encrypt_data(public.canary())"))
        deflated = bytes(app.one("select llm.encrypt_data(public.canary(), '(,,,t)')"))
    keys = unwrap(store, database.client())
    arguments: dict[str, object] = {
        "value": value,
        "short": value[:50],
        "changed": value[:60] + b"\0" + value[61:],
        "deflated": deflated[:-1] + b"\0",
    }
    statements = [
        "select llm.encrypt_data(public.canary(), '(bf,,,)')",
        "select llm.encrypt_data(public.canary(), '(,128,,)')",
        "select llm.encrypt_data(public.canary(), '(,,nonsense,)')",
        "select llm.blind_index(public.canary(), 't', 'c', 7)",
        "select llm.blind_index(public.canary(), 't', 'c', 8, 'nonsense')",
        "select llm.decrypt_data(%(short)s)",
        "select llm.decrypt_data(%(changed)s)",
        "select llm.decrypt_data(%(deflated)s)",
        "select llm.decrypt_data(%(value)s, '(,,nonsense,)')",
        "select llm.decrypt_data(%(value)s, null, 'elsewhere')",
        "select llm.rewrap_value(%(changed)s)",
    ]
    said = errors(app, statements, arguments)
    said += errors(admin, ["select llm.break_glass_decrypt(%(changed)s, 'why')", "select llm.break_glass_decrypt(%(value)s, '')"], arguments)
    file = next(store.glob("tenant.*"))
    kept = file.read_bytes()
    for path, content in ((file, bytes(32)), (store / "master.1", b"00" * 32), (store / "master.1", keys.masters[1].hex().encode() + b"x")):
        path.unlink()
        path.write_bytes(content)
        path.chmod(0o400)
        said += errors(app, ["select llm.encrypt_data(public.canary())", "select llm.decrypt_data(%(value)s)"], arguments)
    needles = keys.canaries() | {PLAIN.encode(), kept}
    everything = "\n".join(said).encode()
    assert [needle for needle in needles if needle in everything] == []
    assert found(needles, Path(server.logfile)) == []
    seen = str(database.client().rows("select query from pg_stat_statements union all select query from pg_stat_activity")).encode()
    assert [needle for needle in needles if needle in seen] == []


POISONS = {
    "hmac": "import hmac; hmac.digest = lambda *a: bytes(32); hmac.compare_digest = lambda *a: True",
    "_hashlib": "import _hashlib, hashlib\nhashlib.sha256 = hashlib.sha512 = None",
    "os.urandom": "import os; os.urandom = lambda n: bytes(n)",
    "sys.path": "import sys; sys.path.insert(0, '/tmp')\nfor name in ('hmac', 'os', 'zlib', 'json', 'hashlib'): sys.modules.pop(name, None)",
    "plpy": "plpy.quote_literal = lambda text: 'null'",
    "open": "import builtins; builtins.open = lambda *a, **k: None",
}


@pytest.mark.parametrize("poison", POISONS)
def test_sec_09_what_another_function_poisons_does_not_weaken_ours(database: Database, tmp_path: Path, poison: str) -> None:
    new_key_store(database, tmp_path / "keys")
    victim, healthy = database.client(), database.client()
    victim.run(f"create function public.poison() returns void language plpython3u as $$\n{POISONS[poison]}\n$$")
    value = healthy.one("select llm.encrypt_data('a secret')")
    victim.run("select llm.decrypt_data(%s)", value).run("select public.poison()")
    changed = bytes(value[:-1]) + bytes([value[-1] ^ 1])
    assert victim.one("select llm.decrypt_data(%s)", value) == "a secret"
    with pytest.raises(psycopg.errors.DataException):
        victim.run("select llm.decrypt_data(%s)", changed)
    mine, again = victim.column("select llm.encrypt_data('mine') from generate_series(1, 2)")
    assert mine[22:38] != again[22:38]
    assert healthy.one("select llm.decrypt_data(%s)", mine) == "mine"
    key = victim.one("select llm.generate_key()")
    assert healthy.one("select llm.decrypt_data(llm.encrypt_data('x', (null, null, %s, null)::llm.encryption))", key) == "x"


@pytest.mark.parametrize("poison", ["hmac", "os.urandom"])
def test_sec_09_what_was_poisoned_before_is_noticed(database: Database, tmp_path: Path, poison: str) -> None:
    new_key_store(database, tmp_path / "keys")
    value = database.client().one("select llm.encrypt_data('a secret')")
    db = database.client()
    db.run(f"create function public.poison() returns void language plpython3u as $$\n{POISONS[poison]}\n$$").run("select public.poison()")
    for statement in ("select llm.encrypt_data('x')", "select llm.decrypt_data(%(value)s)", "select llm.generate_key()"):
        with raises(ObjectNotInPrerequisiteState, match="the server's Python fails the test of its cryptography", hint="llm.doctor"):
            db.connection.execute(statement, {"value": value})
    assert db.one("select ok from llm.doctor() where name = $$Python's cryptography is right$$") is False


@contextmanager
def evil_modules(directory: Path) -> Iterator[Path]:
    """Make modules that a PYTHONPATH would put before the real ones."""
    directory.mkdir()
    (directory / "hmac.py").write_text("def digest(*a): return bytes(32)\ndef compare_digest(*a): return True\ndef new(*a, **k): return None\n")
    yield directory


def test_sec_10_modules_from_the_environment_are_noticed(installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with evil_modules(tmp_path / "evil") as evil:
        monkeypatch.setenv("PYTHONPATH", str(evil))
        with new_cluster(installation, tmp_path / "cluster") as server:
            for database in new_database(server):
                db = database.client()
                wrong = db.column("select name from llm.doctor() where not ok")
                assert {"Python is not redirected", "Python's cryptography is right"} <= set(wrong)
                directory = tmp_path / "keys"
                directory.mkdir(mode=0o700)
                with raises(ObjectNotInPrerequisiteState, match="fails the test of its cryptography"):
                    db.run("select llm.add_master_key(%s)", str(directory))
                with raises(ObjectNotInPrerequisiteState, match="no master key|fails the test"):
                    db.run("select llm.encrypt_data('x')")


def test_sec_13_a_huge_text_ends_at_the_time_limit(database: Database, tmp_path: Path) -> None:
    new_key_store(database, tmp_path / "keys")
    app = database.client("app")
    with app.tenant("a"):
        app.run("select llm.encrypt_data('x')")
    with raises(QueryCanceled), app.tenant("a"):
        app.run("set local statement_timeout = '50ms'")
        app.run("select count(llm.encrypt_data(repeat('x', 1000000), '(,,,t)')) from generate_series(1, 100000)")
    with app.tenant("a"):
        assert app.one("select llm.decrypt_data(llm.encrypt_data('still here'))") == "still here"


def test_sec_13_a_huge_text_takes_bounded_memory_and_gives_it_back(database: Database, tmp_path: Path) -> None:
    new_key_store(database, tmp_path / "keys")
    app = database.client("app")
    size = 64_000_000  # more than the 32 MiB up to which malloc() may keep what is freed

    def memory(kind: str) -> int:
        status = Path(f"/proc/{app.connection.info.backend_pid}/status").read_text()
        return int(status.partition(f"{kind}:")[2].split()[0]) * 1024

    both_ways = "select octet_length(llm.decrypt_data(llm.encrypt_data(repeat('x', %s))))"
    with app.tenant("a"):
        assert app.one(both_ways, 1) == 1
    before = memory("VmRSS")
    with app.tenant("a"):
        assert app.one(both_ways, size) == size
        # the plan of a statement holds its constants until the next one comes
        assert app.one(both_ways, 1) == 1
    assert memory("VmHWM") - before < 20 * size
    assert memory("VmRSS") - before < size // 2


def test_sec_22_nobody_can_change_a_function_that_handles_keys(database: Database) -> None:
    db = database.client()
    assert db.column("select m.member::regrole::text from pg_auth_members m where m.roleid = 'llm_owner'::regrole") == []
    functions = db.column("select oid::regprocedure::text from pg_proc where pronamespace = 'llm'::regnamespace and proowner = 'llm_owner'::regrole")
    assert "llm.generate_key(integer,timestamp with time zone,bigint)" in functions
    for user in ("app", "admin", "auditor", "nobody", "llm_admin"):
        db.run(f"set role {user}")
        for function in functions:
            with raises(InsufficientPrivilege, match="must be owner of function|permission denied for schema llm"):
                db.run(f"alter function {function} reset search_path")
        db.run("reset role")


def test_rls_17_who_does_not_see_all_keys_does_not_dump_them(database: Database, server: Cluster, tmp_path: Path) -> None:
    new_key_store(database, tmp_path / "keys")
    db = database.client()
    db.run("select llm.encrypt_data('x')")
    db.run("drop role if exists dumper").run("create role dumper login in role pg_read_all_data")
    try:
        with pytest.raises(RuntimeError, match="row-level security"):
            server.program("pg_dump", "-U", "dumper", "-f", tmp_path / "dump", database.name)
    finally:
        db.run("drop role dumper")


def test_rls_18_who_may_read_all_data_reads_no_keys(database: Database, tmp_path: Path) -> None:
    new_key_store(database, tmp_path / "keys")
    db = database.client()
    with db.tenant("a"):
        db.run("select llm.encrypt_data('x')")
    tables = db.column(
        "select oid::regclass::text from pg_class where relnamespace = 'llm'::regnamespace and relkind = 'r'"
        " and relname in ('master_keys', 'tenant_keys', 'data_keys', 'data_key_versions', 'key_usage', 'key_events', 'rewraps')"
    )
    assert len(tables) == 7
    db.run("grant pg_read_all_data to nobody")
    try:
        nobody = database.client("nobody")
        for table in tables:
            with nobody.transaction():
                # the settings that llm.set_tenant() makes, which this role may not call
                nobody.run("select set_config('llm.tenant', 'a', true), set_config('llm.tenant_set_at', date_part('epoch', now())::text, true)")
                try:
                    rows = nobody.rows(f"select * from {table}")
                except InsufficientPrivilege as error:
                    assert "current_tenant" in str(error)
                else:
                    assert rows == []
    finally:
        db.run("revoke pg_read_all_data from nobody")
