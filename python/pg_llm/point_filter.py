"""Filters of points: Qdrant's filter language, compiled to SQL in which all that the caller wrote is a parameter.

A condition looks at the values that a key leads to in a payload, and holds when it holds for one of them, or for one element of one
that is an array. Each compiles to an expression that is never null, so that it can be negated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from . import payload_key, spi
from .payload_key import Step, wrong

#: Deeper and longer than what somebody wrote, and far from the server's own limits.
DEEPEST = 20
MOST_CONDITIONS = 500

#: So many values are looked up in the index of payloads; for more, reading the rows costs less.
MOST_INDEXED = 16

#: RFC 3339, and what is left out of it in practice: seconds, the time, the zone.
DATETIME = r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d(:?\d\d)?)?)?"
_ZONE = r":\d\d(\.\d+)?([Zz]|[+-]\d\d(:?\d\d)?)$"

_BOUNDS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}

_TRUE = "'true'::jsonb"
_EMPTY = "'\"\"'::jsonb"

#: A time lies so many days from the date that it is written with, at most: for its zone, that of the bound, and 24:00.
_DAYS_APART = timedelta(days=3)

#: What a place is. It is rounded, because numbers of jsonb may be smaller than any of double precision.
_IS_PLACE = "@.lon >= -180 && @.lon <= 180 && @.lat >= -90 && @.lat <= 90"
_LON, _LAT = (f"round((v.value -> '{axis}')::numeric, 12)::double precision" for axis in ("lon", "lat"))

#: So much of a text is looked at: a tsvector holds 1 MB.
_SEARCHED = 100_000
_HAS_SOMETHING = '(@.type() != "null" && (@.type() != "array" || @.size() > 0))'
_IS_NULL = "(@ == null)"

_RING = 'A ring is such as {"points": [{"lon": 0, "lat": 0}, {"lon": 9, "lat": 0}, {"lon": 9, "lat": 9}, {"lon": 0, "lat": 0}]}.'

#: Mean radius of the Earth in metres (IUGG).
_EARTH = 6_371_008.8


class Condition(NamedTuple):
    """A condition in SQL, and the types and values of its parameters."""

    sql: str
    types: tuple[str, ...]
    values: tuple[Any, ...]


def matches(payload: str | None, document: str | None, point: str | None, has_vector: bool | None) -> bool | None:
    """Tell whether a payload, given as JSON, matches a filter; `point` is the id that goes with it, which may have a vector."""
    if payload is None:
        return None
    condition = compile_filter(document, first=4)
    plan = spi.built_plan(
        f"select {condition.sql} as matches from (select $1 as payload, $2 as id, nullif($3, false) as embedding) p",
        "jsonb", "text", "boolean", *condition.types,
    )  # fmt: skip
    found: bool = plan.row(payload, point, has_vector, *condition.values)["matches"]
    return found


def compile_filter(document: str | None, first: int = 1, ordered: frozenset[str] = frozenset()) -> Condition:
    """Return the condition of a filter, given as JSON, on points of alias p; none holds for all points.

    `first` is the number of its first parameter; `ordered` are fields with an index by value, whose names need no escape in SQL.
    Raises `spi.InvalidParameter` with the place of what is wrong, `spi.LimitExceeded` when there is too much of it.
    """
    if document is None:
        return Condition("true", (), ())
    compiler = _Compiler(first, ordered)
    condition = compiler.filter(json.loads(document, parse_float=Decimal), "filter", "payload", 0)
    return Condition(condition, tuple(compiler.types), tuple(compiler.values))


class _Compiler:
    def __init__(self, first: int, ordered: frozenset[str]) -> None:
        self.types: list[str] = []
        self.values: list[Any] = []
        self._first = first
        self._ordered = ordered
        self._conditions = self._nested = 0

    def filter(self, document: Any, place: str, payload: str, depth: int) -> str:
        """Return the condition of an object with must, should, must_not, min_should."""
        if not isinstance(document, dict):
            raise wrong(place, "a filter is an object", "Its keys are must, should, must_not and min_should.")
        if depth > DEEPEST:
            raise spi.LimitExceeded(f"the filter has more than {DEEPEST} levels at {place}", hint="Filters in filters can mostly be written as one.")
        parts = []
        for clause, conditions in document.items():
            here = f"{place}.{clause}"
            if clause == "min_should":
                parts.append(self._min_should(conditions, here, payload, depth))
            elif clause not in ("must", "should", "must_not"):
                raise wrong(
                    here, "there is no such clause", "Clauses are must, should, must_not and min_should; a condition stands inside one of them."
                )
            elif compiled := self._list(conditions, here, payload, depth):
                if clause == "should":
                    parts.append(_any(compiled))
                elif clause == "must":
                    parts.extend(compiled)
                else:
                    parts.append(f"not {_any(compiled)}")
        return _all(parts)

    def _list(self, conditions: Any, place: str, payload: str, depth: int) -> list[str]:
        if conditions is None:
            return []
        if isinstance(conditions, dict):
            return [self._condition(conditions, place, payload, depth)]
        if not isinstance(conditions, list):
            raise wrong(place, "a clause is an array of conditions", 'Such as [{"key": "lang", "match": {"value": "de"}}].')
        return [self._condition(each, f"{place}[{number}]", payload, depth) for number, each in enumerate(conditions)]

    def _min_should(self, document: Any, place: str, payload: str, depth: int) -> str:
        if not isinstance(document, dict) or document.keys() != {"conditions", "min_count"}:
            raise wrong(place, "min_should is an object with conditions and min_count", 'Such as {"conditions": […], "min_count": 2}.')
        count = document["min_count"]
        if not _is_count(count):
            raise wrong(f"{place}.min_count", "a count is a whole number from 0", "It says how many of the conditions must hold.")
        compiled = self._list(document["conditions"], f"{place}.conditions", payload, depth)
        return f"({' + '.join(f'({each})::integer' for each in compiled) or '0'} >= {self._parameter('bigint', count)})"

    def _condition(self, document: Any, place: str, payload: str, depth: int) -> str:
        self._conditions += 1
        if self._conditions > MOST_CONDITIONS:
            raise spi.LimitExceeded(
                f"the filter has more than {MOST_CONDITIONS} conditions", hint='Many values of one key are one condition: {"match": {"any": […]}}.'
            )
        if not isinstance(document, dict):
            raise wrong(place, "a condition is an object", 'Such as {"key": "lang", "match": {"value": "de"}}.')
        if "key" in document:
            return self._field(document, place, payload)
        match list(document):
            case ["is_empty"]:
                return f"not {self._of_key(document['is_empty'], f'{place}.is_empty', payload, _HAS_SOMETHING)}"
            case ["is_null"]:
                return self._of_key(document["is_null"], f"{place}.is_null", payload, _IS_NULL)
            case ["has_id"]:
                return self._has_id(document["has_id"], f"{place}.has_id", payload)
            case ["has_vector"]:
                return self._has_vector(document["has_vector"], f"{place}.has_vector", payload)
            case ["nested"]:
                return self._nested_filter(document["nested"], f"{place}.nested", payload, depth)
            case [name] if name not in ("must", "should", "must_not", "min_should"):
                raise wrong(
                    f"{place}.{name}",
                    "there is no such condition",
                    "Conditions have a key, or are is_empty, is_null, has_id, has_vector, nested or a filter.",
                )
        return self.filter(document, place, payload, depth + 1)

    def _field(self, document: dict[str, Any], place: str, payload: str) -> str:
        steps = payload_key.steps(document["key"], f"{place}.key")
        tests: dict[str, Callable[[Any, str, str, list[Step]], str]] = {
            "match": self._match,
            "range": self._range,
            "geo_bounding_box": self._geo_bounding_box,
            "geo_radius": self._geo_radius,
            "geo_polygon": self._geo_polygon,
            "values_count": self._values_count,
        }
        names = [name for name in document if name != "key" and document[name] is not None]
        if len(names) != 1 or names[0] not in tests:
            unknown = next((name for name in names if name not in tests), "")
            raise wrong(
                f"{place}.{unknown}" if unknown else place,
                "there is no such test" if unknown else f"a condition has a key and one test, not {len(names)}",
                "Tests are match, range, geo_bounding_box, geo_radius, geo_polygon and values_count; is_empty and is_null stand before the key.",
            )
        return tests[names[0]](document[names[0]], f"{place}.{names[0]}", payload, steps)

    # Tests of a key's values

    def _match(self, test: Any, place: str, payload: str, steps: list[Step]) -> str:
        if not isinstance(test, dict) or len(test) != 1:
            raise wrong(place, "match is an object with one key", "Keys are value, any, except, text, text_any and phrase.")
        ((kind, value),) = test.items()
        here = f"{place}.{kind}"
        match kind:
            case "value":
                if not isinstance(value, str | int | Decimal):
                    raise wrong(here, "a value is a string, a number, true or false", "is_null and is_empty find what is missing.")
                return self._equals_any([value], payload, steps)
            case "any":
                return self._equals_any(_values(value, here), payload, steps)
            case "except":
                kind = "number" if _values(value, here) and not isinstance(value[0], str) else "string"
                other = f'(@.type() == "{kind}" && !(@ == $v[*]) || @.type() != "{kind}" && @.type() != "null")'
                return self._exists(payload, steps, _of_elements(other), {"v": value})
            case "text" | "text_any" | "phrase":
                if not isinstance(value, str):
                    raise wrong(here, "words are a string", "All of them are looked for, whatever their order and case.")
                return self._has_words(kind, value, payload, steps)
        raise wrong(here, "there is no such match", "Keys are value, any, except, text, text_any and phrase.")

    def _equals_any(self, values: list[Any], payload: str, steps: list[Step]) -> str:
        if len(values) <= MOST_INDEXED and not any(isinstance(step, int) for step in steps):
            # A form that the index of payloads answers: the value itself, or an array with it.
            forms = [_json(payload_key.wrapped(steps, form)) for value in values for form in (value, [value])]
            if field := self._indexed(payload, steps):
                equal = f"{field} = any ({self._parameter('jsonb[]', [_json(value) for value in values])})"
                in_arrays = [_json(payload_key.wrapped(steps, [value])) for value in values]
                arrays = f"{field} > {_TRUE} and p.payload @> any ({self._parameter('jsonb[]', in_arrays)})"
                return f"(({equal} or {arrays}) and {field} is not null)"
            if len(values) == 1:
                return _any([f"{self._column(payload)} @> {self._parameter('jsonb', form)}" for form in forms])
            return f"({self._column(payload)} @> any ({self._parameter('jsonb[]', forms)}))"
        return self._exists(payload, steps, "(@ == $v[*] || exists(@[*] ? (@ == $v[*])))", {"v": values})

    def _has_words(self, kind: str, words: str, payload: str, steps: list[Step]) -> str:
        query = self._parameter("text", words)
        parsed = {
            "text": f"plainto_tsquery('simple'::regconfig, {query})",
            "text_any": f"replace(plainto_tsquery('simple'::regconfig, {query})::text, ' & ', ' | ')::tsquery",
            "phrase": f"phraseto_tsquery('simple'::regconfig, {query})",
        }[kind]
        return self._exists_value(
            payload, steps, '@.type() == "string"', f"to_tsvector('simple'::regconfig, left(v.value #>> '{{}}', {_SEARCHED})) @@ {parsed}"
        )

    def _range(self, test: Any, place: str, payload: str, steps: list[Step]) -> str:
        bounds = _bounds(test, place)
        if any(isinstance(bound, str) for bound in bounds.values()):
            return self._datetime_range(bounds, place, payload, steps)
        for name, bound in bounds.items():
            if isinstance(bound, bool) or not isinstance(bound, int | Decimal):
                raise wrong(f"{place}.{name}", "a bound is a number or a time", 'Times are strings such as "2026-01-31T12:00:00Z".')
        inside = " && ".join(f"@ {_BOUNDS[name]} ${name}" for name in bounds)
        exact = self._exists(payload, steps, f'(@.type() == "number" && {inside} || exists(@[*] ? (@.type() == "number" && {inside})))', bounds)
        if field := self._indexed(payload, steps):
            # More than match, but a form that the field's index answers: in the order of jsonb numbers lie below true, arrays and objects above.
            edges = [f"{field} {_BOUNDS[name]} {self._parameter('jsonb', _json(bound))}" for name, bound in bounds.items()]
            return f"({_all([*edges, f'{field} < {_TRUE}'])} or {field} > {_TRUE}) and {exact}"
        return exact

    def _datetime_range(self, bounds: dict[str, Any], place: str, payload: str, steps: list[Step]) -> str:
        zoned = f"(w.word || case when w.word ~ '{_ZONE}' then '' when w.word ~ ':' then 'Z' else ' 00:00Z' end)"
        parts = [
            f"{zoned}::timestamptz {_BOUNDS[name]} {self._parameter('timestamptz', _moment(bound, f'{place}.{name}'))}"
            for name, bound in bounds.items()
        ]
        exact = (
            f"exists (select from jsonb_path_query({self._elements(payload, steps)}, 'strict $[*] ? (@.type() == \"string\")') v (value)"
            f" cross join lateral (select v.value #>> '{{}}') w (word)"
            f" where case when w.word ~ '^{DATETIME}$' and pg_input_is_valid({zoned}, 'timestamptz') then {' and '.join(parts)} else false end)"
        )
        if field := self._indexed(payload, steps):
            # As for numbers; texts of times lie below numbers, and are in the order of their days.
            edges = [edge for name, bound in bounds.items() if (edge := self._day(field, name, bound))]
            return f"({_all([*edges, f'{field} >= {_EMPTY}', f'{field} < {_TRUE}'])} or {field} > {_TRUE}) and {exact}"
        return exact

    def _day(self, field: str, name: str, bound: str) -> str | None:
        """Return a condition that holds for every text of a time within a bound."""
        day = date.fromisoformat(bound[:10])
        try:
            edge = (day + _DAYS_APART if name in ("lt", "lte") else day - _DAYS_APART).isoformat()
        except OverflowError:
            return None
        return f"{field} {'<' if name in ('lt', 'lte') else '>='} {self._parameter('jsonb', _json(edge))}"

    def _values_count(self, test: Any, place: str, payload: str, steps: list[Step]) -> str:
        bounds = _bounds(test, place)
        for name, bound in bounds.items():
            if not _is_count(bound):
                raise wrong(f"{place}.{name}", "a count is a whole number from 0", "It is compared with the number of elements.")

        def compared(count: str) -> str:
            return " && ".join(f"{count} {_BOUNDS[name]} ${name}" for name in bounds)

        return self._exists(
            payload,
            steps,
            f'(@.type() == "array" && {compared("@.size()")} || @.type() == "null" && {compared("0")}'
            f' || @.type() != "array" && @.type() != "null" && {compared("1")})',
            bounds,
        )

    def _geo_bounding_box(self, test: Any, place: str, payload: str, steps: list[Step]) -> str:
        if not isinstance(test, dict) or test.keys() != {"top_left", "bottom_right"}:
            raise wrong(place, "a box is an object with top_left and bottom_right", 'Both are objects such as {"lon": 13.4, "lat": 52.5}.')
        west, north = _point(test["top_left"], f"{place}.top_left")
        east, south = _point(test["bottom_right"], f"{place}.bottom_right")
        # A box whose west is east of its east goes over the date line.
        lon = f"(@.lon > $west {'||' if west > east else '&&'} @.lon < $east)"
        inside = f'@.lon.type() == "number" && @.lat.type() == "number" && {lon} && @.lat > $south && @.lat < $north'
        box = {"west": west, "east": east, "south": south, "north": north}
        return self._exists(payload, steps, f"({inside} || exists(@[*] ? ({inside})))", box)

    def _geo_radius(self, test: Any, place: str, payload: str, steps: list[Step]) -> str:
        if not isinstance(test, dict) or test.keys() != {"center", "radius"}:
            raise wrong(
                place, "a circle is an object with center and radius", 'Such as {"center": {"lon": 13.4, "lat": 52.5}, "radius": 1000}, in metres.'
            )
        lon, lat = (self._parameter("double precision", float(each)) for each in _point(test["center"], f"{place}.center"))
        radius = test["radius"]
        if isinstance(radius, bool) or not isinstance(radius, int | Decimal) or radius < 0:
            raise wrong(f"{place}.radius", "a radius is a number of metres", "It is compared with the distance on a sphere.")
        haversine = (
            f"{2 * _EARTH} * asin(sqrt(least(1, sin(radians({_LAT} - {lat}) / 2) ^ 2"
            f" + cos(radians({lat})) * cos(radians({_LAT})) * sin(radians({_LON} - {lon}) / 2) ^ 2)))"
        )
        near = f"{haversine} < {self._parameter('double precision', float(min(radius, 10**9)))}"
        return self._exists_value(payload, steps, _IS_PLACE, near)

    def _geo_polygon(self, test: Any, place: str, payload: str, steps: list[Step]) -> str:
        if not isinstance(test, dict) or not {"exterior"} <= test.keys() <= {"exterior", "interiors"}:
            raise wrong(place, "a polygon is an object with exterior, and interiors if it has holes", _RING)
        holes = test.get("interiors") or []
        if not isinstance(holes, list):
            raise wrong(f"{place}.interiors", "holes are an array of rings", _RING)
        inside = self._in_ring(test["exterior"], f"{place}.exterior")
        outside = [f" and not {self._in_ring(hole, f'{place}.interiors[{number}]')}" for number, hole in enumerate(holes)]
        return self._exists_value(payload, steps, _IS_PLACE, inside + "".join(outside))

    def _in_ring(self, ring: Any, place: str) -> str:
        points = ring["points"] if isinstance(ring, dict) and ring.keys() == {"points"} else None
        if not isinstance(points, list) or len(points) < 4 or points[0] != points[-1]:
            raise wrong(place, "a ring is an object with at least four points, the last one being the first again", _RING)
        corners = [_point(each, f"{place}.points[{number}]") for number, each in enumerate(points)]
        lons, lats = (self._parameter("double precision[]", [float(corner[axis]) for corner in corners]) for axis in (0, 1))
        # Who goes eastward from within crosses the ring an odd number of times.
        crossed = f"{_LON} < (e.to_lon - e.lon) * ({_LAT} - e.lat) / (e.to_lat - e.lat) + e.lon"
        return (
            f"(select count(*) % 2 = 1 from unnest({lons}, {lats}, ({lons})[2:], ({lats})[2:]) e (lon, lat, to_lon, to_lat)"
            f" where case when (e.lat > {_LAT}) <> (e.to_lat > {_LAT}) then {crossed} else false end)"
        )

    # Conditions without a test

    def _of_key(self, document: Any, place: str, payload: str, predicate: str) -> str:
        if not isinstance(document, dict) or document.keys() != {"key"}:
            raise wrong(place, "this is an object with a key", 'Such as {"is_null": {"key": "reviewed_at"}}.')
        return self._exists(payload, payload_key.steps(document["key"], f"{place}.key"), predicate, {})

    def _has_id(self, ids: Any, place: str, payload: str) -> str:
        if payload != "payload":
            raise wrong(place, "elements of a payload have no id", "Set has_id beside nested, not in it.")
        if not isinstance(ids, list) or not all(isinstance(each, str | int) and not isinstance(each, bool) for each in ids):
            raise wrong(place, "ids are an array of strings", 'Such as ["a", "b"].')
        return f"(p.id = any ({self._parameter('text[]', [str(each) for each in ids])}))"

    def _has_vector(self, name: Any, place: str, payload: str) -> str:
        if payload != "payload":
            raise wrong(place, "elements of a payload have no vector", "Set has_vector beside nested, not in it.")
        if name != "":
            raise wrong(place, "a point has one vector, which has no name", 'Write {"has_vector": ""}.')
        return "(p.embedding is not null)"

    def _nested_filter(self, document: Any, place: str, payload: str, depth: int) -> str:
        if not isinstance(document, dict) or document.keys() != {"key", "filter"}:
            raise wrong(place, "nested is an object with key and filter", "The filter is about each object in the array that the key leads to.")
        steps = payload_key.steps(document["key"], f"{place}.key")
        if steps[-1] is not None:
            steps.append(None)
        self._nested += 1
        element = f"n{self._nested}.payload"
        path = self._parameter("jsonpath", f"{payload_key.path(steps)} ? (@.type() == \"object\")")
        inner = self.filter(document["filter"], f"{place}.filter", element, depth + 1)
        return f"exists (select from jsonb_path_query({self._column(payload)}, {path}, '{{}}', true) n{self._nested} (payload) where {inner})"

    # Building blocks

    def _exists(self, payload: str, steps: list[Step], predicate: str, variables: dict[str, Any]) -> str:
        path = self._parameter("jsonpath", f"{payload_key.path(steps)} ? {predicate}")
        return f"(jsonb_path_exists({self._column(payload)}, {path}, {self._parameter('jsonb', _json(variables))}, true) is true)"

    def _exists_value(self, payload: str, steps: list[Step], which: str, predicate: str) -> str:
        values = f"jsonb_path_query({self._elements(payload, steps)}, 'strict $[*] ? ({which})', '{{}}', true)"
        return f"exists (select from {values} v (value) where {predicate})"

    def _elements(self, payload: str, steps: list[Step]) -> str:
        """Return an array of the values that a key leads to; of those that are arrays, their elements."""
        path = self._parameter("jsonpath", payload_key.path(steps))
        return f"jsonb_path_query_array(jsonb_path_query_array({self._column(payload)}, {path}, '{{}}', true), 'lax $[*][*]')"

    def _indexed(self, payload: str, steps: list[Step]) -> str | None:
        """Return the expression of a field that has an index by value."""
        return f"(p.payload -> '{steps[0]}')" if payload == "payload" and len(steps) == 1 and steps[0] in self._ordered else None

    def _column(self, payload: str) -> str:
        return "p.payload" if payload == "payload" else payload

    def _parameter(self, kind: str, value: Any) -> str:
        self.types.append(kind)
        self.values.append(value)
        return f"${self._first + len(self.values) - 1}"


def _of_elements(predicate: str) -> str:
    return f'(@.type() != "array" && {predicate} || @.type() == "array" && exists(@[*] ? {predicate}))'


def _all(parts: list[str]) -> str:
    return f"({' and '.join(parts)})" if parts else "true"


def _any(parts: list[str]) -> str:
    return f"({' or '.join(parts)})"


def _values(values: Any, place: str) -> list[Any]:
    kinds = {str if isinstance(each, str) else int for each in values if isinstance(each, str | int | Decimal)} if isinstance(values, list) else set()
    if (
        not isinstance(values, list)
        or len(kinds) > 1
        or not all(isinstance(each, str | int | Decimal) and not isinstance(each, bool) for each in values)
    ):
        raise wrong(place, "values are an array of strings, or one of numbers", 'Such as ["de", "en"].')
    return values


def _bounds(test: Any, place: str) -> dict[str, Any]:
    bounds = {name: bound for name, bound in test.items() if bound is not None} if isinstance(test, dict) else {}
    if not bounds or not bounds.keys() <= _BOUNDS.keys():
        raise wrong(place, "bounds are an object with gt, gte, lt or lte", 'Such as {"gte": 1, "lt": 10}.')
    return bounds


def _moment(bound: Any, place: str) -> str:
    if isinstance(bound, str) and re.fullmatch(DATETIME, bound, re.ASCII):
        try:
            datetime.fromisoformat(bound.upper())
        except ValueError:
            pass
        else:
            return bound + ("" if re.search(_ZONE, bound) else "Z" if ":" in bound else " 00:00Z")
    raise wrong(
        place,
        f"{_json(bound)[:100]} is no time",
        'Times are such as "2026-01-31T12:00:00Z", "2026-01-31 12:00" or "2026-01-31"; without a zone, of UTC.',
    )


def _point(document: Any, place: str) -> tuple[int | Decimal, int | Decimal]:
    if isinstance(document, dict) and document.keys() == {"lon", "lat"}:
        lon, lat = document["lon"], document["lat"]
        if all(isinstance(each, int | Decimal) and not isinstance(each, bool) for each in (lon, lat)) and abs(lon) <= 180 and abs(lat) <= 90:
            return lon, lat
    raise wrong(place, "a place is an object with lon from -180 to 180 and lat from -90 to 90", 'Such as {"lon": 13.4, "lat": 52.5}.')


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _json(value: Any) -> str:
    """Return JSON with numbers as they were written: a float would lose digits."""
    match value:
        case dict():
            return "{" + ", ".join(f"{json.dumps(key)}: {_json(each)}" for key, each in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_json, value)) + "]"
        case Decimal():
            return str(value)
    return json.dumps(value)
