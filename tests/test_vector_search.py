"""Searches give exactly as many points as were asked for, the nearest, and only those of the tenant and the user."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from psycopg.errors import DataException, InvalidParameterValue, NoDataFound, ObjectNotInPrerequisiteState, UndefinedObject

from tests.support import Client, Database, in_tenant, raises

DIMENSIONS = 16
GENERATOR = np.random.default_rng(7)


def vectors(count: int) -> np.ndarray:
    """Return vectors around a few centres."""
    centres = np.random.default_rng(1).normal(size=(20, DIMENSIONS))
    return centres[GENERATOR.integers(0, 20, count)] + 0.4 * GENERATOR.normal(size=(count, DIMENSIONS))


def text(vector: np.ndarray) -> str:
    return str([round(float(each), 6) for each in vector])


class Points:
    """A collection of points, and which are really nearest."""

    def __init__(self, admin: Client, settings: str = "") -> None:
        self.admin = admin
        admin.run(f"select llm.create_collection('docs', {DIMENSIONS}{settings})")
        self.of: dict[str, dict[str, np.ndarray]] = {}

    def add(self, client: Client, tenant: str, count: int, payload: Callable[[int], Any] = lambda number: {"n": number}, prefix: str = "p") -> None:
        given = vectors(count)
        ids = [f"{prefix}{number}" for number in range(count)]
        client.run(
            "select llm.upsert_points('docs', p_ids => %s, p_embeddings => %s::text[]::vector[], p_payloads => %s::text[]::jsonb[])",
            ids, [text(each) for each in given], [json.dumps(payload(number)) for number in range(count)],
        )  # fmt: skip
        self.of.setdefault(tenant, {}).update(zip(ids, np.array([json.loads(text(each)) for each in given]), strict=True))

    def index(self, db: Client) -> None:
        """Close a segment with what there is, and build its index."""
        db.run("update llm.collections set indexing_threshold = 1").run("call llm.maintain(null, true)")

    def nearest(self, tenant: str, query: np.ndarray, k: int, among: Callable[[str], bool] = lambda _: True) -> list[str]:
        found = {name: 1 - vector @ query / np.linalg.norm(vector) / np.linalg.norm(query) for name, vector in self.of[tenant].items() if among(name)}
        return sorted(found, key=lambda name: found[name])[:k]


@pytest.fixture
def points(admin: Client) -> Points:
    return Points(admin)


def search(client: Client, query: np.ndarray, k: int = 10, arguments: str = "", *values: object) -> list[str]:
    return client.column(f"select id from llm.vector_search('docs', %s, %s{arguments})", text(query), k, *values)


def report(client: Client) -> dict[str, Any]:
    names = ("collection", "requested", "returned", "matching", "matching_is_exact", "plan", "ef", "segments", "unindexed", "reason")
    return dict(zip(names, client.row("select * from llm.search_report()"), strict=True))


def recall(found: list[list[str]], expected: list[list[str]]) -> float:
    return sum(len(set(one) & set(other)) for one, other in zip(found, expected, strict=True)) / sum(map(len, expected))


@pytest.mark.parametrize("settings", ["", ", p_element => 'halfvec'", ", p_element => 'bit'", ", p_index_kind => 'ivfflat'"])
def test_vec_01_each_tenant_gets_all_it_asks_for_whatever_its_share(database: Database, db: Client, admin: Client, settings: str) -> None:
    """VEC-01: 50, 10, 1 and 0.1 % of the points; k = 10."""
    points = Points(admin, settings + ", p_full_scan_threshold => 100")
    shares = {"half": 5000, "tenth": 1000, "rest": 3890, "hundredth": 100, "thousandth": 10}
    for tenant, count in shares.items():
        with database.client("app").tenant(tenant) as client:
            points.add(client, tenant, count)
    points.index(db)
    queries = vectors(30)
    app = database.client("app")
    for tenant in shares:
        with app.tenant(tenant):
            found = [search(app, query) for query in queries]
            plan = report(app)["plan"]
        assert [len(each) for each in found] == [10] * len(queries), tenant
        # Sixteen signs say little: what matters of bits is measured on real vectors.
        assert recall(found, [points.nearest(tenant, query, 10) for query in queries]) >= (0.5 if plan == "bit_rerank" else 0.95), (tenant, plan)
        assert (plan == "exact") == (tenant in ("hundredth", "thousandth")), (tenant, plan)


@pytest.mark.parametrize("share", [2, 10, 100, 1000])
def test_a_filter_leaves_none_out(bound: Client, db: Client, points: Points, share: int) -> None:
    """With few, with many, and with only far points matching."""
    points.add(bound, "acme", 10_000)
    points.index(db)
    for query in vectors(5):
        document = json.dumps({"must": [{"key": "n", "range": {"lt": 10_000 // share}}]})
        found = search(bound, query, 10, ", %s", document)
        expected = points.nearest("acme", query, 10, lambda name: int(name[1:]) < 10_000 // share)
        assert len(found) == 10
        assert len(set(found) & set(expected)) >= 8
    direction = vectors(1)[0]
    order = points.nearest("acme", direction, 10_000)
    far = json.dumps({"must": [{"has_id": order[-3000:]}]})
    for _ in range(2):
        assert search(bound, direction, 10, ", %s", far) == order[-3000:-2990]
    assert report(bound)["plan"] == "filtered_exact"


def test_a_search_merges_segments_and_what_is_in_none(bound: Client, db: Client, points: Points) -> None:
    db.run("update llm.collections set max_segment_size = 1500")
    for part in range(3):
        points.add(bound, "acme", 1500, prefix=f"part{part}_")
        points.index(db)
    points.add(bound, "acme", 50, prefix="tail")
    assert db.one("select count(*) from llm.segments where state = 'ready'") == 3
    queries = vectors(20)
    found = [search(bound, query) for query in queries]
    assert recall(found, [points.nearest("acme", query, 10) for query in queries]) >= 0.95
    told = report(bound)
    assert {name: told[name] for name in ("plan", "segments", "unindexed", "returned", "ef")} == {
        "plan": "hnsw", "segments": 3, "unindexed": 50, "returned": 10, "ef": 40,
    }  # fmt: skip
    assert search(bound, points.of["acme"]["tail7"], 1) == ["tail7"]


def test_searches_go_on_while_segments_change(database: Database, bound: Client, db: Client, points: Points) -> None:
    points.add(bound, "acme", 3000)
    points.index(db)
    reader = database.client("app")
    query = vectors(1)[0]
    with reader.transaction():
        reader.run("set transaction isolation level repeatable read")
        before = search(reader, query)
        points.add(bound, "acme", 3000, prefix="q")
        points.index(db)
        assert search(reader, query) == before
    assert recall([search(reader, query)], [points.nearest("acme", query, 10)]) >= 0.9
    bound.run("select llm.upsert_points('docs', p_ids => %s, p_embeddings => %s::text[]::vector[])", ["p1"], [text(query)])
    assert search(reader, query, 1) == ["p1"]
    db.run("delete from llm.points_docs where id = 'p1'")
    assert "p1" not in search(reader, query)


@pytest.mark.parametrize(
    ("distance", "operator", "score"),
    [("cosine", "<=>", lambda d: 1 - d), ("l2", "<->", lambda d: -d), ("inner_product", "<#>", lambda d: -d), ("l1", "<+>", lambda d: -d)],
)
def test_each_distance_has_its_score(bound: Client, db: Client, admin: Client, distance: str, operator: str, score: Callable[[float], float]) -> None:
    points = Points(admin, f", '{distance}'")
    points.add(bound, "acme", 500, lambda number: {"n": number})
    query = vectors(1)[0]
    expected = db.rows(f"select id, embedding {operator} %s::vector from llm.points_docs order by 2 limit 5", text(query))
    for _ in range(2):
        found = bound.rows("select id, distance, score, content, payload, user_id from llm.vector_search('docs', %s, 5)", text(query))
        assert [row[:2] for row in found] == expected
        assert [row[2] for row in found] == pytest.approx([score(row[1]) for row in found])
        assert found[0][3:] == (None, {"n": int(found[0][0][1:])}, None)
        threshold = (found[2][2] + found[3][2]) / 2
        assert len(search(bound, query, 5, ", p_score_threshold => %s", threshold)) == 3
        assert report(bound)["reason"] == "the others score below p_score_threshold"
        points.index(db)
    assert bound.row("select payload, content from llm.vector_search('docs', %s, 1, p_with_payload => false)", text(query)) == (None, None)


def test_few_points_and_none(bound: Client, db: Client, points: Points) -> None:
    query = vectors(1)[0]
    assert search(bound, query) == []
    assert report(bound)["reason"] == "no point matches"
    points.add(bound, "acme", 3)
    bound.run("select llm.upsert_points('docs', p_ids => array['waiting'], p_contents => array['x'])")
    for _ in range(2):
        assert search(bound, query, 10) == points.nearest("acme", query, 10)
        told = report(bound)
        assert (told["requested"], told["returned"], told["matching"], told["matching_is_exact"]) == (10, 3, 3, True)
        assert told["reason"] == "no more points match"
        assert search(bound, query, 0) == []
        assert report(bound)["plan"] == "none"
        points.index(db)


def test_vec_03_a_vector_that_fits_not_is_refused(bound: Client, admin: Client, points: Points) -> None:
    """VEC-03"""
    fit = "[" + ",".join(["1"] * DIMENSIONS) + "]"
    for vector, problem in (("[1,2]", "the query has 2 dimensions, those of collection docs have 16"), (None, "the query has no vector")):
        with raises(InvalidParameterValue, match=problem, hint="model"):
            bound.run("select * from llm.vector_search('docs', %s)", vector)
    points.add(bound, "acme", 10)
    with raises(InvalidParameterValue, match="the query's vector is zero", hint="direction"):
        bound.run("select * from llm.vector_search('docs', %s)", fit.replace("1", "-0"))
    for small, length in (("1e-17", "4e-17"), ("-1e+16", "4e[+]16")):
        for exact in (False, True):
            with raises(InvalidParameterValue, match=f"the query's vector is {length} long", hint="from 1e-15 to 1e[+]15"):
                bound.run("select * from llm.vector_search('docs', %s, p_exact => %s)", fit.replace("1", small), exact)
    assert search(bound, np.full(DIMENSIONS, 1e-6), 3) == search(bound, np.full(DIMENSIONS, 1e6), 3) == search(bound, np.ones(DIMENSIONS), 3)
    for wrong in ("NaN", "Infinity", "-Infinity"):
        with raises(DataException, match="not allowed in vector"):
            bound.run("select * from llm.vector_search('docs', %s)", fit.replace("1", wrong, 1))
    for k in (None, -1, 10_001):
        with raises(InvalidParameterValue, match="p_k is ", hint="Ask for 0 to 10,000"):
            bound.run("select * from llm.vector_search('docs', %s, %s)", fit, k)
    for ef in (0, 1001):
        with raises(InvalidParameterValue, match=f"p_ef is {ef}", hint="1 to 1,000"):
            bound.run("select * from llm.vector_search('docs', %s, p_ef => %s)", fit, ef)
    for name in ("none", None, "x'; drop table llm.points_docs; --"):
        with raises(UndefinedObject, match="collection '.*' does not exist", hint="list_collections"):
            bound.run("select * from llm.vector_search(%s, %s)", name, fit)


def test_users_and_tenants_are_apart(database: Database, app: Client, db: Client, points: Points) -> None:
    users = ["00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b"]
    for tenant in ("acme", "other"):
        for user in users:
            with app.tenant(tenant):
                app.run("select llm.set_user(%s)", user)
                points.add(app, tenant, 200, prefix=tenant + user[-1])
    query = vectors(1)[0]
    for _ in range(2):
        with app.tenant("acme"):
            assert {each[:5] for each in search(app, query, 300)} == {"acmea", "acmeb"}
            app.run("select llm.set_user(%s)", users[0])
            assert {each[:5] for each in search(app, query, 300)} == {"acmea"}
            assert report(app)["matching"] == 200
            assert len(search(app, query, 50, """, '{"must": {"has_id": ["acmeb1", "othera1"]}}'""")) == 0
            assert app.one("select count(*) from llm.search_batch('docs', array[%s]::vector[], 300)", text(query)) == 200
            with raises(NoDataFound, match="point 'acmeb1' does not exist, or has no vector", hint="your own tenant"), app.transaction():
                app.run("select * from llm.recommend('docs', array['acmeb1'])")
        with app.tenant("other"):
            assert app.rows("select * from llm.search_report()") == []
        points.index(db)
    with raises(ObjectNotInPrerequisiteState, match="points are a tenant's, and no tenant is set", hint="set_tenant"):
        search(app, query)


def test_a_batch_is_its_searches(bound: Client, points: Points) -> None:
    points.add(bound, "acme", 100)
    queries = vectors(3)
    rows = bound.rows("select query, id from llm.search_batch('docs', %s::text[]::vector[], 4)", [text(each) for each in queries])
    assert rows == [(number, name) for number, query in enumerate(queries, 1) for name in search(bound, query, 4)]
    assert bound.rows("select * from llm.search_batch('docs', null)") == []


def test_what_is_like_some_and_unlike_others_is_recommended(bound: Client, points: Points) -> None:
    points.add(bound, "acme", 300)
    of = points.of["acme"]
    likes, dislikes = ["p1", "p2"], ["p3"]
    mean = (of["p1"] + of["p2"]) / 2
    for negative, wanted in (([], mean), (dislikes, mean + mean - of["p3"])):
        found = bound.column("select id from llm.recommend('docs', %s, %s, 5)", likes, negative)
        assert found == points.nearest("acme", wanted, 5, lambda name, given=(*likes, *negative): name not in given)  # type: ignore[misc]
    assert bound.column("""select id from llm.recommend('docs', array['p1'], '{}', 5, '{"must": {"has_id": ["p9"]}}')""") == ["p9"]
    with raises(InvalidParameterValue, match="there is no positive example", hint="p_positive"):
        bound.run("select * from llm.recommend('docs', '{}')")
    for wrong in ("array[null]", "array['p1', null]", "array['p1'], array[null]", "array[array['p1']]"):
        with raises(InvalidParameterValue, match="an example is null, or several", hint="arrays of ids"):
            bound.run(f"select * from llm.recommend('docs', {wrong})")
    with raises(NoDataFound, match="point 'absent' does not exist"):
        bound.run("select * from llm.recommend('docs', array['p1', 'absent'])")


def test_groups_are_full_when_their_points_are_there(bound: Client, points: Points) -> None:
    """One group has most of the points: the others are found all the same."""
    points.add(bound, "acme", 600, lambda number: {"doc": "large" if number % 30 else number // 30, "tags": ["x", number % 2]})
    query = vectors(1)[0]
    rows = bound.rows("select group_value, rank, id from llm.search_groups('docs', %s, 'doc', 3, 2)", text(query))
    nearest = points.nearest("acme", query, 600)
    groups: dict[Any, list[str]] = {}
    for name in nearest:
        number = int(name[1:])
        groups.setdefault("large" if number % 30 else number // 30, []).append(name)
    assert rows == [(value, rank, name) for value, members in list(groups.items())[:3] for rank, name in enumerate(members[:2], 1)]
    tags = bound.rows("select group_value, count(*) from llm.search_groups('docs', %s, 'tags') group by 1 order by 1", text(query))
    assert tags == [("x", 3), (0, 3), (1, 3)]
    for groups_and_size in ("0, 1", "1, 101"):
        with raises(InvalidParameterValue, match="there cannot be .* groups of .* points", hint="1 to 100"):
            bound.run(f"select * from llm.search_groups('docs', %s, 'doc', {groups_and_size})", text(query))


def test_an_index_of_payloads_is_used(bound: Client, db: Client, points: Points) -> None:
    points.add(bound, "acme", 5000)
    db.run("create index payloads on llm.points_docs using gin (payload jsonb_path_ops)").run("analyze llm.points_docs")
    bound.run("select pg_stat_force_next_flush()")
    assert search(bound, vectors(1)[0], 10, """, '{"must": [{"key": "n", "match": {"any": [7, 8]}}]}'""") != []
    bound.run("select pg_stat_force_next_flush()")
    assert db.one("select idx_scan from pg_stat_user_indexes where indexrelname = 'payloads'") > 0


def test_a_report_is_its_tenants(app: Client, points: Points) -> None:
    in_tenant(app, "acme")
    assert app.rows("select * from llm.search_report()") == []
    search(app, vectors(1)[0])
    assert len(app.rows("select * from llm.search_report()")) == 1
