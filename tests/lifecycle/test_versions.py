"""Several releases of pg_llm on one server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg.errors import ObjectNotInPrerequisiteState, UndefinedFile

from tests.lifecycle.releases import LATER, NEXT, NOW
from tests.lifecycle.support import differences, fingerprint
from tests.support import Client, Database, at_once, raises
from tools.cluster import Cluster

#: PL/Python whose answer differs between NOW and NEXT: which mark stands for NUL.
PROBE = "select llm.clean_text('\\x00')"
OLD_MARK, NEW_MARK = "\u241b0000", "\u24060000"


@pytest.fixture
def without_files(cluster: Cluster) -> Iterator[Path]:
    """The folder of this release's Python package, moved away."""
    package = cluster.installation.pkglibdir / "pg_llm" / NOW
    aside = package.with_name("aside")
    package.rename(aside)
    yield package
    shutil.rmtree(package, ignore_errors=True)
    aside.rename(package)


def test_two_releases_answer_at_the_same_moment_each_with_its_own_code(database: Database, fresh_database: Database) -> None:
    clients = [*database.clients(3), *fresh_database.clients(3)]
    for _ in range(3):
        assert at_once(clients, "select llm.version()") == [NOW] * 3 + [NEXT] * 3
        assert at_once(clients, PROBE) == [OLD_MARK] * 3 + [NEW_MARK] * 3


def test_an_update_switches_a_live_session(database: Database, db: Client, app: Client) -> None:
    assert app.one(PROBE) == OLD_MARK
    with db.transaction():
        db.run("alter extension pg_llm update")
        assert db.one(PROBE) == NEW_MARK
        assert app.one(PROBE) == OLD_MARK
    assert app.one(PROBE) == NEW_MARK
    assert database.client("app").one(PROBE) == NEW_MARK


def test_a_live_session_keeps_its_statements_and_its_cache_right_over_an_update(db: Client, app: Client) -> None:
    """POOL-04: statements that the client has prepared meet functions with another signature and another result type."""
    statements = (
        "select llm.load_config('k')",
        "select llm.get_cached_config('k')",
        "select value from llm.load_configs()",
        "select (llm.config_access('k')).value",
    )

    def seen() -> list[object]:
        # Six times: psycopg prepares on the server what it sends for the sixth time.
        return [[app.one(statement) for _ in range(6)][-1] for statement in statements]

    db.run("select llm.save_config('k', '1')")
    assert seen() == [1, 1, 1, 1]

    db.run("alter extension pg_llm update")
    with raises(ObjectNotInPrerequisiteState, f"at version {NOW}, its code at {NEXT}", hint="select llm.setup()"):
        app.one("select llm.load_config('k')")
    db.run("update llm.config set value = '2'")
    db.run("select llm.setup()")
    assert seen() == [2, 2, 2, 2]
    db.run("select llm.save_config('k', '3')")
    assert seen() == [3, 3, 3, 3]
    assert app.one("select llm.get_cached_config('unknown', '\"default\"')") == "default"


def test_an_old_transaction_writes_coherently_over_an_update(database: Database, db: Client, app: Client) -> None:
    writer = database.client()
    db.run("select llm.save_config('k', '1')")
    with writer.transaction():
        writer.run("select llm.load_config('k')")
        db.run("alter extension pg_llm update")
        writer.run("update llm.config set value = '2' where key = 'k'")
    db.run("select llm.setup()")
    assert app.one("select llm.load_config('k')") == 2
    with writer.transaction():
        writer.run("select llm.save_config('k', '3')")
        assert app.one("select llm.load_config('k')") == 2
        assert writer.one("select llm.load_config('k')") == 3
    assert app.one("select llm.load_config('k')") == 3


def test_a_server_without_the_package_says_what_to_install(db: Client, without_files: Path) -> None:
    for statement in ("select llm.load_config('k')", PROBE, "select llm._boot()"):
        with raises(UndefinedFile, f"the Python package of pg_llm {NOW} cannot be read.*{without_files}", hint="make install"):
            db.run(statement)
    db.run("drop extension pg_llm cascade").run("drop schema llm cascade")
    with raises(UndefinedFile, "cannot be read", hint="make install"):
        db.run(f"create extension pg_llm version '{NOW}'")
    assert db.rows("select from pg_extension where extname = 'pg_llm'") == []


def test_a_server_with_half_the_package_says_what_to_install(db: Client, without_files: Path) -> None:
    shutil.copytree(without_files.with_name("aside"), without_files)
    (without_files / "text.py").unlink()
    with raises(UndefinedFile, f"the Python package of pg_llm {NOW} cannot be read", hint="make install"):
        db.run(PROBE)


def test_update_paths_lead_forward_only(db: Client) -> None:
    """SEC-17: and no path is missing."""
    paths = db.rows("select source, target from pg_extension_update_paths('pg_llm') where path is not null order by 1, 2")
    releases = sorted({version for path in paths for version in path}, key=lambda version: [int(part) for part in version.split(".")])
    assert releases[-3:] == [NOW, NEXT, LATER]
    assert set(paths) == {(source, target) for place, source in enumerate(releases) for target in releases[place + 1 :]}


def test_every_path_leads_to_the_same_catalogue(database: Database, fresh: Client, db: Client, bare: Database) -> None:
    """SEC-17, DR-20: step by step, at one go, and installed directly."""
    for release in (NEXT, LATER):
        db.run(f"alter extension pg_llm update to '{release}'").run("select llm.setup()")
    fresh.run(f"alter extension pg_llm update to '{LATER}'").run("select llm.setup()")
    direct = bare.client().run(f"create extension pg_llm version '{LATER}'")
    assert differences(fingerprint(db), fingerprint(direct)) == []
    assert differences(fingerprint(fresh), fingerprint(direct)) == []
