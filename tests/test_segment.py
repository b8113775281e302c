"""Segments: indexes over ranges of a collection's points."""

from __future__ import annotations

from tests.support import Client, Database


def load(client: Client, first: int, last: int, collection: str = "docs") -> None:
    """Write points with these numbers as ids."""
    with client.tenant("acme"):
        client.run(
            "select llm.upsert_points(%s, p_ids => array_agg(i::text),"
            " p_embeddings => array_agg(array[sin(i), cos(i), sin(i * i)]::real[]::vector), p_contents => array_agg('text ' || i))"
            " from generate_series(%s::integer, %s) i",
            collection, first, last,
        )  # fmt: skip


def segments(db: Client) -> list[tuple[object, ...]]:
    return db.rows("select from_number, to_number, rows, state from llm.segments order by from_number, to_number")


def test_points_become_segments(db: Client, app: Client, admin: Client) -> None:
    admin.run("select llm.create_collection('docs', 3, p_indexing_threshold => 100, p_max_segment_size => 400)")
    load(app, 1, 99)
    db.run("call llm.maintain(p_lock_writers => true)")
    assert segments(db) == []
    load(app, 100, 120)
    db.run("call llm.maintain(p_lock_writers => true)")
    assert segments(db) == [(1, 121, 120, "ready")]
    print(db.rows("select * from llm.segment_progress"))
    for size in (10, 10, 10, 100, 500):
        total = db.one("select count(*) from llm.points_docs")
        load(app, total + 1, total + size)
        db.run("call llm.maintain(p_lock_writers => true)")
        print(segments(db))
    assert db.column("select count(*) from llm.points_docs where words is null") == [0]
    print(db.rows("select indexdef from pg_indexes where tablename = 'points_docs'"))
    assert 0
