"""How a collection is searched: which way costs least, and its statement.

All points have a number. Those of a segment, a range of numbers, are found by the segment's index; those that no segment covers are few, and are
compared one by one. What a search may see, a tenant's points that match a filter, decides the rest: if they are few, they alone are compared.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from functools import lru_cache
from math import isqrt
from time import monotonic
from typing import Any, NamedTuple

from . import spi
from .coherence import Cache
from .point_filter import Condition, compile_filter

#: What a step along an HNSW index costs, in comparisons of two vectors: pages are visited in no order. Measured at 384 dimensions.
STEP = 10

#: Candidates that an index of bits gives for each point that is wanted, and at least: re-ranking by the vectors themselves needs some choice.
BITS_OVERSAMPLING = 10
BITS_CANDIDATES = 100

#: An index goes no further than for so many (hnsw.ef_search).
MOST_CANDIDATES = 1_000

#: How long, in seconds, and for how many filters a session remembers about how many points match.
REMEMBERED_FOR = 60.0
REMEMBERED = 1_000

#: Filters that a session keeps compiled, and the longest of them, in characters: a list of ids is seldom the same again.
COMPILED = 200
LONGEST_COMPILED = 2_000

_READ = spi.plan(
    """
    select
        c.*,
        (select e.extnamespace::regnamespace::text from pg_extension e where e.extname = 'vector') as schema,
        (select e.extnamespace::regnamespace::text from pg_extension e where e.extname = 'pg_trgm') as trigram_schema,
        coalesce(
            (
                select jsonb_agg(jsonb_build_array(s.from_number, s.to_number, s.rows, s.settings) order by s.from_number)
                from llm.segments s
                where s.collection = c.name and s.state = 'ready'
            ),
            '[]'
        )::text as segments,
        coalesce((select q.logged_share from llm.search_quality q where q.collection = c.name), 0) as logged_share
    from llm.collections c
    where c.name = $1
    """,
    "text",
)

_READ_ALIAS = spi.plan("select a.collection from llm.collection_aliases a where a.alias = $1", "text")
_NAMES = spi.plan("select c.name from llm.collections c order by c.name")

_OPERATORS = {"cosine": "<=>", "l2": "<->", "inner_product": "<#>", "l1": "<+>"}


class Segment(NamedTuple):
    """A range of numbers with an index."""

    first: int
    end: int
    rows: int
    lists: int


class Collection:
    """What a search has to know of a collection."""

    def __init__(self, row: dict[str, Any], segments: list[Any]) -> None:
        self.name: str = row["name"]
        self.version: int = row["version"]
        self.dimensions: int = row["dimensions"]
        self.distance: str = row["distance"]
        self.element: str = row["element"]
        self.index_kind: str = row["index_kind"]
        self.ef_search: int = row["ef_search"]
        self.full_scan_threshold: int = row["full_scan_threshold"]
        fields: dict[str, str] = json.loads(row["payload_indexes"])
        #: Fields with an index by value; a name that SQL would have to escape is not worth it.
        self.ordered = frozenset(
            name for name, kind in fields.items() if kind in ("integer", "float", "datetime") and re.fullmatch(r"[\w .-]+", name)
        )
        self.language: str = row["language"]
        self.text_indexed: bool = row["text_indexed"]
        self.logged_share: float = row["logged_share"]
        self.schema: str = row["schema"]
        self.trigram_schema: str = row["trigram_schema"]
        self.table = f"llm.points_{self.name}"
        self.type = f"{self.schema}.{'halfvec' if self.element == 'halfvec' else 'vector'}"
        self.operator = f"operator({self.schema}.{_OPERATORS[self.distance]})"
        self.plus, self.minus = (f"operator({self.schema}.{sign})" for sign in "+-")
        self.segments = [Segment(first, end, rows, _lists(settings)) for first, end, rows, settings in segments]
        self.rows = sum(segment.rows for segment in self.segments)

    def score(self, distance: float) -> float:
        """Return how similar two vectors at a distance are: cosine similarity, dot product, or the negative distance."""
        return 1 - distance if self.distance == "cosine" else -distance

    def unindexed(self) -> list[str]:
        """Return the conditions of the ranges of numbers that no segment covers; the last is the tail. They begin at 1."""
        ranges = []
        start = 1
        for segment in self.segments:
            if start < segment.first:
                ranges.append(f"p.number >= {start} and p.number < {segment.first}")
            start = segment.end
        return [*ranges, f"p.number >= {start}"]

    def worth_comparing(self, k: int) -> int:
        """Return how many points are compared one by one rather than found by an index.

        An index meets a matching point every rows / matching steps; so k of them cost k * rows / matching * STEP comparisons, and all of them
        cost `matching`.
        """
        return min(self.full_scan_threshold, max(isqrt(max(k, 1) * self.rows * STEP), 100))


def _lists(settings: str) -> int:
    found = re.search(r"lists = (\d+)", settings)
    return int(found[1]) if found else 0


def _read(name: str) -> tuple[Collection, int] | None:
    rows = _READ.rows(name)
    if not rows:
        raise spi.UndefinedObject(
            f"collection '{name[:100]}' does not exist", hint="llm.list_collections() lists those that there are; llm.create_collection() makes one."
        )
    return Collection(rows[0], json.loads(rows[0]["segments"])), 2_000


def _read_alias(name: str) -> tuple[str, int]:
    return next((row["collection"] for row in _READ_ALIAS.rows(name)), ""), 50


_collections = Cache("collections", _read)
#: Where names lead; an empty string for a name that is no alias.
_aliases = Cache("collection_alias", _read_alias)


def collection(name: str | None) -> Collection:
    """Return a collection as this transaction sees it. Raises `spi.UndefinedObject`."""
    found: Collection = _collections.get(_aliases.get(name or "") or name or "")
    return found


class Matching(NamedTuple):
    """About how many points match: `number`, or at least so many.

    `is_sparse`: an index has to be asked for more until enough match; `is_far`: even that has not found enough of them.
    """

    number: int
    is_all: bool
    is_sparse: bool = False
    is_far: bool = False


_remembered: OrderedDict[tuple[Any, ...], tuple[float, Matching]] = OrderedDict()


def remembered(key: tuple[Any, ...]) -> Matching | None:
    """Return what is known of a filter."""
    found = _remembered.get(key)
    if found is None or monotonic() - found[0] > REMEMBERED_FOR:
        return None
    return found[1]


def remember(key: tuple[Any, ...], matching: Matching) -> None:
    """Keep for a while what was learned of a filter."""
    _remembered[key] = monotonic(), matching
    _remembered.move_to_end(key)
    while len(_remembered) > REMEMBERED:
        _remembered.popitem(last=False)


class Scope(NamedTuple):
    """Which points a search may give, in SQL over p; parameters are $1 the vector, $2 the tenant, $3 a limit, $4 the user, then the filter's."""

    condition: str
    types: tuple[str, ...]
    values: tuple[Any, ...]


def scope(document: str | None, ordered: frozenset[str], *, has_user: bool) -> Scope:
    """Return the scope of a tenant, or of a user of it, and a filter. Raises as `compile_filter()`."""
    return (_kept_scope if document is None or len(document) <= LONGEST_COMPILED else _scope)(document, ordered, has_user)


def _scope(document: str | None, ordered: frozenset[str], has_user: bool) -> Scope:
    condition: Condition = compile_filter(document, first=5, ordered=ordered)
    user = " and p.user_id = $4" if has_user else ""
    return Scope(f"p.tenant_id = $2{user} and {condition.sql}", ("text", "bigint", "uuid", *condition.types), condition.values)


_kept_scope = lru_cache(maxsize=COMPILED)(_scope)


@lru_cache(maxsize=spi.BUILT_PLANS)
def compare_all(c: Collection, condition: str, types: tuple[str, ...], columns: str) -> spi.Plan:
    """Return the plan that compares each point with the vector. Only those that are given are read whole."""
    return spi.built_plan(
        f"""
        select p.id, t.distance{columns}
        from (
            select p.ctid as tid, (p.embedding {c.operator} $1)::double precision as distance
            from {c.table} p
            where {condition} and p.embedding is not null
            order by distance
            limit $3
        ) t
        join {c.table} p on p.ctid = t.tid
        order by t.distance, p.id
        """,
        c.type,
        *types,
    )


@lru_cache(maxsize=spi.BUILT_PLANS)
def count_some(c: Collection, condition: str, types: tuple[str, ...]) -> spi.Plan:
    """Return the plan that counts points with a vector, and stops at a limit."""
    return spi.built_plan(
        f"select count(*) as count from (select from {c.table} p where {condition} and p.embedding is not null limit $3) p", "text", *types
    )


@lru_cache(maxsize=spi.BUILT_PLANS)
def use_indexes(c: Collection, condition: str, types: tuple[str, ...], columns: str, bits: int) -> spi.Plan:
    """Return the plan that merges what each segment's index finds with what is not indexed; `bits`: candidates by bits."""
    return spi.built_plan(_by_indexes(c, condition, columns, bits), c.type, *types)


def _by_indexes(c: Collection, condition: str, columns: str, bits: int) -> str:
    distance = f"(p.embedding {c.operator} $1)::double precision"
    by_index = [_by_index(c, segment, condition, bits, distance, columns) for segment in c.segments]
    by_comparing = [
        f"(select p.id, {distance} as distance{columns} from {c.table} p where {condition} and {numbers} and p.embedding is not null"
        " order by distance limit $3)"
        for numbers in c.unindexed()
    ]
    return f"{' union all '.join(by_index + by_comparing)} order by distance, id limit $3"


@lru_cache(maxsize=spi.BUILT_PLANS)
def written(c: Collection) -> tuple[str, str] | None:
    """Return the search that most ask for, of a tenant's points without filter or user: its name and statement in `llm._nearest()`.

    The function's parameters have the same numbers as those of a plan. Equal names stand for equal statements.
    """
    if not c.segments or c.element == "bit":
        return None
    statement = _by_indexes(c, "p.tenant_id = $2", ", p.content, p.payload, p.user_id", 0)
    if c.element == "halfvec":
        statement = statement.replace("$1", f"$1::{c.type}")
    score = "1 - t.distance" if c.distance == "cosine" else "- t.distance"
    statement = f"array(select row(t.id, {score}, t.distance, t.content, t.payload, t.user_id)::llm.search_hit from ({statement}) t)"
    return hashlib.sha256(statement.encode()).hexdigest(), statement


def all_written() -> str:
    """Return the branches of `llm._nearest()`."""
    found = (_read(row["name"]) for row in _NAMES.rows())
    searches = (search for each in found if each and (search := written(each[0])))
    return "".join(f"        when '{name}' then\n            return {statement};\n" for name, statement in searches)


def _by_index(c: Collection, segment: Segment, condition: str, bits: int, distance: str, columns: str) -> str:
    where = f"{condition} and p.number >= {segment.first} and p.number < {segment.end}"
    if c.element != "bit":
        return f"(select p.id, {distance} as distance{columns} from {c.table} p where {where} order by p.embedding {c.operator} $1 limit $3)"
    nearness = (
        f"{c.schema}.binary_quantize(p.embedding)::bit({c.dimensions}) operator({c.schema}.<~>) {c.schema}.binary_quantize($1)::bit({c.dimensions})"
    )
    return (
        f"(select p.id, {distance} as distance{columns} from (select p.id, p.embedding{columns} from {c.table} p where {where} order by {nearness}"
        f" limit {bits}) p order by distance limit $3)"
    )


def bit_candidates(k: int) -> int:
    """Return how many candidates by bits are compared by their vectors; in steps, because each has a plan of its own."""
    wanted = max(k * BITS_OVERSAMPLING, BITS_CANDIDATES)
    return 1 << (wanted - 1).bit_length() if wanted > BITS_CANDIDATES else wanted
