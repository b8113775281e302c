"""What is counted of the cache, by all sessions together."""

from __future__ import annotations

from pathlib import Path

from psycopg.errors import IoError

from tests.support import Client, Database, raises
from tests.test_cache import age

STATS = "select hit_count, miss_count, hit_ratio, entries, evictions from llm.cache_stats('default')"


def test_hits_and_misses_are_counted(database: Database, bound: Client) -> None:
    assert bound.rows(STATS) == []
    bound.run("select llm.cache_set('k', '1')")
    assert bound.row(STATS) == (0, 0, None, 1, 0)
    for client in database.clients(3, "app"):
        client.run("select llm.cache_get('unknown'), llm.cache_get_bytes('unknown')").run("select * from llm.cache_get_many('{k,x,y}')")
    assert bound.row(STATS) == (3, 12, 0.2, 1, 0)
    assert bound.one("select memory_used between 150 and 300 from llm.cache_stats()")


def test_hits_are_estimated_from_a_sample(bound: Client) -> None:
    bound.run("select llm.cache_set('k', '1')")
    reads = 64_000
    assert bound.one("select count(llm.cache_get('k', left('default', 7 + i %% 2))) from generate_series(1, %s) i", reads) == reads
    hits, misses, ratio, *_ = bound.row(STATS)
    # Six standard deviations of the sample.
    assert abs(hits - reads) < 6 * 64 * (reads / 64) ** 0.5
    assert (misses, ratio) == (0, 1)


def test_a_read_that_is_due_to_touch_counts_itself(bound: Client, db: Client) -> None:
    bound.run("select llm.set_cache_policy(p_idle => 600)").run("select llm.cache_set('k', '1')")
    for number in range(1, 4):
        age(db, 61)
        bound.run("select llm.cache_get('k')")
        assert bound.row(STATS)[0] == number


def test_counters_are_a_tenants_and_a_namespaces(app: Client, db: Client) -> None:
    for tenant, misses in (("a", 2), ("b", 3)):
        with app.tenant(tenant):
            app.run("select llm.cache_set('k', '1'), llm.cache_set('k', '1', p_namespace => 'other')")
            for _ in range(misses):
                app.run("select llm.cache_get('unknown')")
            assert app.rows("select namespace, miss_count from llm.cache_stats()") == [("default", misses), ("other", 0)]
    with app.tenant("c"):
        assert app.rows("select * from llm.cache_stats()") == []


def test_a_file_that_was_deleted_is_made_anew(database: Database, bound: Client) -> None:
    board = Path(database.cluster.datadir) / "pg_stat_tmp/pg_llm.cache.1"
    bound.run("select llm.cache_set('k', '1'), llm.cache_get('unknown')")
    assert bound.row(STATS)[1] == 1
    board.unlink()
    other = database.client("app")
    other.run("select llm.cache_get('unknown')")
    bound.run("select llm.cache_get('unknown')")
    assert bound.row(STATS)[1] == other.row(STATS)[1] == 2


def test_a_file_that_cannot_be_written_is_named(database: Database, bound: Client) -> None:
    board = Path(database.cluster.datadir) / "pg_stat_tmp/pg_llm.cache.1"
    board.unlink(missing_ok=True)
    board.mkdir()
    try:
        with raises(IoError, match="the file pg_stat_tmp/pg_llm.cache.1 cannot count what the cache does", hint="1 MB"):
            database.client("app").run("select llm.cache_get('unknown')")
    finally:
        board.rmdir()
