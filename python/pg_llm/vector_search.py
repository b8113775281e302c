"""Search by vector: exactly as many points as were asked for whenever so many match, and a report of how they were found."""

from __future__ import annotations

import json
import re
from math import hypot
from typing import Any, NamedTuple

from . import query_log, search_plan, spi, tenant
from .payload_key import values_path
from .search_plan import Collection, Matching

#: As many as somebody reads, and more than any index finds.
MOST_HITS = 10_000

#: More groups, or more points in one, are no longer an overview.
MOST_GROUPS = 100

#: What hnsw.ef_search, ivfflat.probes and hnsw.max_scan_tuples are when a search begins: llm._vector_search() sets them so.
EF, PROBES, SCANNED = 40, 1, 1_000

#: So many times the candidates are looked at when only some of them count: of those nearest, the rest is left out.
AMONG_SOME = 1.5

#: An index may visit so many times the points that it would have to if those that match lay anywhere. If that is not enough they are far from the
#: vector, where an index is slow and misses some: then all that match are compared.
SCANNED_MORE = 4
MOST_SCANNED = 1_000_000_000

#: What the ways are called that compare all points that match.
COMPARING = ("exact", "filtered_exact")

#: A value from 0.001 on, without an exponent: with it, a vector is long enough to have a direction.
_ORDINARY = re.compile(r"[\[,]-?(?!0[,\]]|0\.000)[\d.]+[,\]]")

_SET = spi.plan("select set_config($1, $2, true)", "text", "text")

type Hit = tuple[str, float, float, str | None, str | None, str | None]


class Report(NamedTuple):
    """What the last search came to: a row of llm.search_report()."""

    collection: str
    requested: int
    returned: int
    matching: int | None
    matching_is_exact: bool | None
    plan: str
    ef: int | None
    segments: int
    unindexed: int | None
    reason: str | None


class _Last:
    report: Report | None = None
    search: Search | None = None


def current_tenant(claimed: str | None) -> str:
    """Return the tenant of this call. Raises `spi.ObjectNotInPrerequisiteState` when none is set."""
    found = tenant.verified(claimed)
    if not found:
        raise spi.ObjectNotInPrerequisiteState(
            "points are a tenant's, and no tenant is set",
            hint="Run: select llm.set_tenant('…'); as the first statement of the transaction, or llm.bind_role() for the role.",
        )
    return found


class Search:
    """A search of a collection, by whoever calls."""

    def __init__(
        self,
        name: str | None,
        document: str | None,
        claimed: str | None,
        user: str | None,
        ef: int | None = None,
        *,
        exact: bool = False,
        payload: bool = True,
    ) -> None:
        self.collection = search_plan.collection(name)
        self.tenant = current_tenant(claimed)
        self.user = user
        self.document = document
        self.scope = search_plan.scope(document, self.collection.ordered, has_user=user is not None)
        self.ef = self.collection.ef_search if ef is None else ef
        if not 1 <= self.ef <= search_plan.MOST_CANDIDATES:
            raise spi.InvalidParameter(f"p_ef is {ef}", hint=f"An index looks at 1 to {search_plan.MOST_CANDIDATES:,} candidates.")
        self._exact = exact or not self.collection.segments
        self._columns = ", p.content, p.payload, p.user_id" if payload else ", null::text as content, null::jsonb as payload, p.user_id"
        self._key = (self.collection.name, self.collection.version, self.tenant, user, document)

    def hits(self, vector: str | None, k: int | None, threshold: float | None = None) -> list[Hit]:
        """Return the k nearest points, nearest first, without those whose score is below a threshold."""
        c = self.collection
        wanted = _checked_count(k)
        vector = _checked_vector(c, vector)
        if wanted == 0:
            self.report(0, 0, None, "none", None, None)
            return []
        rows, plan, ef, matching = self._rows(vector, wanted)
        hits = [(row["id"], c.score(row["distance"]), row["distance"], row["content"], row["payload"], row["user_id"]) for row in rows]
        reason = None if len(hits) == wanted else "no more points match" if hits else "no point matches"
        if threshold is not None:
            near = [hit for hit in hits if hit[1] >= threshold]
            reason = "the others score below p_score_threshold" if len(near) < len(hits) else reason
            hits = near
        self.report(wanted, len(hits), matching, plan, ef, reason)
        if c.logged_share:
            query_log.note(c, vector, self.tenant, self.user)
        return hits

    def _rows(self, vector: str, k: int) -> tuple[list[dict[str, Any]], str, int | None, Matching | None]:
        c = self.collection
        known: Matching | None = None
        most = c.worth_comparing(k)
        comparing = COMPARING[self.document is not None]
        if not self._exact:
            known = self.known(k)
        if self._exact or known is None or known.is_far or (known.is_all and known.number <= most):
            return self._compare(vector, k), comparing, None, known
        ef = self.settings(k, known)
        bits = search_plan.bit_candidates(k) if c.element == "bit" else 0
        plan = search_plan.use_indexes(c, self.scope.condition, self.scope.types, self._columns, bits)
        rows = plan.rows(vector, *self.arguments(k))
        if len(rows) < k and not known.is_sparse:
            known = self._learn(known._replace(is_sparse=True))
            self.settings(k, known)
            rows = plan.rows(vector, *self.arguments(k))
        if len(rows) < k:
            return self._compare(vector, k), comparing, None, self._learn(known._replace(is_far=True))
        kind = f"{c.index_kind}_iterative" if known.is_sparse else c.index_kind
        return rows, "bit_rerank" if c.element == "bit" else kind, ef, known

    def _compare(self, vector: str, k: int) -> list[dict[str, Any]]:
        return search_plan.compare_all(self.collection, self.scope.condition, self.scope.types, self._columns).rows(vector, *self.arguments(k))

    def known(self, k: int) -> Matching:
        """Return about how many points match: whether they are few enough to compare them all."""
        known = search_plan.remembered(self._key)
        most = self.collection.worth_comparing(k)
        return self._count(most + 1) if known is None or (known.number < most and not known.is_all) else known

    def _count(self, most: int) -> Matching:
        """Count the points that match, up to so many, and remember it."""
        count: int = search_plan.count_some(self.collection, self.scope.condition, self.scope.types).row(None, *self.arguments(most))["count"]
        # A tenant may have most of the points; what matches a filter, or is a user's, is seldom what an index finds first.
        return self._learn(Matching(count, count < most, is_sparse=self.document is not None or self.user is not None))

    def _learn(self, matching: Matching) -> Matching:
        search_plan.remember(self._key, matching)
        return matching

    def arguments(self, k: int | None) -> tuple[Any, ...]:
        """Return the values of the scope's parameters."""
        return (self.tenant, k, self.user, *self.scope.values)

    def settings(self, k: int, known: Matching) -> int:
        """Tell pgvector how far to look."""
        c = self.collection
        if known.is_sparse:
            _SET.rows(f"{c.index_kind}.iterative_scan", "relaxed_order")
        if c.index_kind == "ivfflat":
            # As pgvector's documentation advises: the root of the number of lists.
            probes: int = max(round(max(segment.lists for segment in c.segments) ** 0.5 * self.ef / EF), 1)
            if probes != PROBES:
                _SET.rows("ivfflat.probes", str(probes))
            return probes
        wanted = round(self.ef * AMONG_SOME) if known.is_sparse else self.ef
        ef = min(max(wanted, k, search_plan.bit_candidates(k) if c.element == "bit" else 0), search_plan.MOST_CANDIDATES)
        if ef != EF:
            _SET.rows("hnsw.ef_search", str(ef))
        scanned = SCANNED_MORE * k * c.rows // max(known.number, 1)
        if known.is_sparse and scanned > SCANNED:
            _SET.rows("hnsw.max_scan_tuples", str(min(scanned, MOST_SCANNED)))
        return ef

    def ids(self, after: str | None, most: int | None) -> list[str]:
        """Return the ids of points in their order, also of those without a vector, after one of them and up to so many."""
        plan = spi.built_plan(
            f"select p.id from {self.collection.table} p where {self.scope.condition} and ($1 is null or p.id > $1) order by p.id limit $3",
            "text",
            *self.scope.types,
        )
        return [row["id"] for row in plan.rows(after, *self.arguments(most))]

    def count(self, also: str = "true", *, with_vector: bool = False) -> int:
        """Return how many points there are; `also`: of which this holds, too."""
        has_vector = " and p.embedding is not null" if with_vector else ""
        plan = spi.built_plan(
            f"select count(*) as count from {self.collection.table} p where {self.scope.condition} and {also}{has_vector}", "text", *self.scope.types
        )
        count: int = plan.row(None, *self.arguments(0))["count"]
        return count

    def report(self, requested: int, returned: int, matching: Matching | None, plan: str, ef: int | None, reason: str | None) -> None:
        """Remember what a search came to, for `llm.search_report()`."""
        c = self.collection
        count, is_all = (None, None) if matching is None or plan in COMPARING else (matching.number, matching.is_all)
        _Last.report = Report(c.name, requested, returned, count, is_all, plan, ef, len(c.segments) if ef else 0, None, reason)
        _Last.search = self


def _checked_count(k: int | None) -> int:
    if k is None or not 0 <= k <= MOST_HITS:
        raise spi.InvalidParameter(
            f"p_k is {'null' if k is None else k}", hint=f"Ask for 0 to {MOST_HITS:,} points; llm.scroll_points() gives them all."
        )
    return k


def _checked_vector(c: Collection, vector: str | None) -> str:
    if not isinstance(vector, str):
        raise spi.InvalidParameter("the query has no vector", hint="Embed what is looked for by the collection's model.")
    dimensions = vector.count(",") + 1
    if dimensions != c.dimensions:
        raise spi.InvalidParameter(
            f"the query has {dimensions} dimensions, those of collection {c.name} have {c.dimensions}",
            hint="Embed with the model that the collection was made for.",
        )
    if c.distance == "cosine" and ("e+" in vector or not _ORDINARY.search(vector)):
        length, least = hypot(*json.loads(vector)), 1e-3 if c.element == "halfvec" else 1e-15
        if not length:
            raise spi.InvalidParameter("the query's vector is zero", hint="By cosine distance a vector without a direction is near to nothing.")
        if not least <= length <= 1e15:
            raise spi.InvalidParameter(
                f"the query's vector is {length:g} long", hint=f"By cosine distance it is from {least:g} to 1e+15 long. Normalize it."
            )
    return vector


# What SQL calls


def search(
    name: str | None,
    vector: str | None,
    k: int | None,
    document: str | None,
    threshold: float | None,
    ef: int | None,
    exact: bool | None,
    payload: bool | None,
    claimed: str | None,
    user: str | None,
) -> list[Hit]:
    """Return the points nearest to a vector."""
    return Search(name, document, claimed, user, ef, exact=bool(exact), payload=payload is not False).hits(vector, k, threshold)


def written(name: str | None, dimensions: int | None, k: int | None, ef: int | None, claimed: str | None) -> str | None:
    """Return the branch of `llm._nearest()` that does a search without filter and user, once pgvector is told how far to look.

    None when `search()` is to do it: because too few were found lately, or something is wrong.
    """
    c = search_plan.collection(name)
    found = search_plan.written(c)
    if found is None or c.logged_share or dimensions != c.dimensions or k is None or not 1 <= k <= MOST_HITS:
        return None
    of = Search(name, None, claimed, None, ef)
    known = of.known(k)
    if of.tenant != claimed or known.is_sparse or known.is_far or known.is_all:
        return None
    # Should fewer be found, search() does it again, and reports that.
    of.report(k, k, known, c.index_kind, of.settings(k, known), None)
    return found[0]


def search_batch(
    name: str | None,
    vectors: list[str | None] | None,
    k: int | None,
    document: str | None,
    threshold: float | None,
    ef: int | None,
    exact: bool | None,
    payload: bool | None,
    claimed: str | None,
    user: str | None,
) -> list[tuple[int, *Hit]]:
    """Return the points nearest to each of several vectors, with its number, from 1 on."""
    search = Search(name, document, claimed, user, ef, exact=bool(exact), payload=payload is not False)
    return [(number, *hit) for number, vector in enumerate(vectors or [], 1) for hit in search.hits(vector, k, threshold)]


def recommend(
    name: str | None,
    positive: list[str] | None,
    negative: list[str] | None,
    k: int | None,
    document: str | None,
    threshold: float | None,
    ef: int | None,
    claimed: str | None,
    user: str | None,
) -> list[Hit]:
    """Return the points nearest to what examples have in common, without the examples."""
    likes, dislikes = positive or [], negative or []
    if not likes:
        raise spi.InvalidParameter("there is no positive example", hint="Give ids of points in p_positive: the others are looked for around them.")
    if not all(isinstance(each, str) for each in (*likes, *dislikes)):
        raise spi.InvalidParameter("an example is null, or several", hint="p_positive and p_negative are arrays of ids, of one dimension.")
    examples = Search(name, None, claimed, user)
    c = examples.collection
    mean = f"(select {c.schema}.avg(p.embedding::{c.schema}.vector) from {c.table} p where {examples.scope.condition} and p.id = any (${{}}))"
    found = spi.built_plan(
        f"select {mean.format(5)}::text as liked, ({mean.format(5)} {c.plus} {mean.format(5)} {c.minus} {mean.format(6)})::text as wanted,"
        f" array(select i.id from unnest($5 || $6) i (id) where not exists (select from {c.table} p where {examples.scope.condition}"
        " and p.id = i.id and p.embedding is not null)) as missing",
        "text", *examples.scope.types, "text[]", "text[]",
    ).row(None, *examples.arguments(0), likes, dislikes)  # fmt: skip
    if found["missing"]:
        raise spi.NoDataFound(
            f"point '{found['missing'][0][:100]}' does not exist, or has no vector", hint="Examples are points of the collection, of your own tenant."
        )
    others = {"must": [json.loads(document)] if document else [], "must_not": [{"has_id": [*likes, *dislikes]}]}
    return Search(name, json.dumps(others), claimed, user, ef).hits(found["wanted"] or found["liked"], k, threshold)


def search_groups(
    name: str | None,
    vector: str | None,
    key: str | None,
    groups: int | None,
    size: int | None,
    document: str | None,
    claimed: str | None,
    user: str | None,
) -> list[tuple[str, int, *Hit]]:
    """Return the nearest points of the groups with the nearest points: the group's value, the rank in it, the point."""
    if groups is None or size is None or not (1 <= groups <= MOST_GROUPS and 1 <= size <= MOST_GROUPS):
        numbers = ["null" if number is None else number for number in (groups, size)]
        raise spi.InvalidParameter(
            "there cannot be {} groups of {} points".format(*numbers), hint=f"Ask for 1 to {MOST_GROUPS} groups of 1 to {MOST_GROUPS} points."
        )
    ranked: list[tuple[str, int, *Hit]] = []
    nearest = _nearest_groups(Search(name, document, claimed, user), vector, key, groups, size)
    for value, found in nearest.items():
        members = found
        if len(found) < size:
            in_group = {"must": [*([json.loads(document)] if document else []), {"key": key, "match": {"value": json.loads(value)}}]}
            members = Search(name, json.dumps(in_group), claimed, user).hits(vector, size)
        ranked.extend((value, rank, *hit) for rank, hit in enumerate(members[:size], 1))
    return ranked


def _nearest_groups(search: Search, vector: str | None, key: str | None, groups: int, size: int) -> dict[str, list[Hit]]:
    path = values_path(key)
    k = groups * size
    while True:
        k = min(k * 2, MOST_HITS)
        hits = search.hits(vector, k)
        found: dict[str, list[Hit]] = {}
        values = _VALUES.rows([hit[4] for hit in hits], path)
        for row in values:
            found.setdefault(row["value"], []).append(hits[row["number"] - 1])
        if len(found) >= groups or len(hits) < k or k == MOST_HITS:
            return dict(list(found.items())[:groups])


def count_points(name: str | None, document: str | None, claimed: str | None, user: str | None) -> int:
    """Return how many points match."""
    return Search(name, document, claimed, user).count()


def matching_points(name: str | None, document: str | None, after: str | None, most: int | None, claimed: str | None, user: str | None) -> list[str]:
    """Return the ids of points that match, in their order."""
    return Search(name, document, claimed, user).ids(after, most)


def report(claimed: str | None, user: str | None) -> list[tuple[Any, ...]]:
    """Return what the last search of this session came to, if it was the same tenant's and user's."""
    last, searched = _Last.report, _Last.search
    if last is None or searched is None or (searched.tenant, searched.user) != (current_tenant(claimed), user):
        return []
    if last.plan in COMPARING:
        matching = Search(last.collection, searched.document, claimed, user).count(with_vector=True)
        last = last._replace(matching=matching, matching_is_exact=True)
    everything = Search(last.collection, None, claimed, user)
    unindexed = " or ".join(f"({numbers})" for numbers in everything.collection.unindexed())
    return [tuple(last._replace(unindexed=everything.count(f"({unindexed})", with_vector=True)))]


_VALUES = spi.plan(
    """
    select distinct on (h.number, v.value) h.number::integer, v.value::text
    from unnest($1) with ordinality h (payload, number)
    cross join jsonb_path_query(jsonb_path_query_array(h.payload, $2, '{}', true), 'lax $[*][*]') v (value)
    where jsonb_typeof(v.value) in ('string', 'number', 'boolean')
    order by h.number, v.value
    """,
    "jsonb[]", "jsonpath",
)  # fmt: skip
