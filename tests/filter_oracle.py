"""What a filter means, said a second time and in another way, and payloads and filters to compare by."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

COMPARE = {"gt": lambda a, b: a > b, "gte": lambda a, b: a >= b, "lt": lambda a, b: a < b, "lte": lambda a, b: a <= b}


def matches(payload: Any, document: Any, point: str = "") -> bool:
    """Tell whether a payload matches a filter."""

    def listed(clause: str) -> list[bool]:
        conditions = document.get(clause) or []
        return [_holds(payload, each, point) for each in (conditions if isinstance(conditions, list) else [conditions])]

    least = document.get("min_should")
    return (
        all(listed("must"))
        and not any(listed("must_not"))
        and (any(listed("should")) or not document.get("should"))
        and (least is None or sum(_holds(payload, each, point) for each in least["conditions"]) >= least["min_count"])
    )


def _holds(payload: Any, condition: Any, point: str) -> bool:
    if "is_empty" in condition:
        return all(value is None or value == [] for value in _reached(payload, condition["is_empty"]["key"]))
    if "is_null" in condition:
        return any(value is None for value in _reached(payload, condition["is_null"]["key"]))
    if "has_id" in condition:
        return point in [str(each) for each in condition["has_id"]]
    if "nested" in condition:
        key = condition["nested"]["key"]
        elements = _reached(payload, key if key.endswith("[]") else key + "[]")
        return any(isinstance(each, dict) and matches(each, condition["nested"]["filter"]) for each in elements)
    if "key" not in condition:
        return matches(payload, condition, point)
    values = _reached(payload, condition["key"])
    if "values_count" in condition:
        return any(_between(_count(value), condition["values_count"]) for value in values)
    elements = [element for value in values for element in (value if isinstance(value, list) else [value])]
    return any(_tested(element, condition) for element in elements)


def _reached(payload: Any, key: str) -> list[Any]:
    values = [payload]
    for quoted, name, index in re.findall(r'"([^"]*)"|([^."\[\]]+)|(\[\d*\])', key):
        if index == "[]":
            values = [element for value in values if isinstance(value, list) for element in value]
        elif index:
            values = [value[int(index[1:-1])] for value in values if isinstance(value, list) and len(value) > int(index[1:-1])]
        else:
            values = [value[quoted or name] for value in values if isinstance(value, dict) and (quoted or name) in value]
    return values


def _count(value: Any) -> int:
    return len(value) if isinstance(value, list) else int(value is not None)


def _between(value: Any, bounds: dict[str, Any]) -> bool:
    return all(COMPARE[name](value, bound) for name, bound in bounds.items())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(value: Any, other: Any) -> bool:
    return value == other and (type(value) is type(other) or (_is_number(value) and _is_number(other)))


def _moment(text: Any) -> datetime | None:
    if not isinstance(text, str) or not re.match(r"\d{4}-\d\d-\d\d", text):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _tested(value: Any, condition: Any) -> bool:
    if match := condition.get("match"):
        ((kind, wanted),) = match.items()
        match kind:
            case "value":
                return _same(value, wanted)
            case "any":
                return any(_same(value, each) for each in wanted)
            case "except":
                return value is not None and not any(_same(value, each) for each in wanted)
        words, query = ([word.lower() for word in re.findall(r"\w+", text)] for text in (value if isinstance(value, str) else "", wanted))
        if kind == "phrase":
            return bool(query) and any(words[at : at + len(query)] == query for at in range(len(words)))
        return bool(query) and (any if kind == "text_any" else all)(word in words for word in query)
    if bounds := condition.get("range"):
        if isinstance(next(iter(bounds.values())), str):
            moment = _moment(value)
            return moment is not None and _between(moment, {name: _moment(bound) for name, bound in bounds.items()})
        return _is_number(value) and _between(value, bounds)
    if not (isinstance(value, dict) and _is_number(value.get("lon")) and _is_number(value.get("lat"))):
        return False
    lon, lat = value["lon"], value["lat"]
    if box := condition.get("geo_bounding_box"):
        west, east = box["top_left"]["lon"], box["bottom_right"]["lon"]
        inside = lon > west or lon < east if west > east else west < lon < east
        return bool(inside and box["bottom_right"]["lat"] < lat < box["top_left"]["lat"])
    if polygon := condition.get("geo_polygon"):
        return _in_ring(lon, lat, polygon["exterior"]) and not any(_in_ring(lon, lat, hole) for hole in polygon.get("interiors") or [])
    circle = condition["geo_radius"]
    return bool(_metres(lon, lat, circle["center"]["lon"], circle["center"]["lat"]) < circle["radius"])


def _in_ring(lon: float, lat: float, ring: Any) -> bool:
    """The angles that its sides are seen under make a whole turn."""
    seen = [math.atan2(corner["lat"] - lat, corner["lon"] - lon) for corner in ring["points"]]
    return abs(sum(math.remainder(after - before, 2 * math.pi) for before, after in pairwise(seen))) > math.pi


def _metres(lon: float, lat: float, other_lon: float, other_lat: float) -> float:
    """The angle between two directions, by their vectors instead of the haversine."""
    one, other = ([math.cos(b) * math.cos(a), math.cos(b) * math.sin(a), math.sin(b)] for a, b in _radians((lon, lat), (other_lon, other_lat)))
    return 6_371_008.8 * 2 * math.asin(min(1, math.dist(one, other) / 2))


def _radians(*places: tuple[float, float]) -> list[tuple[float, float]]:
    return [(math.radians(lon), math.radians(lat)) for lon, lat in places]


# Payloads and filters

_TIMES = (
    "2020-01-01",
    "2020-01-01T10:00",
    "2020-01-01T10:00:00Z",
    "2020-01-01 10:00:00+02:00",
    "2020-06-30T23:59:59.5Z",
    "2021-13-45",
    "2020-01-01x",
)
_WORDS = ("red", "Red car", "car red", "blue car, red", "", "de")
_NAMES = st.sampled_from(["a", "b", "c", "x y"])
_PLACES = st.fixed_dictionaries({"lon": st.sampled_from([-179.5, -10, 0, 13.4, 179.5]), "lat": st.sampled_from([-89, 0, 52.5, 52.6])})
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.sampled_from([0.5, 1.0, 1e300]), st.sampled_from(_WORDS), st.sampled_from(_TIMES), _PLACES
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=6,
)
_FIELD = _SCALARS | _VALUES | st.lists(st.dictionaries(_NAMES, _SCALARS), max_size=3)
_PAYLOAD = st.fixed_dictionaries({"a": _FIELD}, optional={"b": _FIELD, "c": _FIELD, "x y": _FIELD})
PAYLOADS = st.lists(_PAYLOAD, min_size=12, max_size=12)

_KEYS = st.sampled_from([*["a"] * 10, "b", "x y", '"x y"', '"a"."b"', "a.b", "a[]", "a[0]", "a[].b", "b[1].a", "a.b[]", "a[].b[]", "b.c.a"])


def _some(names: st.SearchStrategy[Any], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(names, values, min_size=1, max_size=2)


def _field(test: str, value: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"key": _KEYS, test: value})


_BOUND = st.sampled_from(list(COMPARE))
_STRINGS = st.lists(st.sampled_from(_WORDS), max_size=4)
_NUMBERS = st.lists(st.integers(-1, 2), max_size=20)

# No side goes through one of the places.
_CORNERS: list[list[tuple[float, float]]] = [
    [(-20, 1), (20, 1), (20, 60), (-20, 60)], [(5, 52), (20, 52.2), (13, 52.7)], [(-179.9, -89.9), (179.9, -89.9), (179.9, 89.9), (-179.9, 89.9)],
    [(-30, -5), (30, -5), (30, 70), (12, 70), (12, 10), (2, 10), (2, 70), (-30, 70)], [(1, 1), (2, 1), (2, 2)],
]  # fmt: skip
_RING = st.sampled_from(_CORNERS).map(lambda corners: {"points": [{"lon": lon, "lat": lat} for lon, lat in [*corners, corners[0]]]})

FIELDS = {
    "match value": _field("match", st.fixed_dictionaries({"value": st.booleans() | st.integers(-2, 3) | st.just(0.5) | st.sampled_from(_WORDS)})),
    "match any": _field("match", st.fixed_dictionaries({"any": _STRINGS | _NUMBERS})),
    "match except": _field("match", st.fixed_dictionaries({"except": _STRINGS | _NUMBERS})),
    "match text": _field("match", st.fixed_dictionaries({"text": st.sampled_from(["red", "RED car", "car", "no", ""])})),
    "match text_any": _field("match", st.fixed_dictionaries({"text_any": st.sampled_from(["red no", "no", ""])})),
    "match phrase": _field("match", st.fixed_dictionaries({"phrase": st.sampled_from(["red car", "car red", "red", "de"])})),
    "range": _field("range", _some(_BOUND, st.integers(-2, 3) | st.just(0.5))),
    "datetime range": _field("range", _some(_BOUND, st.sampled_from(_TIMES[:5]))),
    "values_count": _field("values_count", _some(_BOUND, st.integers(0, 3))),
    "geo_bounding_box": _field(
        "geo_bounding_box",
        st.builds(
            lambda west, east, north, south: {"top_left": {"lon": west, "lat": north}, "bottom_right": {"lon": east, "lat": south}},
            *[
                st.sampled_from([-180, -20, 5, 20, 179]),
                st.sampled_from([-179, 1, 30, 180]),
                st.sampled_from([1, 53, 90]),
                st.sampled_from([-90, 0, 50]),
            ],
        ),
    ),
    "geo_radius": _field("geo_radius", st.fixed_dictionaries({"center": _PLACES, "radius": st.sampled_from([1, 12_000, 200_000, 9e6, 2e7])})),
    "geo_polygon": _field("geo_polygon", st.fixed_dictionaries({"exterior": _RING}, optional={"interiors": st.lists(_RING, max_size=2)})),
    "is_empty": st.fixed_dictionaries({"is_empty": st.fixed_dictionaries({"key": _KEYS})}),
    "is_null": st.fixed_dictionaries({"is_null": st.fixed_dictionaries({"key": _KEYS})}),
    "has_id": st.fixed_dictionaries({"has_id": st.lists(st.sampled_from(["p", "q", 1]), max_size=2)}),
}


def _filters(conditions: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(conditions, max_size=3)
    clauses = {"must": several | conditions, "should": several, "must_not": several}
    least = st.fixed_dictionaries({"conditions": several, "min_count": st.integers(0, 3)})
    return st.fixed_dictionaries({}, optional={**clauses, "min_should": least})


_IN_NESTED = st.one_of([strategy for name, strategy in FIELDS.items() if name != "has_id"])
NESTED = st.fixed_dictionaries(
    {"nested": st.fixed_dictionaries({"key": st.sampled_from(["a", "b", "a[]", "a[].b"]), "filter": _filters(_IN_NESTED)})}
)
CONDITIONS = {**FIELDS, "nested": NESTED, "filters": _filters(st.recursive(st.one_of(*FIELDS.values(), NESTED), _filters, max_leaves=5))}
