"""Searches that are written in PL/pgSQL find what planned ones find, and nobody notices which it was."""

from __future__ import annotations

import pytest

from tests.support import Client
from tests.test_vector_search import Points, recall, report, search, vectors

WRITTEN = "select prosrc like '%points_docs %' from pg_proc where oid = 'llm._nearest'::regproc"

#: What any point has at least: a search with a threshold is planned.
PLANNED = ", p_score_threshold => -1e9"


@pytest.mark.parametrize("distance", ["cosine", "l2", "inner_product", "l1"])
@pytest.mark.parametrize("element", ["vector", "halfvec"])
def test_what_is_written_finds_what_is_planned(bound: Client, db: Client, admin: Client, distance: str, element: str) -> None:
    points = Points(admin, f", p_element => '{element}', p_distance => '{distance}', p_max_segment_size => 1500")
    for part in ("first", "second"):
        points.add(bound, "acme", 1500, prefix=part)
        points.index(db)
    points.add(bound, "acme", 20, prefix="tail")
    assert db.one(WRITTEN)
    statement = "select h.* from llm.vector_search('docs', %s, 7{}) h"
    for query in [*vectors(10), points.of["acme"]["tail3"]]:
        vector = str([float(each) for each in query])
        found = bound.rows(statement.format(""), vector)
        told = report(bound)
        assert found == bound.rows(statement.format(PLANNED), vector)
        assert told == report(bound)
        assert (told["plan"], told["segments"], told["unindexed"], told["returned"]) == ("hnsw", 2, 20, 7)


def test_searches_are_written_when_collections_change(bound: Client, db: Client, admin: Client) -> None:
    points = Points(admin)
    assert not db.one(WRITTEN)
    points.add(bound, "acme", 3000)
    query = vectors(1)[0]
    points.index(db)
    assert db.one(WRITTEN)
    db.run("create or replace function llm._nearest(p_query vector, p_tenant text, p_k bigint, p_search text) returns llm.search_hit[]"
           " language plpgsql as 'begin return null; end'")  # fmt: skip
    assert recall([search(bound, query)], [points.nearest("acme", query, 10)]) >= 0.9, "a restored database has none"
    db.run("select llm.setup()")
    assert db.one(WRITTEN)
    assert recall([search(bound, query)], [points.nearest("acme", query, 10)]) >= 0.9
    admin.run("select llm.drop_collection('docs')")
    assert not db.one(WRITTEN)


def test_a_collection_of_the_same_name_is_another(bound: Client, db: Client, admin: Client) -> None:
    """Their versions may be equal, and the ranges of numbers are not."""
    points = Points(admin)
    points.add(bound, "acme", 3000)
    points.index(db)
    query = vectors(1)[0]
    assert len(search(bound, query)) == 10
    admin.run("select llm.drop_collection('docs')")
    again = Points(admin)
    again.add(bound, "acme", 4000, prefix="q")
    again.index(db)
    assert recall([search(bound, query)], [again.nearest("acme", query, 10)]) >= 0.9


def test_a_bound_role_finds_its_own_whatever_it_claims(app: Client, db: Client, admin: Client) -> None:
    points = Points(admin)
    for tenant in ("acme", "other"):
        with app.tenant(tenant):
            points.add(app, tenant, 3000, prefix=tenant)
    points.index(db)
    db.run("select llm.bind_role('app', 'acme')")
    query = str([float(each) for each in vectors(1)[0]])
    for _ in range(2):
        found = app.column("select h.id from unnest(llm._vector_search('docs', %s, 10, null, null, null, false, true, 'other', null)) h", query)
        assert [each[:4] for each in found] == ["acme"] * 10
