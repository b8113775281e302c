"""Filters mean what they say, for any payload; and what is wrong in one is named by its place."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
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

AROUND = {"points": [{"lon": lon, "lat": lat} for lon, lat in ((13, 52), (14, 52), (14, 53), (13, 53), (13, 52))]}


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
    ({"key": "place", "geo_polygon": {"exterior": AROUND}}, True),
    ({"key": "place", "geo_polygon": {"exterior": AROUND, "interiors": [AROUND]}}, False),
    ({"has_vector": ""}, False),
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
    ({"must": [{"key": "a", "geo_polygon": {}}]}, "geo_polygon: a polygon is an object with exterior"),
    ({"must": [{"key": "a", "geo_polygon": {"exterior": AROUND, "interiors": AROUND}}]}, "geo_polygon.interiors: holes are an array"),
    ({"must": [{"key": "a", "geo_polygon": {"exterior": {"points": AROUND["points"][1:]}}}]}, "exterior: a ring is an object with at least four"),
    ({"must": [{"key": "a", "geo_polygon": {"exterior": {"points": [{"lon": 1, "lat": 91}] * 4}}}]}, r"points\[0\]: a place is an object"),
    ({"must": [{"has_vector": "image"}]}, "has_vector: a point has one vector, which has no name"),
    ({"must": [{"nested": {"key": "a", "filter": {"must": {"has_vector": ""}}}}]}, "must.has_vector: elements of a payload have no vector"),
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


def test_no_payload_stands_in_the_way_of_a_filter(app: Client) -> None:
    """Numbers that no double has, a text with more words than a tsvector takes, a place that is none."""
    circle = {"key": "p", "geo_radius": {"center": {"lon": 0, "lat": 0}, "radius": 10**400}}
    for test in (
        circle,
        {"key": "p", "geo_polygon": {"exterior": {"points": [{"lon": x, "lat": y} for x, y in ((-1, -1), (1, -1), (0, 1), (-1, -1))]}}},
    ):
        answer = "select llm.matches_filter(%s, %s)"
        for lon, expected in (("1e400", False), ("1e-400", True), ("181", False), ('"0"', False), ("null", False), ("0", True)):
            payload = f'{{"p": {{"lon": {lon}, "lat": -0.5}}}}'
            assert app.one(answer, payload, json.dumps({"must": test})) is expected, (test, lon)
    words = " ".join(f"word{number}" for number in range(200_000))
    assert holds(app, {"key": "t", "match": {"text": "word7"}}, {"t": words})
    assert not holds(app, {"key": "t", "match": {"text": "word199999"}}, {"t": words})


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


def test_times_with_an_index_are_compared_alike(docs: Client, admin: Client) -> None:
    """However they are written: of other zones, at midnight and at the ends of the calendar."""
    times = [f"{day}{rest}" for day in ("2020-02-29", "2020-03-01", "2020-03-02", "0001-01-01", "9999-12-31")
             for rest in ("", "T00:00:00Z", " 23:59:59+14:00", "T00:00:00-12:00", "T24:00:00Z", "x")]  # fmt: skip
    values: list[Any] = [*times, *([each] for each in times[:4]), ["x", 5], 5, True, None, "", {}, []]
    payloads = [dict.fromkeys(("when", "at"), value) for value in values]
    admin.run("select llm.alter_collection('docs', p_payload_indexes => '{\"when\": \"datetime\"}')")
    docs.run("select llm.delete_points('docs', p_filter => '{}')")
    docs.run("select llm.upsert_points('docs', p_ids => %s, p_contents => %s, p_payloads => %s::text[]::jsonb[])",
             [f"p{number}" for number in range(len(payloads))], ["x"] * len(payloads), [json.dumps(each) for each in payloads])  # fmt: skip
    counts = set()
    for bounds in (
        {"gt": "2020-02-29"}, {"gte": "2020-03-01T00:00:00Z", "lt": "2020-03-02"},
        {"lte": "2020-02-29T10:00:00+14:00"}, {"lt": "0001-01-01T12:00:00Z"},
        {"gte": "9999-12-31T12:00:00-12:00"}, {"gt": "2020-02-28T10:00:00-14:00", "lte": "2020-03-02T23:59:00+14:00"},
    ):  # fmt: skip
        ids = "select id from llm.scroll_points('docs', p_filter => %s)"
        with_index, without = (docs.column(ids, json.dumps({"must": {"key": key, "range": bounds}})) for key in ("when", "at"))
        assert with_index == without, bounds
        counts.add(len(without))
    assert min(counts) > 0 and len(counts) > 3


def test_points_whose_vector_is_pending_are_found(docs: Client) -> None:
    docs.run("select llm.upsert_points('docs', p_ids => '{v}', p_embeddings => array['[1,2]']::vector[])")
    assert docs.column("select id from llm.scroll_points('docs', p_filter => '{\"must\": {\"has_vector\": \"\"}}')") == ["v"]
    assert docs.one("select llm.count_points('docs', '{\"must_not\": {\"has_vector\": \"\"}}')") == 10
    assert docs.one("select llm.delete_points('docs', p_filter => '{\"must\": {\"has_vector\": \"\"}}')") == 1
    assert docs.one("select llm.matches_filter('{}', '{\"must\": {\"has_vector\": \"\"}}', p_has_vector => true)") is True


def test_an_index_of_a_field_is_used(docs: Client, db: Client, admin: Client) -> None:
    docs.run("select llm.upsert_points('docs', p_ids => %s, p_contents => %s, p_payloads => %s::text[]::jsonb[])",
             [f"m{number}" for number in range(3000)], ["x"] * 3000,
             [json.dumps({"n": number, "when": str(date(2020, 1, 1) + timedelta(days=number))}) for number in range(3000)])  # fmt: skip
    admin.run("select llm.alter_collection('docs', p_payload_indexes => '{\"n\": \"integer\", \"when\": \"datetime\"}')")
    db.run("call llm.maintain(p_lock_writers => true)")
    indexes = dict(db.rows("select substring(indexdef from '-> ''(\\w+)'''), indexname from pg_indexes where tablename = 'points_docs'"))
    db.run("vacuum analyze llm.points_docs")
    for key, test in (
        ("n", {"range": {"gte": 100, "lt": 103}}), ("n", {"match": {"any": [5, 6]}}),
        ("when", {"range": {"gte": "2020-01-03T12:00:00Z", "lt": "2020-01-06"}}),
    ):  # fmt: skip
        used = "select idx_scan, idx_tup_read from pg_stat_user_indexes where indexrelname = %s"
        scans, read = db.row(used, indexes[key])
        assert docs.one("select llm.count_points('docs', %s)", json.dumps({"must": {"key": key, **test}})) in (2, 3, 4)
        docs.run("select pg_stat_force_next_flush()")
        scans_now, read_now = db.row(used, indexes[key])
        assert scans_now > scans
        assert read_now - read < 30, "of 3,010 points"


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
