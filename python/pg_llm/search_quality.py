"""How well searches do: recall against exact search, the ef_search that a recall takes, and measures by labelled queries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from math import dist, hypot, log2, sqrt
from random import Random
from statistics import fmean, median, quantiles, stdev
from time import perf_counter
from typing import Any, NamedTuple

from . import query_log, search_plan, spi
from .hybrid_search import CANDIDATES
from .search_plan import Collection
from .vector_search import Search

#: More queries make a figure no finer that matters.
MOST_QUERIES = 10_000

#: Points of one search.
MOST_K = 1_000

SOURCES = ("points", "shifted", "queries")

#: Tuning ends when the ef that meets the target and the one that does not differ by no more than this part.
FINE_ENOUGH = 20

#: The largest number of each type of element.
LARGEST = {"halfvec": 65_504.0, "vector": 3.4e38, "bit": 3.4e38}

type Ranked = list[dict[str, Any]]


class Probe(NamedTuple):
    """A vector to search for, and the point that it is of, if any, which does not count."""

    vector: str
    point: str | None


class Recall(NamedTuple):
    """What was measured."""

    ef: int
    plan: str
    recall: float
    standard_error: float | None
    p50: float
    p95: float


# Recall


class _Measuring:
    """Searches for a sample of vectors, whose true neighbours are found once."""

    def __init__(
        self, of: Search, document: str | None, sample: int | None, k: int | None, source: str | None, claimed: str | None, user: str | None
    ) -> None:
        if sample is None or not 1 <= sample <= MOST_QUERIES:
            raise spi.InvalidParameter(f"p_sample is {_shown(sample)}", hint=f"Measure with 1 to {MOST_QUERIES:,} vectors.")
        self.k = _checked_count(k)
        if source is not None and source not in SOURCES:
            raise spi.InvalidParameter(f"p_source is '{source[:100]}'", hint="It is queries, shifted, points, or null.")
        self.of, self.document = of, document
        #: A point that is searched for itself is found, too.
        self.wanted = self.k + (source == "points")
        self._search = _vector_plan(of.collection)
        probes = _queries(of, sample) if source in ("queries", None) else []
        self.source = source or ("queries" if len(probes) == sample else "shifted")
        if self.source != "queries":
            probes = _points(Search(of.collection.name, None, claimed, user), sample)
        if self.source == "shifted":
            probes = [shifted for probe in probes if (shifted := self._shifted(probe))]
        # Before anything is compared exactly: a session remembers how many points match, and searches accordingly.
        first = self._searched(probes, of.ef)
        self._exact_times: list[float] = []
        truths = [self._nearest(probe, of.ef, self._exact_times, exact=True) for probe in probes]
        kept = [number for number, truth in enumerate(truths) if truth]
        if not kept:
            raise spi.NoDataFound(
                f"collection '{of.collection.name}' has nothing to measure with",
                hint="Measure when there are points of this tenant that match, and, by p_source => 'queries', searches that were logged.",
            )
        self.probes, self.truths = [probes[number] for number in kept], [truths[number] for number in kept]
        self._found = {of.ef: ([first[0][number] for number in kept], *first[1:])}

    def recall(self, ef: int) -> Recall:
        """Measure with so many candidates, and keep what was measured."""
        if ef not in self._found:
            self._found[ef] = self._searched(self.probes, ef)
        found, times, plan = self._found[ef]
        # By distances: of points at the same distance one is as good as the other.
        shares = [sum((Counter(some) & Counter(all_)).values()) / len(all_) for some, all_ in zip(found, self.truths, strict=True)]
        error = stdev(shares) / sqrt(len(shares)) if len(shares) > 1 else None
        return Recall(ef, plan, fmean(shares), error, *_percentiles(times))

    def keep(self, measured: Recall) -> tuple[Any, ...]:
        """Store a measurement, and return it as a row of llm.search_recall."""
        name, is_filtered = self.of.collection.name, self.document is not None
        exact, _ = _percentiles(self._exact_times)
        stored = _KEEP_RECALL.row(
            self.of.tenant, name, self.source, is_filtered, len(self.probes), self.k, measured.ef, measured.plan, measured.recall,
            measured.standard_error, measured.p50, measured.p95, exact,
        )  # fmt: skip
        return (
            name, stored["measured_at"], self.source, is_filtered, len(self.probes), self.k, measured.ef, measured.plan, measured.recall,
            measured.standard_error, measured.p50, measured.p95, exact,
        )  # fmt: skip

    def _searched(self, probes: list[Probe], ef: int) -> tuple[list[list[float]], list[float], str]:
        times: list[float] = []
        # The first search of its kind also writes its plan.
        for probe in probes[:1]:
            self._nearest(probe, ef, [], exact=False)
        found = [self._nearest(probe, ef, times, exact=False) for probe in probes]
        return found, times, _LAST_PLAN.row()["plan"] if probes else ""

    def _shifted(self, probe: Probe) -> Probe | None:
        """Return a point's vector, moved in some direction as far as its k-th neighbour is: about where queries lie."""
        c = self.of.collection
        rows = self._search.rows(c.name, probe.vector, self.k + 1, None, self.of.ef, False)
        others = [row["id"] for row in rows if row["id"] != probe.point]
        if not others:
            return None
        vector = _scaled(c, probe.vector)
        neighbour = _scaled(c, _VECTOR_OF.row(c.name, others[-1])["vector"])
        # The same one for the same point, so that setseed() makes a measurement repeatable.
        chance = Random(probe.point)  # noqa: S311 - no secret
        direction = [chance.gauss() for _ in vector]
        length = dist(vector, neighbour) / hypot(*direction)
        return Probe(json.dumps([value + length * part for value, part in zip(vector, direction, strict=True)]), None)

    def _nearest(self, probe: Probe, ef: int, times: list[float], *, exact: bool) -> list[float]:
        """Return the distances of the k nearest points."""
        arguments = (self.of.collection.name, probe.vector, self.wanted, self.document, ef, exact)
        rows = _timed(times, partial(self._search.rows, *arguments))
        return [row["distance"] for row in rows if row["id"] != probe.point][: self.k]


def recall(
    name: str | None,
    sample: int | None,
    k: int | None,
    ef: int | None,
    document: str | None,
    source: str | None,
    claimed: str | None,
    user: str | None,
) -> list[tuple[Any, ...]]:
    """Measure and keep the recall of a tenant's searches: a row of llm.search_recall."""
    of = Search(name, document, claimed, user, ef)
    with query_log.unlogged():
        measuring = _Measuring(of, document, sample, k, source, claimed, user)
        return [measuring.keep(measuring.recall(of.ef))]


def tuning(
    name: str | None, target: float | None, sample: int | None, k: int | None, source: str | None, claimed: str | None, user: str | None
) -> list[tuple[Any, ...]]:
    """Find the smallest ef_search that meets a target: a row of llm.search_tuning."""
    if target is None or not 0 < target <= 1:
        raise spi.InvalidParameter(f"p_target_recall is {_shown(target)}", hint="It is more than 0, at most 1: the share of the nearest to be found.")
    of = Search(name, None, claimed, user)
    with query_log.unlogged():
        measuring = _Measuring(of, None, sample, k, source, claimed, user)
        tried: dict[int, Recall] = {}

        def meets(ef: int) -> bool:
            if ef not in tried:
                tried[ef] = measuring.recall(ef)
                measuring.keep(tried[ef])
            measured = tried[ef]
            # Another sample should meet it, too.
            return measured.recall - (measured.standard_error or 0) >= target

        chosen, is_met, reason = _cheapest(of, measuring.wanted, meets, tried)
    best = tried[chosen]
    ef = of.ef if reason else chosen
    return [
        (
            of.collection.name, target, measuring.k, of.ef, ef, best.recall, best.standard_error, best.p50, best.p95, len(tried), is_met,
            reason or ("it is the smallest already" if ef == of.ef else None),
        )
    ]  # fmt: skip


def _cheapest(of: Search, least: int, meets: Callable[[int], bool], tried: dict[int, Recall]) -> tuple[int, bool, str | None]:
    """Return the ef that meets the target, or comes nearest; whether it does; and the reason why it is not to be chosen.

    Doubled until the target is met, then halved between the last that missed it and the first that met it.
    """
    if meets(of.ef) and tried[of.ef].plan in ("exact", "filtered_exact"):
        return of.ef, True, "the points of this tenant are so few that all are compared: no index is asked"
    # An index looks at no fewer candidates than points are wanted.
    missed, met = 0, least
    while not meets(met):
        if met == search_plan.MOST_CANDIDATES:
            best = max(tried.values(), key=lambda measured: (measured.recall, -measured.ef))
            return best.ef, False, "no ef_search finds so many: raise m and ef_construction, or take another element than bit"
        missed, met = met, min(met * 2, search_plan.MOST_CANDIDATES)
    while missed and met - missed > max(met // FINE_ENOUGH, 1):
        middle = (missed + met) // 2
        missed, met = (missed, middle) if meets(middle) else (middle, met)
    return met, True, None


def _queries(of: Search, sample: int) -> list[Probe]:
    return [Probe(row["vector"], None) for row in _LOGGED.rows(of.tenant, of.collection.name, of.user, sample)]


def _points(of: Search, sample: int) -> list[Probe]:
    c = of.collection
    plan = spi.built_plan(
        f"select p.id, p.embedding::{c.schema}.vector::text as vector from {c.table} p where {of.scope.condition} and p.embedding is not null"
        " order by random() limit $3",
        "text",
        *of.scope.types,
    )
    return [Probe(row["vector"], row["id"]) for row in plan.rows(None, *of.arguments(sample))]


def _scaled(c: Collection, written: str) -> list[float]:
    """Return a vector, by cosine distance of unit length."""
    vector: list[float] = json.loads(written)
    length = hypot(*vector) if c.distance == "cosine" else 1
    return [value / length for value in vector]


def _vector_plan(c: Collection) -> spi.Plan:
    return spi.built_plan(
        "select h.id, h.distance from llm.vector_search($1, $2, $3, $4, null::double precision, $5, $6, false) h",
        "text", f"{c.schema}.vector", "integer", "jsonb", "integer", "boolean",
    )  # fmt: skip


# Labelled queries


class Labelled(NamedTuple):
    """A query, and the grades of the points that it should find."""

    text: str | None
    vector: str | None
    grades: dict[str, float]


def evaluate(
    name: str | None,
    document: str | None,
    k: int | None,
    fusion: str | None,
    rrf_k: float | None,
    weights: list[float] | None,
    ef: int | None,
    note: str | None,
    claimed: str | None,
    user: str | None,
) -> list[tuple[Any, ...]]:
    """Answer labelled queries by each method, and keep the measures: rows of llm.search_evaluation, best first."""
    of = Search(name, None, claimed, user, ef)
    c = of.collection
    wanted = _checked_count(k)
    queries = labelled(c, json.loads(document or "null"))
    points = {point for query in queries for point, grade in query.grades.items() if grade}
    missing = len(points) - _PRESENT.row(c.name, [*points])["count"]
    hybrid = spi.built_plan(
        "select h.id from llm.hybrid_search($1, $2, $3, $4, null::jsonb, $5, $6, $7, $8, $9) h",
        "text", "text", f"{c.schema}.vector", "integer", "text", "double precision", "double precision[]", "integer", "integer",
    )  # fmt: skip
    by_vector = _vector_plan(c)
    fused = (wanted, fusion, rrf_k, weights, max(wanted, CANDIDATES), ef)
    methods: dict[str, Callable[[Labelled], Ranked]] = {
        "vector": lambda query: by_vector.rows(c.name, query.vector, wanted, None, of.ef, False),
        "text": lambda query: hybrid.rows(c.name, query.text, None, *fused),
        "hybrid": lambda query: hybrid.rows(c.name, query.text, query.vector, *fused),
    }
    if queries[0].vector is None:
        del methods["vector"], methods["hybrid"]
    elif queries[0].text is None:
        del methods["text"], methods["hybrid"]
    settings = json.dumps({"fusion": fusion, "rrf_k": rrf_k, "weights": weights, "ef_search": of.ef})
    rows = []
    with query_log.unlogged():
        for method, search in methods.items():
            times: list[float] = []
            search(queries[0])
            found = [[row["id"] for row in _timed(times, partial(search, query))] for query in queries]
            rows.append((method, *measures(queries, found, wanted), *_percentiles(times)))
    rows.sort(key=lambda row: -row[3])
    columns = list(zip(*rows, strict=True))
    (measured_at,) = {row["measured_at"] for row in _KEEP_EVALUATION.rows(of.tenant, c.name, len(queries), wanted, missing, settings, note, *columns)}
    return [(c.name, measured_at, row[0], len(queries), wanted, *row[1:4], missing, *row[4:]) for row in rows]


def measures(queries: list[Labelled], found: list[list[str]], k: int) -> tuple[float, float, float]:
    """Return hit rate, mean reciprocal rank, and nDCG (Järvelin and Kekäläinen 2002, with the grade as the gain) of the first k points."""
    hits, reciprocal, gains = [], [], []
    for query, ids in zip(queries, found, strict=True):
        grades = [query.grades.get(point, 0.0) for point in ids]
        first = next((rank for rank, grade in enumerate(grades, 1) if grade), 0)
        hits.append(1.0 if first else 0.0)
        reciprocal.append(1 / first if first else 0.0)
        gains.append(_gain(grades) / _gain(sorted(query.grades.values(), reverse=True)[:k]))
    return fmean(hits), fmean(reciprocal), fmean(gains)


def _gain(grades: list[float]) -> float:
    return sum(grade / log2(rank + 1) for rank, grade in enumerate(grades, 1))


def labelled(c: Collection, elements: Any) -> list[Labelled]:
    """Return labelled queries. Raises `spi.InvalidParameter` that names the element that is wrong."""
    if not isinstance(elements, list) or not 1 <= len(elements) <= MOST_QUERIES:
        raise spi.InvalidParameter(
            "labelled queries are an array, or a table, of "
            f"1 to {MOST_QUERIES:,} elements, not {f'one of {len(elements)}' if isinstance(elements, list) else type(elements).__name__}",
            hint="""Such as [{"query": "text", "vector": [1, 0, 0], "relevant": ["id"]}]; relevant may be an object of ids with grades.""",
        )
    queries: list[Labelled] = []
    for number, element in enumerate(elements, 1):
        problem = _problem(c, element)
        if problem is None:
            text, vector = element.get("query"), _numbers(element.get("vector"))
            relevant = element["relevant"]
            grades = {point: float(grade) for point, grade in relevant.items()} if isinstance(relevant, dict) else dict.fromkeys(relevant, 1.0)
            queries.append(Labelled(text, None if vector is None else json.dumps(vector), grades))
            for part, is_there, was_there in (("query", text is not None, queries[0].text), ("vector", vector is not None, queries[0].vector)):
                if is_there != (was_there is not None):
                    problem = f"has {'a' if is_there else 'no'} {part}, other than element 1"
        if problem is not None:
            raise spi.InvalidParameter(
                f"element {number} of the labelled queries {problem}",
                hint="Each has relevant points, and query (text), vector, or both, all of them the same.",
                detail=f"Its query is {json.dumps(element['query'])[:200]}." if isinstance(element, dict) and element.get("query") else None,
            )
    return queries


def _problem(c: Collection, element: Any) -> str | None:
    """Return what is wrong with a labelled query."""
    if not isinstance(element, dict):
        return f"is no object: {json.dumps(element)[:100]}"
    text, given, relevant = element.get("query"), element.get("vector"), element.get("relevant")
    if text is None and given is None:
        return "has neither query nor vector"
    if text is not None and not (isinstance(text, str) and text.strip()):
        return f"has a query that is no text: {json.dumps(text)[:100]}"
    if given is not None:
        vector = _numbers(given)
        if vector is None or not all(abs(value) <= LARGEST[c.element] for value in vector):
            return f"has a vector that is none: {json.dumps(given)[:100]}"
        if len(vector) != c.dimensions:
            return f"has a vector of {len(vector)} dimensions, those of collection {c.name} have {c.dimensions}"
        if c.distance == "cosine" and not any(vector):
            return "has a vector that is zero: by cosine distance it is near to nothing"
    if not relevant or not isinstance(relevant, (list, dict)):
        return "has no relevant points"
    if not all(isinstance(point, str) for point in relevant):
        return f"has a relevant point whose id is no text: {json.dumps(relevant)[:100]}"
    if isinstance(relevant, dict):
        if not all(_is_number(grade) and 0 <= grade < LARGEST["vector"] for grade in relevant.values()):
            return f"has a grade that is no number from 0: {json.dumps(relevant)[:100]}"
        if not any(relevant.values()):
            return "has no relevant points: every grade is 0"
    return None


def _numbers(vector: Any) -> list[float] | None:
    """Return a vector that was written as an array, or as a text of one; None when it is none."""
    if isinstance(vector, str):
        try:
            vector = json.loads(vector)
        except ValueError:
            return None
    if not isinstance(vector, list) or not all(_is_number(value) for value in vector):
        return None
    return vector


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# What both share


def _checked_count(k: int | None) -> int:
    if k is None or not 1 <= k <= MOST_K:
        raise spi.InvalidParameter(f"p_k is {_shown(k)}", hint=f"Look at the first 1 to {MOST_K:,} points.")
    return k


def _shown(value: float | None) -> str:
    return "null" if value is None else str(value)


def _timed(times: list[float], search: Callable[[], Ranked]) -> Ranked:
    start = perf_counter()
    found = search()
    times.append((perf_counter() - start) * 1000)
    return found


def _percentiles(times: list[float]) -> tuple[float, float]:
    """Return median and 95th percentile."""
    return median(times), quantiles(times, n=20, method="inclusive")[-1] if len(times) > 1 else times[0]


_LAST_PLAN = spi.plan("select r.plan from llm._search_report(llm._claimed_tenant(), llm.current_user_id()) r")

_LOGGED = spi.plan(
    """
    select q.embedding as vector
    from llm.search_queries q
    where q.tenant_id = $1
        and q.collection = $2
        and ($3 is null or q.user_id = $3)
    order by random()
    limit $4
    """,
    "text", "text", "uuid", "bigint",
)  # fmt: skip

_VECTOR_OF = spi.plan("select p.embedding::text as vector from llm.get_points($1, array[$2], true) p", "text", "text")

_PRESENT = spi.plan("select count(*) as count from llm.get_points($1, $2, false)", "text", "text[]")

_KEEP_RECALL = spi.plan(
    """
    insert into llm.recall_measurements (
        tenant_id, collection, source, is_filtered, queries, k, ef, plan, recall, standard_error, p50_ms, p95_ms, exact_p50_ms
    )
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
    returning measured_at
    """,
    "text", "text", "text", "boolean", "bigint", "integer", "integer", "text", *["double precision"] * 5,
)  # fmt: skip

_KEEP_EVALUATION = spi.plan(
    """
    with t (now) as materialized (select clock_timestamp())
    insert into llm.search_evaluations (
        tenant_id, collection, measured_at, queries, k, missing, settings, note, method, hit_rate, mrr, ndcg, p50_ms, p95_ms
    )
    select $1, $2, t.now, $3, $4, $5, $6, $7, m.*
    from t
    cross join unnest($8, $9, $10, $11, $12, $13) m
    returning measured_at
    """,
    "text", "text", "bigint", "integer", "bigint", "jsonb", "text", "text[]", *["double precision[]"] * 5,
)  # fmt: skip
