"""Filters mean what they say, for any payload; and what is wrong in one is named by its place."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.errors import InvalidParameterValue, ProgramLimitExceeded

from tests.filter_oracle import CONDITIONS, PAYLOADS, matches
from tests.security.corpus import CORPUS
from tests.support import Client, Database, raises

CAR = {
    "name": "Red car", "price": 12.5, "doors": [2, 4], "sold": True, "made": "2020-06-01T12:00:00+02:00", "note": None, "tags": [],
    "place": {"lon": 13.4, "lat": 52.5}, "parts": [{"of": "a", "n": 1}, {"of": "b", "n": 2}], "a.b": {"c d": 1},
}  # fmt: skip


def holds(client: Client, condition: Any, payload: Any = CAR) -> bool:
    answer: bool = client.one("select llm.matches_filter(%s, %s, 'p')", json.dumps(payload), json.dumps({"must": condition}))
    return answer


@pytest.mark.parametrize("operator", CONDITIONS)
def test_a_condition_holds_where_the_oracle_says(app: Client, operator: str) -> None:
    outcomes = set()

    @settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(payloads=PAYLOADS, condition=CONDITIONS[operator])
    def compare(payloads: list[Any], condition: Any) -> None:
        document = {"must": [condition]}
        texts = [json.dumps(payload) for payload in payloads]
        found = app.column(
            "select llm.matches_filter(p::jsonb, %s, 'p') from unnest(%s::text[]) with ordinality u (p, n) order by n", json.dumps(document), texts
        )
        expected = [matches(payload, document, "p") for payload in payloads]
        assert found == expected, [payload for payload, one, other in zip(payloads, found, expected, strict=True) if one != other]
        outcomes.update(found)

    compare()
    assert outcomes == {True, False}


DOCUMENTED: list[tuple[Any, bool]] = [
    ({"key": "name", "match": {"value": "Red car"}}, True),
    ({"key": "doors", "match": {"value": 4}}, True),
    ({"key": "doors[0]", "match": {"value": 4}}, False),
    ({"key": "price", "match": {"value": "12.5"}}, False),
    ({"key": "sold", "match": {"value": 1}}, False),
    ({"key": '"a.b"."c d"', "match": {"value": 1}}, True),
    ({"key": "parts[].n", "match": {"any": [2, 3]}}, True),
    ({"key": "parts.n", "match": {"any": [2, 3]}}, False),
    ({"key": "name", "match": {"text": "car RED"}}, True),
    ({"key": "name", "match": {"phrase": "car red"}}, False),
    ({"key": "made", "range": {"gte": "2020-06-01T10:00:00Z", "lt": "2020-06-01T10:00:01"}}, True),
    ({"key": "price", "range": {"gt": 12.5, "lt": None}}, False),
    ({"key": "place", "geo_radius": {"center": {"lon": 13.4, "lat": 52.51}, "radius": 1113}}, True),
    ({"key": "place", "geo_radius": {"center": {"lon": 13.4, "lat": 52.51}, "radius": 1111}}, False),
    ({"key": "parts", "values_count": {"gte": 2, "lte": 2}}, True),
    ({"key": "absent", "values_count": {"gte": 0}}, False),
    ({"is_empty": {"key": "tags"}}, True),
    ({"is_empty": {"key": "note"}}, True),
    ({"is_empty": {"key": "absent"}}, True),
    ({"is_null": {"key": "note"}}, True),
    ({"is_null": {"key": "absent"}}, False),
    ({"key": "absent", "match": {"except": ["x"]}}, False),
    ({"has_id": ["q", "p"]}, True),
    ({"nested": {"key": "parts", "filter": {"must": [{"key": "of", "match": {"value": "a"}}, {"key": "n", "match": {"value": 2}}]}}}, False),
    ({"nested": {"key": "parts", "filter": {"must_not": {"key": "of", "match": {"value": "a"}}}}}, True),
    ({"must_not": [{"key": "absent", "range": {"gt": 0}}]}, True),
    ({"min_should": {"conditions": [{"has_id": ["p"]}, {"has_id": ["q"]}], "min_count": 2}}, False),
    ({"should": []}, True),
]


def test_what_qdrant_documents(app: Client) -> None:
    for condition, expected in DOCUMENTED:
        assert holds(app, condition) is expected, condition


def test_times_without_a_zone_are_of_utc_whatever_the_session_says(app: Client) -> None:
    app.run("set timezone = 'Asia/Tokyo'")
    for made, bound in (
        ("2020-01-01", "2020-01-01T00:00:00Z"),
        ("2020-01-01T00:00:00Z", "2020-01-01"),
        ("2020-01-01 00:00", "2020-01-01T09:00+09:00"),
    ):
        assert holds(app, {"key": "made", "range": {"gte": bound, "lte": bound}}, {"made": made})


def test_without_a_filter_or_a_payload_all_match_or_nothing_is_said(app: Client) -> None:
    assert app.row("select llm.matches_filter('{}', null), llm.matches_filter('{}', '{}'), llm.matches_filter(null, '{}')") == (True, True, None)


_WORDS = st.sampled_from(["must", "should", "key", "match", "any", "range", "lt", "nested", "filter"])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_WORDS, inner),
)

WRONG = [
    ([], "filter: a filter is an object"),
    ({"musst": []}, "filter.musst: there is no such clause"),
    ({"must": "x"}, "filter.must: a clause is an array of conditions"),
    ({"must": [1]}, r"filter.must\[0\]: a condition is an object"),
    ({"must": [{"x": 1}]}, r"filter.must\[0\].x: there is no such condition"),
    ({"must": [{"key": "a"}]}, r"filter.must\[0\]: a condition has a key and one test, not 0"),
    ({"must": [{"key": "a", "equals": 1}]}, r"filter.must\[0\].equals: there is no such test"),
    ({"must": [{"key": "a", "match": 1}]}, "match: match is an object with one key"),
    ({"must": [{"key": "a", "match": {"like": 1}}]}, "match.like: there is no such match"),
    ({"must": [{"key": "a", "match": {"value": None}}]}, "match.value: a value is a string, a number, true or false"),
    ({"must": [{"key": "a", "match": {"any": ["x", 1]}}]}, "match.any: values are an array of strings, or one of numbers"),
    ({"must": [{"key": "a", "match": {"text": 1}}]}, "match.text: words are a string"),
    ({"must": [{"key": "a..b", "match": {"value": 1}}]}, 'key: "a..b" is no key'),
    ({"must": [{"key": "a[", "match": {"value": 1}}]}, "is no key"),
    ({"must": [{"key": "", "match": {"value": 1}}]}, "is no key"),
    ({"must": [{"key": 1, "match": {"value": 1}}]}, "key: 1 is no key"),
    ({"must": [{"key": "a", "range": {}}]}, "range: bounds are an object with gt, gte, lt or lte"),
    ({"must": [{"key": "a", "range": {"lt": True}}]}, "range.lt: a bound is a number or a time"),
    ({"must": [{"key": "a", "range": {"lt": "2020-13-01"}}]}, 'range.lt: "2020-13-01" is no time'),
    ({"must": [{"key": "a", "range": {"lt": "now"}}]}, 'range.lt: "now" is no time'),
    ({"must": [{"key": "a", "values_count": {"lt": -1}}]}, "values_count.lt: a count is a whole number from 0"),
    ({"must": [{"key": "a", "geo_bounding_box": {}}]}, "geo_bounding_box: a box is an object with top_left and bottom_right"),
    ({"must": [{"key": "a", "geo_radius": {}}]}, "geo_radius: a circle is an object with center and radius"),
    ({"must": [{"key": "a", "geo_radius": {"center": {"lon": 181, "lat": 0}, "radius": 1}}]}, "geo_radius.center: a place is an object with lon"),
    ({"must": [{"key": "a", "geo_radius": {"center": {"lon": 1, "lat": 0}, "radius": -1}}]}, "geo_radius.radius: a radius is a number of metres"),
    ({"must": [{"is_null": "a"}]}, r"is_null: this is an object with a key"),
    ({"must": [{"has_id": "a"}]}, r"has_id: ids are an array of strings"),
    ({"must": [{"nested": {"key": "a"}}]}, r"nested: nested is an object with key and filter"),
    ({"must": [{"nested": {"key": "a", "filter": {"must": {"has_id": []}}}}]}, "nested.filter.must.has_id: elements of a payload have no id"),
    ({"min_should": []}, "min_should: min_should is an object with conditions and min_count"),
    ({"min_should": {"conditions": [], "min_count": -1}}, "min_should.min_count: a count is a whole number from 0"),
]


def test_what_is_wrong_is_named_by_its_place(app: Client) -> None:
    for document, problem in WRONG:
        with raises(InvalidParameterValue, match="the filter is wrong at .*" + problem, hint="."):
            app.run("select llm.matches_filter('{}', %s)", json.dumps(document))


def test_a_filter_has_an_end(app: Client) -> None:
    deep: Any = {}
    for _ in range(30):
        deep = {"must": [deep]}
    with raises(ProgramLimitExceeded, match="the filter has more than 20 levels at ", hint="as one"):
        app.run("select llm.matches_filter('{}', %s)", json.dumps(deep))
    with raises(ProgramLimitExceeded, match="the filter has more than 500 conditions", hint="any"):
        app.run("select llm.matches_filter('{}', %s)", json.dumps({"must": [{"has_id": []}] * 501}))


def test_many_values_and_large_numbers_are_no_matter(app: Client) -> None:
    assert holds(app, {"key": "n", "match": {"any": list(range(20_000))}}, {"n": 19_999})
    assert holds(app, {"key": "n", "match": {"value": 10**60}}, {"n": 10**60})
    assert app.one(
        """select llm.matches_filter('{"n": 0.1234567890123456789}', '{"must": {"key": "n", "match": {"value": 0.1234567890123456789}}}')"""
    )
    assert not app.one(
        """select llm.matches_filter('{"n": 0.1234567890123456789}', '{"must": {"key": "n", "match": {"value": 0.123456789012345678}}}')"""
    )
    assert app.one("""select llm.matches_filter('{"n": 1}', '{"must": {"key": "n", "range": {"lt": 1e400}}}')""")


def test_no_text_in_a_filter_is_more_than_text(app: Client) -> None:
    """SEC-08"""
    for text in CORPUS:
        quoted = text.replace("\\", "").replace('"', "")
        payload = {quoted: [text, {"x": text}], "id": text}
        assert holds(app, {"key": f'"{quoted}"', "match": {"value": text}}, payload)
        assert holds(app, {"key": f'"{quoted}"', "match": {"any": [text] * 20}}, payload)
        assert holds(app, {"key": f'"{quoted}"[].x', "match": {"value": text}}, payload)
        assert not holds(app, {"key": f'"{quoted}"', "match": {"except": [text]}}, {quoted: text})
        assert not holds(app, {"has_id": [text]}, payload)
        for condition in (
            {"key": text, "match": {"value": 1}},
            {"key": "id", "match": {"text": text}},
            {"key": "id", "match": {"text_any": text}},
            {"key": "id", "range": {"lt": text}},
            {text: text},
            {"key": "id", text: text},
            {"nested": {"key": text, "filter": {}}},
        ):
            try:
                holds(app, condition, payload)
            except InvalidParameterValue as error:
                assert "the filter is wrong at filter.must" in (error.diag.message_primary or "")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=ANY_JSON)
def test_any_json_is_a_filter_or_refused(app: Client, document: Any) -> None:
    try:
        app.run("select llm.matches_filter('{}', %s)", json.dumps(document))
    except InvalidParameterValue as error:
        assert "the filter is wrong at filter" in (error.diag.message_primary or "")


@pytest.fixture
def docs(admin: Client, bound: Client) -> Client:
    """A collection with ten points of a tenant, and one of another."""
    admin.run("""select llm.create_collection('docs', 2, p_payload_indexes => '{"n": "integer"}')""")
    bound.run("select llm.upsert_points('docs', p_ids => %s, p_contents => %s, p_payloads => %s::text[]::jsonb[])",
              [f"p{number}" for number in range(10)], ["x"] * 10, [json.dumps({"n": number}) for number in range(10)])  # fmt: skip
    with admin.tenant("other"):
        admin.run("select llm.upsert_points('docs', p_ids => array['q'], p_contents => array['x'])")
    return bound


def test_points_are_counted_scrolled_and_deleted_by_filter(docs: Client) -> None:
    few = json.dumps({"must": {"key": "n", "range": {"gte": 4, "lt": 8}}})
    assert docs.one("select llm.count_points('docs', %s)", few) == 4
    assert docs.one("select llm.count_points('docs', '{}')") == docs.one("select llm.count_points('docs')") == 10
    assert docs.column("select id from llm.scroll_points('docs', p_filter => %s)", few) == ["p4", "p5", "p6", "p7"]
    assert docs.column("select id from llm.scroll_points('docs', 'p4', 2, p_filter => %s)", few) == ["p5", "p6"]
    assert docs.one("select llm.delete_points('docs', p_filter => %s)", few) == 4
    assert docs.one("select llm.delete_points('docs', array['p1', 'q'])") == 1
    for arguments in ("", ", array['p1'], '{}'"):
        with raises(InvalidParameterValue, match="it is not clear which points are to be deleted", hint="either p_ids or p_filter"):
            docs.run(f"select llm.delete_points('docs'{arguments})")
    assert docs.one("select llm.delete_points('docs', p_filter => '{}')") == 5


def test_fields_with_an_index_are_compared_alike(docs: Client, db: Client) -> None:
    values = [None, True, False, -1, 0, 1, 1.5, 2, "", "1", "x", [], [1], [2, "x"], [[1]], {}, {"n": 1}, [True], [None]]
    payloads = [{"n": value} for value in values] + [{}]
    docs.run("select llm.delete_points('docs', p_filter => '{}')")
    docs.run("select llm.upsert_points('docs', p_ids => %s, p_contents => %s, p_payloads => %s::text[]::jsonb[])",
             [f"p{number}" for number in range(len(payloads))], ["x"] * len(payloads), [json.dumps(each) for each in payloads])  # fmt: skip
    tests: list[dict[str, Any]] = [{"match": {"value": value}} for value in (True, 0, 1, 1.5, "", "x")]
    tests += [{"match": {"any": [1, 2]}}, {"match": {"any": []}}, {"match": {"except": [1]}}]
    tests += [{"range": bounds} for bounds in ({"gt": 0}, {"gte": 1}, {"lt": 1.5}, {"lte": 1}, {"gt": 0, "lt": 2})]
    for test in tests:
        for clause in ("must", "must_not"):
            document = {clause: [{"key": "n", **test}]}
            found = docs.column("select id from llm.scroll_points('docs', p_filter => %s)", json.dumps(document))
            assert set(found) == {f"p{number}" for number, each in enumerate(payloads) if matches(each, document)}, document


def test_an_index_of_a_field_is_used(docs: Client, db: Client) -> None:
    docs.run("select llm.upsert_points('docs', p_ids => %s, p_contents => %s, p_payloads => %s::text[]::jsonb[])",
             [f"m{number}" for number in range(3000)], ["x"] * 3000, [json.dumps({"n": number}) for number in range(3000)])  # fmt: skip
    (index,) = db.column("select indexname from pg_indexes where tablename = 'points_docs' and indexdef ~ '->'")
    db.run("vacuum analyze llm.points_docs")
    for test in ({"range": {"gte": 100, "lt": 103}}, {"match": {"any": [5, 6]}}):
        before = db.one("select idx_scan from pg_stat_user_indexes where indexrelname = %s", index)
        assert docs.one("select llm.count_points('docs', %s)", json.dumps({"must": {"key": "n", **test}})) >= 2
        docs.run("select pg_stat_force_next_flush()")
        assert db.one("select idx_scan from pg_stat_user_indexes where indexrelname = %s", index) > before


def test_a_point_that_no_longer_matches_is_not_deleted(docs: Client, database: Database) -> None:
    """Somebody changes its payload between the search for it and its deletion."""
    other = database.client("app")
    with other.transaction(), ThreadPoolExecutor(1) as pool:
        other.run("select llm.set_payload('docs', array['p1'], '{\"n\": 100}')")
        deleted = pool.submit(docs.one, "select llm.delete_points('docs', p_filter => %s)", json.dumps({"must": {"key": "n", "range": {"lt": 3}}}))
        watch = database.client()
        watch.wait("select exists (select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database())")
        other.run("commit")
        assert deleted.result() == 2
    assert docs.one("select llm.count_points('docs')") == 8
