"""Fixtures: one server a session, one database a test."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from tests.support import Client, Database, in_tenant
from tools.cluster import Cluster, Installation

#: Login roles that every cluster of the tests has, by the role of pg_llm that each is a member of.
LOGINS = {"app": "llm_app", "reader": "llm_reader", "admin": "llm_admin", "auditor": "llm_auditor", "nobody": None}

_numbers = count(1)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run asynchronous tests, which a published suite may have."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The server's programs with pg_llm, as this source tree builds it."""
    return Installation(tmp_path_factory.mktemp("postgresql")).install()


@pytest.fixture(scope="session")
def cluster(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running server with the login roles, and with a template database in which pg_llm is installed."""
    with new_cluster(installation, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def database(cluster: Cluster) -> Iterator[Database]:
    """A database with pg_llm freshly installed."""
    yield from new_database(cluster)


@pytest.fixture
def db(database: Database) -> Client:
    """A client of the test's database, as superuser."""
    return database.client()


@pytest.fixture
def app(database: Database) -> Client:
    """A client of the test's database, as an application's role."""
    return database.client("app")


@pytest.fixture
def acme(app: Client) -> Client:
    """An application's client in the middle of a transaction for tenant acme."""
    return in_tenant(app, "acme")


@pytest.fixture
def bound(db: Client, app: Client) -> Client:
    """An application's client that works for tenant acme in each transaction, because its role is bound to it."""
    db.run("select llm.bind_role('app', 'acme')")
    return app


@pytest.fixture
def admin(database: Database) -> Client:
    """An administrator's client, without a tenant."""
    return database.client("admin")


@pytest.fixture
def master_key(database: Database, tmp_path: Path) -> Path:
    """The key store of the test's database, with a master key: the directory."""
    return new_key_store(database, tmp_path / "keys")


@pytest.fixture
def own_cluster(installation: Installation, tmp_path: Path) -> Iterator[Cluster]:
    """A server of the test's own, to crash, restart and reconfigure; as the fixture `cluster`."""
    with new_cluster(installation, tmp_path / "cluster") as cluster:
        yield cluster


@contextmanager
def new_cluster(installation: Installation, directory: Path, *settings: str) -> Iterator[Cluster]:
    """Run a server with the login roles and the template database `template_llm`."""
    with Cluster(installation, directory, "max_prepared_transactions=10", "max_connections=300", *settings) as cluster:
        with cluster.connect() as connection:
            connection.execute("create database template_llm")
        with cluster.connect("template_llm") as connection:
            connection.execute("set client_min_messages = warning")
            connection.execute("create extension pg_llm cascade")
            for login, role in LOGINS.items():
                connection.execute(f"create role {login} login {f'in role {role}' if role else ''}")
        yield cluster


def new_key_store(database: Database, directory: Path) -> Path:
    """Make a key store in a new directory, let the database use it, and return the directory."""
    directory.mkdir(mode=0o700)
    database.client().run("select llm.add_master_key(%s)", str(directory))
    return directory


def new_database(cluster: Cluster, template: str = "template_llm") -> Iterator[Database]:
    """Yield a new database, and drop it."""
    database = Database(cluster, f"test_{next(_numbers)}")
    with cluster.connect() as connection:
        connection.execute(f"create database {database.name} template {template}")
    try:
        yield database
    finally:
        database.close()
        if cluster.running():
            with cluster.connect() as connection:
                connection.execute(f"drop database {database.name} with (force)")
