"""Caches in many backends at once: none answers with less than what has committed."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.concurrency.hammer import Hammer
from tests.conftest import new_cluster, new_database
from tests.support import Client, Database
from tools.cluster import ROOT, Installation

HORIZON_CHECK = "value < horizon"


def hits(db: Client) -> int:
    return int(db.one("select coalesce(sum(hits), 0) from llm.coherence_stats() where namespace = 'config'"))


def test_no_read_is_older_than_what_had_committed(database: Database) -> None:
    db = database.client()
    hits_before = hits(db)
    hammer = Hammer(database, reads=100_000)
    hammer.run()
    assert not hammer.violations
    assert hammer.done >= 100_000
    assert hits(db) - hits_before > hammer.done / 2
    assert hammer.commits > 100
    assert hammer.rollbacks > 10


def test_the_horizon_check_is_what_keeps_reads_fresh(tmp_path: Path) -> None:
    """The hammer must be able to fail: without the check it finds stale reads."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build"))
    module = source / "python" / "pg_llm" / "coherence.py"
    text = module.read_text()
    module.write_text(text.replace(HORIZON_CHECK, "value >= 0"))
    assert module.read_text() != text

    installation = Installation(tmp_path / "postgresql").install(source)
    with new_cluster(installation, tmp_path / "cluster") as cluster:
        for database in new_database(cluster):
            hammer = Hammer(database, reads=200_000, until_violation=True)
            hammer.run()
    assert hammer.violations
