"""Fixtures: a server on which later releases of pg_llm lie beside this one, and another server that has never heard of pg_llm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import new_cluster, new_database
from tests.lifecycle.releases import NEXT, later_release, next_release
from tests.lifecycle.support import Mover, fill
from tests.support import Client, Database
from tools.cluster import Cluster, Installation


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """As the fixture of all tests, in an installation of its own, to which NEXT (the default version from then on) and LATER are added."""
    directory = tmp_path_factory.mktemp("lifecycle")
    installation = Installation(directory / "postgresql").install()
    with new_cluster(installation, directory / "cluster") as cluster:
        following = next_release(directory / "next")
        installation.install(later_release(directory / "later", following)).install(following)
        with cluster.connect() as connection:
            connection.execute("create database template_next")
        with cluster.connect("template_next") as connection:
            connection.execute("set client_min_messages = warning")
            connection.execute(f"create extension pg_llm version '{NEXT}' cascade")
        yield cluster


@pytest.fixture
def filled(database: Database) -> Database:
    """The test's database, with data of every kind."""
    fill(database)
    return database


@pytest.fixture
def fresh_database(cluster: Cluster) -> Iterator[Database]:
    """A database in which NEXT was installed directly."""
    yield from new_database(cluster, "template_next")


@pytest.fixture
def fresh(fresh_database: Database) -> Client:
    """A client of `fresh_database`, as superuser."""
    return fresh_database.client()


@pytest.fixture
def bare(cluster: Cluster) -> Iterator[Database]:
    """A database with what pg_llm requires, and without pg_llm, on the server that has its roles."""
    for database in new_database(cluster):
        database.client().run("drop extension pg_llm cascade").run("drop schema llm cascade")
        yield database


@pytest.fixture(scope="session")
def other_server(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Another server of the same installation."""
    with Cluster(cluster.installation, tmp_path_factory.mktemp("elsewhere")) as elsewhere:
        yield elsewhere


@pytest.fixture
def elsewhere(other_server: Cluster) -> Iterator[Cluster]:
    """Another server that knows neither pg_llm nor its roles."""
    yield other_server
    with other_server.connect() as connection:
        roles = [name for (name,) in connection.execute("select quote_ident(rolname) from pg_roles where oid >= 16384").fetchall()]
        if roles:
            connection.execute(f"drop role {', '.join(roles)}")


@pytest.fixture
def mover(elsewhere: Cluster, tmp_path: Path) -> Iterator[Mover]:
    """Dumps and restores; drops what it restored before `elsewhere` drops the roles."""
    mover = Mover(tmp_path)
    yield mover
    mover.close()
