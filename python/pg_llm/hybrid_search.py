"""Search by words and by vector at once: what either finds, ranked by both."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from math import log, sqrt
from statistics import fmean
from time import monotonic
from typing import Any, NamedTuple

from . import search_plan, spi
from .search_plan import Collection
from .vector_search import Search

#: Hits of each leg that take part: fewer lose some that two legs find late, more cost time.
CANDIDATES = 50
MOST_CANDIDATES = 1_000

#: Points whose words are compared with the query's. The rarest words are looked up, as long as they bring no more than so many; common ones count
#: where a rare one was found.
COMPARED = 1_200

#: A query has no more words than this: those that come later are not looked at.
LONGEST_QUERY = 2_000
MOST_WORDS = 16

#: How long, in seconds, and for how many words a session remembers how frequent they are.
REMEMBERED_FOR = 600.0
REMEMBERED = 10_000

#: Characters of a text, and of the query, whose spelling is compared: what they are about is said at the beginning.
SPELLED = 200

FUSIONS = ("rrf", "dbsf")
LEGS = ("vector", "words", "spelling")

_PARSE = spi.plan(
    """
    select
        tsvector_to_array(to_tsvector($1::regconfig, $2)) as words,
        llm._search_mark('t'::text, $3) as tenant,
        llm._search_mark('u'::text, $4) as user
    """,
    "text", "text", "text", "text",
)  # fmt: skip

_ESTIMATED = spi.plan("select llm._estimated_rows($1, $2) as rows", "text", "text[]")

_remembered: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

type Leg = list[tuple[str, float]]


class Hybrid(NamedTuple):
    """A point that a leg has found: its score, and of each leg that found it too its rank and score."""

    id: str
    score: float
    ranks: list[int | None]
    scores: list[float | None]


def search(
    name: str | None,
    query: str | None,
    vector: str | None,
    k: int | None,
    document: str | None,
    fusion: str | None,
    rrf_k: float | None,
    weights: list[Any] | None,
    candidates: int | None,
    ef: int | None,
    claimed: str | None,
    user: str | None,
) -> list[tuple[Any, ...]]:
    """Return the best points by words and vector: a row of llm.hybrid_search() each."""
    if query is None and vector is None:
        raise spi.InvalidParameter("there is neither text nor a vector to search for", hint="Give p_query, p_vector, or both.")
    if fusion not in FUSIONS:
        raise spi.InvalidParameter(f"fusion '{(fusion or 'null')[:100]}' is unknown", hint="Fusions are rrf and dbsf.")
    if rrf_k is None or not 0 <= rrf_k < float("inf"):
        raise spi.InvalidParameter(
            f"p_rrf_k is {'null' if rrf_k is None else rrf_k}", hint="It is 0 or more: the higher, the less the first ranks count."
        )
    weights = [1.0] * len(LEGS) if weights is None else weights
    if len(weights) != len(LEGS) or not all(isinstance(weight, float) and 0 <= weight < float("inf") for weight in weights):
        raise spi.InvalidParameter(
            "p_weights are not three numbers from 0", hint="They weigh the vector, the words, and their spelling, in this order."
        )
    if candidates is None or not 1 <= candidates <= MOST_CANDIDATES:
        raise spi.InvalidParameter(
            f"p_candidates is {'null' if candidates is None else candidates}", hint=f"Each leg brings 1 to {MOST_CANDIDATES:,} points."
        )
    if k is None or not 0 <= k <= MOST_CANDIDATES:
        raise spi.InvalidParameter(f"p_k is {'null' if k is None else k}", hint=f"Ask for 0 to {MOST_CANDIDATES:,} points.")
    wanted = max(candidates, k)
    of = Search(name, document, claimed, user, ef, payload=False)
    nearest: Leg = [(hit[0], hit[1]) for hit in of.hits(vector, wanted)] if vector is not None and weights[0] else []
    text = (query or "")[:LONGEST_QUERY]
    wordy = _by_words(of, text, wanted) if text and weights[1] else []
    alike = _by_spelling(of, text, [*dict([*nearest, *wordy])], wanted) if text and weights[2] else []
    fused = fuse([nearest, wordy, alike], weights, fusion, rrf_k)[:k]
    return _with_points(of, fused)


def fuse(legs: list[Leg], weights: list[float], fusion: str, rrf_k: float) -> list[Hybrid]:
    """Return what the legs have found, best first.

    rrf: the sum of weight / (rrf_k + rank) (Cormack, Clarke and Büttcher 2009). dbsf: the sum of weight * score, where each leg's scores are mapped
    so that its mean less and plus three standard deviations become 0 and 1.
    """
    ranks = [{point: rank for rank, (point, _) in enumerate(leg, 1)} for leg in legs]
    scores = [dict(leg) for leg in legs]
    if fusion == "rrf":
        parts = [{point: weight / (rrf_k + rank) for point, rank in each.items()} for each, weight in zip(ranks, weights, strict=True)]
    else:
        parts = [{point: weight * score for point, score in _normal(each).items()} for each, weight in zip(scores, weights, strict=True)]
    total = {point: sum(part.get(point, 0.0) for part in parts) for point in dict.fromkeys(point for leg in legs for point, _ in leg)}
    best = sorted(total.items(), key=lambda found: (-found[1], found[0]))
    return [Hybrid(point, score, [each.get(point) for each in ranks], [each.get(point) for each in scores]) for point, score in best]


def _normal(scores: dict[str, float]) -> dict[str, float]:
    if not scores:
        return {}
    mean = fmean(scores.values())
    deviation = sqrt(fmean((score - mean) ** 2 for score in scores.values()))
    if not deviation:
        return dict.fromkeys(scores, 0.5)
    return {point: min(max((score - mean) / (6 * deviation) + 0.5, 0.0), 1.0) for point, score in scores.items()}


def _by_words(of: Search, text: str, wanted: int) -> Leg:
    """Return the points with the query's words: each counts by how rare it is and how often it occurs."""
    c = of.collection
    if not c.text_indexed:
        return []
    parsed = _PARSE.row(f"pg_catalog.{c.language}", text, of.tenant, of.user)
    total, frequencies = _frequencies(c, parsed["words"][:MOST_WORDS])
    if not frequencies:
        return []
    chosen: list[str] = []
    compared = 0.0
    for word, frequency in sorted(frequencies.items(), key=lambda found: found[1]):
        if chosen and compared + frequency > COMPARED:
            break
        chosen.append(word)
        compared += frequency
    marks = " & ".join(_quoted(mark) for mark in (parsed["tenant"], parsed["user"]) if mark)
    any_word = " | ".join(map(_quoted, chosen))
    rarity = [log(1 + total / (frequency + 1)) for frequency in frequencies.values()]
    # A stem may end otherwise than the word: without its last letter it is in the text.
    stems = "|".join(re.escape(word[: max(len(word) - 1, 2)]) for word in chosen)
    rows = _words_plan(of).rows(
        None, *of.arguments(wanted), [_quoted(word) for word in frequencies], rarity, f"{marks} & ({any_word})", any_word, stems
    )
    return [(row["id"], row["score"]) for row in rows]


def _words_plan(of: Search) -> spi.Plan:
    c = of.collection
    first = 5 + len(of.scope.values)
    words, rarity, marked, any_word, stems = (f"${number}" for number in range(first, first + 5))
    score = f"(select sum(q.rarity * ts_rank(w.words, q.word)) from unnest({words}, {rarity}) q (word, rarity))::double precision"
    parsed = f"to_tsvector('pg_catalog.{c.language}'::regconfig, left(p.content, 100000))"
    return spi.built_plan(
        f"""
        select s.id, s.score
        from (
            select p.id, {score} as score
            from {c.table} p
            cross join lateral (select p.words) w
            where {of.scope.condition} and p.words @@ {marked} and p.words is not null
            union all
            select p.id, {score} as score
            from {c.table} p
            cross join lateral (select {parsed} as words offset 0) w
            where {of.scope.condition} and p.words is null and p.content is not null and p.content ~* {stems} and w.words @@ {any_word}
        ) s
        order by s.score desc, s.id
        limit $3
        """,
        "text", *of.scope.types, "tsquery[]", "double precision[]", "tsquery", "tsquery", "text",
    )  # fmt: skip


def _frequencies(c: Collection, words: list[str]) -> tuple[float, dict[str, float]]:
    """Return about how many points there are, and how many have each word, as the planner estimates it: it knows the most frequent words."""
    now = monotonic()
    unknown = [word for word in ("", *words) if (c.name, word) not in _remembered or now - _remembered[c.name, word][0] > REMEMBERED_FOR]
    if unknown:
        looked_up = [word for word in unknown if word]
        for word, estimate in zip(("", *looked_up), _ESTIMATED.row(c.name, looked_up)["rows"], strict=True):
            _remembered[c.name, word] = now, estimate
            _remembered.move_to_end((c.name, word))
        while len(_remembered) > REMEMBERED:
            _remembered.popitem(last=False)
    return _remembered[c.name, ""][1], {word: _remembered[c.name, word][1] for word in words}


def estimated_rows(name: str, words: list[str]) -> list[float]:
    """Return about how many points there are, and how many have each word."""
    table = search_plan.collection(name).table
    each = " union all ".join(f"(select from {table} p where p.words @@ ${number})" for number in range(1, MOST_WORDS + 1))
    plan = spi.built_plan(f"explain (format json) (select from {table} p) union all {each}", *["tsquery"] * MOST_WORDS)
    # What is null would be left out of the plan.
    (explained,) = plan.row(*map(_quoted, words), *[_quoted("-")] * (MOST_WORDS - len(words))).values()
    return [part["Plan Rows"] for part in json.loads(explained)[0]["Plan"]["Plans"]][: len(words) + 1]


def _by_spelling(of: Search, text: str, found: list[str], wanted: int) -> Leg:
    """Return what the other legs have found, by how much the beginning of the text is spelled like the query: that forgives typing errors."""
    c = of.collection
    first = 5 + len(of.scope.values)
    plan = spi.built_plan(
        f"""
        select s.id, s.score
        from (
            select p.id, {c.trigram_schema}.word_similarity($1, left(p.content, {SPELLED}))::double precision as score
            from {c.table} p
            where {of.scope.condition} and p.id = any (${first})
        ) s
        where s.score > 0
        order by s.score desc, s.id
        limit $3
        """,
        "text", *of.scope.types, "text[]",
    )  # fmt: skip
    return [(row["id"], row["score"]) for row in plan.rows(text[:SPELLED], *of.arguments(wanted), found)]


def _with_points(of: Search, hits: list[Hybrid]) -> list[tuple[Any, ...]]:
    plan = spi.built_plan(
        f"select p.id, p.content, p.payload, p.user_id from {of.collection.table} p where p.tenant_id = $1 and p.id = any ($2)", "text", "text[]"
    )
    points = {row["id"]: row for row in plan.rows(of.tenant, [hit.id for hit in hits])}
    return [
        (
            hit.id, hit.score, *(part for leg in zip(hit.ranks, hit.scores, strict=True) for part in leg),
            points[hit.id]["content"], points[hit.id]["payload"], points[hit.id]["user_id"],
        )
        for hit in hits
    ]  # fmt: skip


def _quoted(word: str) -> str:
    """Return a word as a tsquery."""
    escaped = word.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"
