"""Segments: which numbers get an index, and when."""

from __future__ import annotations

import pytest

from tests.support import Client, Database


@pytest.fixture
def docs(db: Client, admin: Client) -> Client:
    """A superuser's client, with an empty collection docs that is indexed from 100 points on, in segments of at most 400."""
    admin.run("select llm.create_collection('docs', 3, p_indexing_threshold => 100, p_max_segment_size => 400, p_ef_construction => 40)")
    db.run("select llm.bind_role('app', 'acme')")
    return db


def load(client: Client, first: int, last: int) -> None:
    """Write points with these numbers as ids."""
    client.run(
        "select llm.upsert_points('docs', p_ids => array_agg(i::text), p_embeddings => array_agg(array[sin(i), cos(i), sin(i * i)]::real[]::vector),"
        " p_contents => array_agg('text ' || i)) from generate_series(%s::integer, %s) i",
        first,
        last,
    )


def maintain(db: Client) -> None:
    """Do all maintenance, the building of indexes included."""
    db.run("call llm.maintain('docs', true)")


def segments(db: Client) -> list[tuple[int, int, int, str]]:
    """Return what searches use, and what they do not: the numbers, the count of points, the state."""
    return db.rows("select from_number, to_number, rows, state from llm.segments order by from_number, to_number")


def indexes(db: Client) -> list[str]:
    """Return the conditions of the indexes over vectors."""
    return db.column(
        "select substring(indexdef from 'WHERE (.*)') from pg_indexes"
        " where tablename = 'points_docs' and indexdef ~ '(hnsw|ivfflat)' order by indexname::text collate \"C\""
    )


def test_a_small_collection_has_no_index(docs: Client, app: Client) -> None:
    load(app, 1, 99)
    maintain(docs)
    assert (segments(docs), indexes(docs)) == ([], [])


def test_the_tail_becomes_a_segment_and_small_segments_merge(docs: Client, app: Client) -> None:
    """Each is at least as large as the next, so that there are few."""
    load(app, 1, 120)
    maintain(docs)
    assert segments(docs) == [(1, 121, 120, "ready")]
    sizes = []
    for end in (129, 130, 140, 150, 160, 170, 290):
        total = docs.one("select count(*) from llm.points_docs")
        load(app, total + 1, end)
        maintain(docs)
        sizes.append([rows for _, _, rows, _ in segments(docs)])
    assert sizes == [[120], [120, 10], [120, 20], [120, 20, 10], [120, 40], [120, 40, 10], [290]]
    assert indexes(docs) == ["((number >= 1) AND (number < 291))"]


def test_no_segment_is_larger_than_the_limit(docs: Client, app: Client) -> None:
    load(app, 1, 1000)
    maintain(docs)
    assert segments(docs) == [(1, 401, 400, "ready"), (401, 801, 400, "ready"), (801, 1001, 200, "ready")]
    assert len(indexes(docs)) == 3


def test_segments_are_of_all_tenants(docs: Client, app: Client, admin: Client) -> None:
    load(app, 1, 60)
    with admin.tenant("globex"):
        load(admin, 1, 60)
    maintain(docs)
    assert segments(docs) == [(1, 121, 120, "ready")]


def test_points_whose_vector_is_pending_are_not_counted(docs: Client, app: Client) -> None:
    app.run("select llm.upsert_points('docs', p_ids => array_agg(i::text), p_contents => array_agg('x'::text)) from generate_series(1, 150) i")
    maintain(docs)
    assert segments(docs) == []
    load(app, 1, 100)
    maintain(docs)
    assert [rows for _, _, rows, _ in segments(docs)] == [100]


def test_a_segment_that_lost_many_points_is_built_again(docs: Client, app: Client) -> None:
    load(app, 1, 120)
    maintain(docs)
    app.run("select llm.delete_points('docs', array_agg(i::text)) from generate_series(1, 23) i")
    maintain(docs)
    assert segments(docs) == [(1, 121, 120, "ready")]
    app.run("select llm.delete_points('docs', '{24}')")
    maintain(docs)
    assert segments(docs) == [(1, 121, 96, "ready")]
    app.run("select llm.delete_points('docs', array_agg(i::text)) from generate_series(1, 120) i")
    maintain(docs)
    assert (segments(docs), indexes(docs)) == ([], [])


def test_a_point_that_changes_leaves_its_segment(docs: Client, app: Client) -> None:
    load(app, 1, 120)
    maintain(docs)
    app.run("""select llm.set_payload('docs', '{7}', '{"k": 1}')""")
    app.run("select llm.upsert_points('docs', p_ids => '{8}', p_embeddings => '{\"[1,2,3]\"}')")
    assert docs.column("select id from llm.points_docs where number >= 121 order by number") == ["7", "8"]
    docs.run("vacuum llm.points_docs")
    assert docs.one("select reltuples from pg_class where oid = (select to_regclass('llm.' || index_name) from llm.segments)") == 118


@pytest.mark.parametrize(
    ("element", "distance", "definition"),
    [
        ("vector", "cosine", "hnsw (embedding vector_cosine_ops) WITH (m='16', ef_construction='40')"),
        ("vector", "l1", "hnsw (embedding vector_l1_ops)"),
        ("halfvec", "inner_product", "hnsw (embedding halfvec_ip_ops)"),
        ("halfvec", "l2", "hnsw (embedding halfvec_l2_ops)"),
        ("bit", "cosine", "hnsw (((binary_quantize(embedding))::bit(3)) bit_hamming_ops)"),
    ],
)
def test_the_index_is_of_the_collections_kind(docs: Client, admin: Client, app: Client, element: str, distance: str, definition: str) -> None:
    admin.run("select llm.drop_collection('docs')")
    admin.run("select llm.create_collection('docs', 3, %s, %s, p_indexing_threshold => 10, p_ef_construction => 40)", distance, element)
    load(app, 1, 20)
    maintain(docs)
    assert definition in docs.one("select indexdef from pg_indexes where indexname = (select index_name from llm.segments)")


def test_ivfflat_has_lists_that_fit(docs: Client, admin: Client, app: Client) -> None:
    admin.run("select llm.alter_collection('docs', 'ivfflat', p_max_segment_size => 5000)")
    load(app, 1, 2000)
    maintain(docs)
    assert docs.column("select settings from llm.segments") == ["ivfflat (embedding public.vector_cosine_ops) with (lists = 2)"]
    admin.run("select llm.alter_collection('docs', p_lists => 10)")
    maintain(docs)
    assert docs.column("select settings from llm.segments") == ["ivfflat (embedding public.vector_cosine_ops) with (lists = 10)"]


def test_altered_settings_build_segments_again(docs: Client, admin: Client, app: Client) -> None:
    load(app, 1, 120)
    maintain(docs)
    admin.run("select llm.alter_collection('docs', p_m => 8)")
    maintain(docs)
    assert segments(docs) == [(1, 121, 120, "ready")]
    assert "m = 8" in docs.one("select settings from llm.segments")
    admin.run("select llm.alter_collection('docs', 'none')")
    maintain(docs)
    assert (segments(docs), indexes(docs)) == ([], [])


def test_a_published_segment_has_searches_written_anew(docs: Client, app: Client) -> None:
    load(app, 1, 120)
    before = docs.one("select version from llm.collections")
    maintain(docs)
    assert docs.one("select version from llm.collections") == before + 1


def test_progress_is_seen_while_an_index_is_built(database: Database, docs: Client, app: Client) -> None:
    load(app, 1, 120)
    docs.run("call llm.maintain()")
    progress = "select state, phase is not null, index_bytes, attempts, last_error from llm.segment_progress"
    assert docs.row(progress) == ("building", False, None, 0, None)
    with app.transaction():
        load(app, 121, 121)
        builder = database.client()
        pid = builder.one("select pg_backend_pid()")
        statement = docs.one("select * from llm.index_statements()")
        builder.connection.pgconn.send_query(statement.encode())
        docs.wait("select exists (select from pg_stat_progress_create_index where pid = %s)", pid)
        assert docs.row(progress)[:2] == ("building", True)
    while builder.connection.pgconn.get_result():
        pass
    docs.run("call llm.maintain()")
    assert docs.row("select state, phase, percent, index_bytes > 0, attempts from llm.segment_progress") == ("ready", None, None, True, 0)
