"""Words and vectors together find more than either, and each hit says which of them found it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from psycopg.errors import InvalidParameterValue, ObjectNotInPrerequisiteState, UndefinedObject

from tests.security.corpus import CORPUS
from tests.support import Client, Database, raises

TEXTS = {
    "dup": "Finds duplicate photographs, and removes them.",
    "album": "Sorts pictures into albums by their faces.",
    "music": "Plays music of all formats; duplicates are left out.",
    "scan": "Scans paper with a scanner.",
    "none": "Nothing of that.",
}
VECTORS = {"dup": [1, 0.2, 0], "album": [1, 0, 0.1], "music": [0, 1, 0], "scan": [0.7, 0, 0.7], "none": [0, 0, 1]}
PHOTOS = "[1,0.1,0.05]"


@pytest.fixture
def docs(admin: Client, bound: Client) -> Client:
    """A collection with the texts; none has been indexed yet."""
    admin.run("select llm.create_collection('docs', 3)")
    bound.run("select * from llm.upsert_points('docs', %s)", json.dumps(
        [{"id": name, "content": text, "embedding": VECTORS[name], "payload": {"length": len(text)}} for name, text in TEXTS.items()]
    ))  # fmt: skip
    return bound


def found(client: Client, query: str | None, arguments: str = "", *values: object) -> list[str]:
    return client.column(f"select id from llm.hybrid_search('docs', %s{arguments})", query, *values)


@pytest.mark.parametrize("maintained", [False, True])
def test_each_leg_finds_what_it_can(docs: Client, db: Client, maintained: bool) -> None:
    """Whether the words of the points are known already, or not yet."""
    if maintained:
        db.run("call llm.maintain()").run("analyze llm.points_docs")
    rows = docs.rows(
        "select id, vector_rank, words_rank, spelling_rank, content, payload from llm.hybrid_search('docs', 'duplicate photograph', %s)", PHOTOS
    )
    assert rows[0] == ("dup", 1, 1, 1, TEXTS["dup"], {"length": len(TEXTS["dup"])})
    assert {row[0]: row[1:3] for row in rows} == {"dup": (1, 1), "album": (2, None), "music": (4, 2), "scan": (3, None), "none": (5, None)}
    assert found(docs, "duplicate photograph") == ["dup", "music"]
    assert found(docs, None, ", %s", PHOTOS) == ["dup", "album", "scan", "music", "none"]
    assert found(docs, "duplicates", """, p_filter => '{"must": {"key": "length", "range": {"gt": 50}}}'""") == ["music"]
    assert found(docs, "photografs", ", %s, 1, p_weights => '{1,1,9}'", PHOTOS) == ["dup"]


def test_a_rare_word_counts_more_than_common_ones(docs: Client, db: Client) -> None:
    docs.run(
        "select llm.upsert_points('docs', p_ids => %s, p_contents => %s)", [f"c{number}" for number in range(3000)], ["common plain text"] * 3000
    )
    docs.run("select llm.upsert_points('docs', p_ids => array['rare'], p_contents => array['one rare word among common ones'])")
    db.run("call llm.maintain()").run("analyze llm.points_docs")
    assert found(docs, "rare common plain text", ", p_weights => '{1,1,0}'") == ["rare"]
    assert len(found(docs, "common plain text", ", p_k => 1000")) == 1000


def test_ranks_and_scores_are_fused_as_documented(docs: Client) -> None:
    columns = "id, score, vector_rank, vector_score, words_rank, words_score"
    query = f"select {columns} from llm.hybrid_search('docs', 'duplicates', %s, 5, p_weights => '{{2,1,0}}'"
    for row in docs.rows(query + ", p_rrf_k => 10)", PHOTOS):
        assert row[1] == pytest.approx(2 / (10 + row[2]) + (1 / (10 + row[4]) if row[4] else 0))
    rows = docs.rows(query + ", p_fusion => 'dbsf')", PHOTOS)
    expected: dict[str, float] = {}
    for weight, column in ((2, 3), (1, 5)):
        scores = {row[0]: row[column] for row in rows if row[column] is not None}
        mean = sum(scores.values()) / len(scores)
        deviation = (sum((score - mean) ** 2 for score in scores.values()) / len(scores)) ** 0.5
        for name, score in scores.items():
            share = (score - mean + 3 * deviation) / (6 * deviation) if deviation else 0.5
            expected[name] = expected.get(name, 0) + weight * min(max(share, 0), 1)
    assert {row[0]: row[1] for row in rows} == pytest.approx(expected)
    assert [row[1] for row in rows] == sorted(expected.values(), reverse=True)


def test_what_cannot_be_fused_is_refused(docs: Client) -> None:
    for arguments, problem in (
        (", p_fusion => 'sum'", "fusion 'sum' is unknown"),
        (", p_rrf_k => -1", "p_rrf_k is -1"),
        (", p_rrf_k => 'NaN'", "p_rrf_k is nan"),
        (", p_weights => '{1,1}'", "p_weights are not three numbers from 0"),
        (", p_weights => '{1,null,1}'", "p_weights are not three numbers"),
        (", p_weights => '{{1},{1},{1}}'", "p_weights are not three numbers"),
        (", p_weights => '{1,1,-1}'", "p_weights are not three numbers"),
        (", p_candidates => 0", "p_candidates is 0"),
        (", p_k => 1001", "p_k is 1001"),
        (", '[1,2]'", "the query has 2 dimensions"),
    ):
        with raises(InvalidParameterValue, match=problem, hint="."):
            found(docs, "x", arguments)
    with raises(InvalidParameterValue, match="there is neither text nor a vector to search for", hint="p_query, p_vector"):
        found(docs, None)
    with raises(UndefinedObject, match="collection 'none' does not exist"):
        docs.run("select * from llm.hybrid_search('none', 'x')")
    assert found(docs, "", ", p_k => 0") == []


def test_users_and_tenants_are_apart(database: Database, admin: Client, db: Client) -> None:
    app = database.client("app")
    users = ["00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b"]
    admin.run("select llm.create_collection('docs', 3)")
    for tenant in ("acme", "other"):
        for user in users:
            with app.tenant(tenant):
                app.run("select llm.set_user(%s)", user)
                app.run("select llm.upsert_points('docs', p_ids => %s, p_contents => %s)", [tenant + user[-1]], ["secret words"])
    for _ in range(2):
        with app.tenant("acme"):
            assert sorted(found(app, "secret")) == ["acmea", "acmeb"]
            app.run("select llm.set_user(%s)", users[1])
            assert found(app, "secret") == ["acmeb"]
        db.run("call llm.maintain()")
    with raises(ObjectNotInPrerequisiteState, match="points are a tenant's, and no tenant is set"):
        found(app, "secret")


@pytest.mark.parametrize("maintained", [False, True])
def test_no_text_to_search_for_is_more_than_text(docs: Client, db: Client, maintained: bool) -> None:
    """SEC-08"""
    if maintained:
        db.run("call llm.maintain()")
    for text in CORPUS:
        names: list[Any] = found(docs, f"duplicate {text}")
        assert set(names) <= set(TEXTS), text[:100]
        assert names, text[:100]
