"""Behind a connection pool that gives each transaction another client's backend: pgbouncer in transaction mode."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import ObjectNotInPrerequisiteState, OperationalError

from tests.conftest import LOGINS
from tests.security.support import functions
from tests.support import Client, Database, raises
from tools.cluster import ROOT

TENANTS = [f"tenant {number}" for number in range(20)]

#: A lock that outlives its transaction stays with the backend, which another client gets.
_SESSION_LOCK = re.compile(r"pg_(try_)?advisory_(un)?lock(_shared|_all)?\b")


@dataclass
class Pooler:
    """A running pgbouncer before a test's database."""

    database: Database
    directory: Path
    port: int
    clients: ExitStack

    def dsn(self, user: str = "app") -> str:
        """Return the connection string of the database through the pool."""
        return f"host={self.database.cluster.unixsocketdir} port={self.port} dbname={self.database.name} user={user}"

    def client(self, user: str = "app") -> Client:
        """Return a new client; it is disconnected before the pool stops."""
        client = Client(psycopg.connect(self.dsn(user), autocommit=True))
        self.clients.callback(client.close)
        return client


@contextmanager
def pgbouncer(database: Database, directory: Path, pool_size: int) -> Iterator[Pooler]:
    """Run pgbouncer with so many server connections."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") or shutil.which("pgbouncer")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (directory / "users").write_text("".join(f'"{user}" ""\n' for user in ("postgres", *LOGINS)))
    (directory / "pgbouncer.ini").write_text(
        f"""
        [databases]
        * = host={database.cluster.unixsocketdir} port={database.cluster.port}
        [pgbouncer]
        listen_addr =
        listen_port = {port}
        unix_socket_dir = {database.cluster.unixsocketdir}
        auth_type = trust
        auth_file = {directory}/users
        pool_mode = transaction
        default_pool_size = {pool_size}
        max_client_conn = 300
        max_prepared_statements = 100
        """
    )
    with (directory / "log").open("w") as log:
        process = subprocess.Popen([program, directory / "pgbouncer.ini"], stdout=log, stderr=log)
    pooler = Pooler(database, directory, port, ExitStack())
    try:
        _wait_for(pooler, process)
        yield pooler
    finally:
        pooler.clients.close()
        process.terminate()
        process.wait()


def _wait_for(pooler: Pooler, process: subprocess.Popen[bytes]) -> None:
    socket_file = Path(pooler.database.cluster.unixsocketdir) / f".s.PGSQL.{pooler.port}"
    while process.poll() is None:
        if socket_file.exists():
            try:
                psycopg.connect(pooler.dsn()).close()
                return
            except OperationalError:
                continue
    raise AssertionError((pooler.directory / "log").read_text())


type StartPooler = Callable[[int], Pooler]


@pytest.fixture
def pooler(database: Database, db: Client, tmp_path: Path) -> Iterator[StartPooler]:
    """Start a pool of some size; each tenant's key k says whose it is, and the global one that it is nobody's."""
    db.run("select llm.save_config('k', '\"nobody\"')")
    for tenant in TENANTS:
        with db.tenant(tenant):
            db.run("select llm.save_config('k', to_jsonb(%s::text))", tenant)
    with ExitStack() as running:
        yield lambda pool_size: running.enter_context(pgbouncer(database, tmp_path, pool_size))


def test_a_tenant_does_not_reach_the_next_client(pooler: StartPooler) -> None:
    """POOL-01"""
    pool = pooler(1)
    first, second = pool.client(), pool.client()
    with first.tenant("tenant 1"):
        backend = first.one("select pg_backend_pid()")
        assert first.one("select llm.cache_config('k')") is True
        assert first.one("select llm.load_config('k')") == "tenant 1"
    assert second.one("select pg_backend_pid()") == backend
    assert second.one("select llm.current_tenant()") is None
    assert second.one("select llm.load_config('k')") == "nobody"
    assert second.column("select value from llm.config_cache()") == ["nobody"]
    assert second.column("select distinct tenant_id from llm.config") == ["*"]
    with second.tenant("tenant 2"):
        assert second.one("select llm.load_config('k')") == "tenant 2"


@pytest.mark.parametrize("misuse", ["set llm.tenant = 'tenant 1'", "select set_config('llm.tenant', 'tenant 1', false)"])
def test_a_tenant_set_for_the_session_is_refused(pooler: StartPooler, misuse: str) -> None:
    """POOL-02"""
    pool = pooler(1)
    careless, next_client = pool.client(), pool.client()
    careless.run(misuse)
    for statement in ("select llm.load_config('k')", "select llm.load_config('k', p_cached => false)", "select * from llm.config",
                      "select llm.save_config('k', '1')", "select * from llm.config_cache()", "select llm.get_cached_config('k')"):  # fmt: skip
        with raises(ObjectNotInPrerequisiteState, match="tenant 1 was not set by llm.set_tenant", hint="first statement"):
            next_client.run(statement)
    with next_client.tenant("tenant 2"):
        assert next_client.one("select llm.load_config('k')") == "tenant 2"
    with raises(ObjectNotInPrerequisiteState, match="was not set by llm.set_tenant"):
        next_client.run("select llm.load_config('k')")


def test_a_session_setting_made_beside_set_tenant_is_refused_in_the_next_transaction(pooler: StartPooler) -> None:
    """POOL-02: also with the time of the transaction that it was made in."""
    pool = pooler(1)
    careless, next_client = pool.client(), pool.client()
    careless.run("select set_config('llm.tenant', 'tenant 1', false), set_config('llm.tenant_set_at', date_part('epoch', now())::text, false)")
    with raises(ObjectNotInPrerequisiteState, match="was not set by llm.set_tenant"):
        next_client.run("select llm.load_config('k')")


def test_two_hundred_clients_of_four_backends_read_their_own(pooler: StartPooler) -> None:
    """POOL-03: 20,800 reads in four ways, of random tenants and none, between writes."""
    pool = pooler(4)
    transactions, wrong = asyncio.run(_crowd(pool, clients=200, transactions=26))
    assert (transactions, wrong) == (5_200, [])


async def _crowd(pool: Pooler, clients: int, transactions: int) -> tuple[int, list[object]]:
    wrong: list[object] = []
    done = 0

    async def client(number: int, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        nonlocal done
        choose = random.Random(number)
        async with connection:
            for _ in range(transactions):
                tenant = choose.choice([*TENANTS, None])
                async with connection.pipeline(), connection.transaction():
                    if tenant is not None:
                        await connection.execute("select llm.set_tenant(%s)", (tenant,))
                        if choose.random() < 0.1:
                            await connection.execute("select llm.save_config(%s, to_jsonb(%s::text))", (f"of client {number}", tenant))
                    cursor = await connection.execute(
                        """
                        select llm.current_tenant(), llm.load_config('k'), llm.load_config('k', p_cached => false),
                               (select array_agg(distinct value #>> '{}') from llm.config where tenant_id <> '*')
                        """
                    )
                    row = await cursor.fetchone()
                    if row != (tenant, tenant or "nobody", tenant or "nobody", [tenant] if tenant else None):
                        wrong.append((tenant, row))
                done += 1

    # One after another: a socket refuses who comes while its queue is full (unix(7), EAGAIN), and the queue's length is the machine's.
    connections = [await psycopg.AsyncConnection.connect(pool.dsn()) for _ in range(clients)]
    async with asyncio.TaskGroup() as group:
        for number, connection in enumerate(connections):
            group.create_task(client(number, connection))
    return done, wrong


def test_prepared_statements_survive_new_definitions(pooler: StartPooler, db: Client) -> None:
    """POOL-04: what ALTER EXTENSION UPDATE and llm.setup() do in between costs at most one retry."""
    pool = pooler(2)
    *clients, occupier = [pool.client() for _ in range(4)]
    for client in clients:
        client.connection.prepare_threshold = 0
    backends = set()
    retries = 0

    def access(client: Client, tenant: str) -> tuple[object, ...]:
        with client.tenant(tenant):
            backends.add(client.connection.execute("select pg_backend_pid()", prepare=False).fetchone())
            return client.row("select key, value, version, tenant_id from llm.config_access(%s)", "k")

    for step in ("select 1", "select llm.setup()", _REPLACE_EVERY_FUNCTION, "alter extension pg_llm update", "select llm.setup()"):
        db.run(step)
        for client, tenant, is_other_backend in product(clients, TENANTS[:3], (False, True)):
            with ExitStack() as occupied:
                if is_other_backend:
                    occupied.enter_context(occupier.tenant("tenant 0"))
                try:
                    row = access(client, tenant)
                except (psycopg.errors.FeatureNotSupported, psycopg.errors.InvalidSqlStatementName):
                    retries += 1
                    row = access(client, tenant)
                assert row == ("k", tenant, 1, tenant)
    assert len(backends) == 2
    assert retries <= 1


#: As an upgrade script does.
_REPLACE_EVERY_FUNCTION = """
    do $$
    declare
        v_definition text;
    begin
        for v_definition in select pg_get_functiondef(p.oid) from pg_proc p where p.pronamespace = 'llm'::regnamespace loop
            execute v_definition;
        end loop;
    end
    $$
"""


def test_no_source_takes_a_lock_that_outlives_its_transaction() -> None:
    """POOL-05"""
    assert _SESSION_LOCK.search("perform pg_advisory_lock(1)") and not _SESSION_LOCK.search("perform pg_advisory_xact_lock(1)")
    sources = [path for folder in ("sql", "python") for path in (ROOT / folder).rglob("*.*") if path.suffix in (".sql", ".py")]
    assert sources
    assert [path for path in sources if _SESSION_LOCK.search(path.read_text())] == []


def test_no_function_leaves_a_lock_behind(db: Client) -> None:
    """POOL-05"""
    db.run("select pg_advisory_lock(1)")
    advisory = "select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'"
    assert db.one(advisory) == 1
    db.run("select pg_advisory_unlock_all()")
    for function in functions(db):
        with db.tenant("a"):
            function.outcome(db)
        assert db.one(advisory) == 0, function.signature
