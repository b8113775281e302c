"""The semantic cache on descriptions of packages: how often it answers, how often wrongly, how fast. See README.md for what is compared with what."""

from __future__ import annotations

from itertools import count

import psycopg

from bench.bench_point import Packed, register
from bench.packages import Input, load
from bench.support import AtMost, database, fact, line, medians, once, per_call, title
from tools.cluster import Cluster

#: What a user would write: the entries of one model in a table of their own, without tenants.
BARE = """
    create table public.answers (id bigint primary key, prompt text, answer jsonb, embedding vector(384) storage main);
    insert into public.answers select id, prompt, answer, embedding from llm.semantic_entries;
    grant select on public.answers to bound;
    analyze public.answers;
    """

NEAREST = "select id, answer, 1 - (embedding <=> %b) as similarity from public.answers order by embedding <=> %b limit 1"


def run(cluster: Cluster, *, quick: bool) -> None:
    """Run all parts."""
    given = load(quick=quick, questions=200 if quick else 1_000)
    with database(cluster, "semantic_cache") as superuser:
        superuser.execute("grant llm_app to bound")
        superuser.execute("select llm.bind_role('bound', 'acme')")
        with cluster.connect("semantic_cache", "bound") as connection:
            for each in (connection, superuser):
                register(each)
            connection.prepare_threshold = 0
            filled = 0
            for entries in (100, 1_000, 2_000, 10_000):
                if entries <= len(given.rows):
                    fill(connection, given, filled, entries)
                    filled = entries
                    compare(superuser, connection, given, entries, quick=quick)
            answers(superuser, connection, given, filled)


def fill(connection: psycopg.Connection, given: Input, first: int, last: int) -> None:
    """Keep an answer for descriptions of packages: the package."""

    def keep() -> None:
        for number in range(first, last):
            vector = bytes(given.rows[number].vector)
            connection.execute(
                "select llm.semantic_cache_set(%s, %b, to_jsonb(%s::bigint), 'm')",
                [f"{number}: {given.rows[number].description}", Packed(vector), given.rows[number].id],
            )

    fact(f"keeping {last - first:,} answers", f"{once(keep, last - first)():,.0f} us", "an answer, a transaction each")


def compare(superuser: psycopg.Connection, connection: psycopg.Connection, given: Input, entries: int, *, quick: bool) -> None:
    """Compare look-ups with those of a table of one's own."""
    superuser.execute("drop table if exists public.answers")
    superuser.execute(BARE)
    superuser.execute("analyze llm.semantic_entries")
    numbers = count()

    def ours() -> object:
        question = given.questions[next(numbers) % len(given.questions)]
        return connection.execute("select * from llm.semantic_cache_get('?', %b, 0.5, 'm')", [question]).fetchone()

    def same() -> object:
        number = next(numbers) % entries
        prompt = f"{number}: {given.rows[number].description}"
        return connection.execute("select * from llm.semantic_cache_get(%s, null, 0.5, 'm')", [prompt]).fetchone()

    def bare() -> object:
        question = given.questions[next(numbers) % len(given.questions)]
        return connection.execute(NEAREST, [question, question]).fetchone()

    calls = 50 if quick else 200
    time = medians(3 if quick else 7, ours=per_call(ours, calls), same=per_call(same, calls), bare=per_call(bare, calls))
    title(f"a look-up among {entries:,} answers, from Python, p50; peer: a table of one's own without tenants, exact")
    line("a similar prompt", time["ours"], "the nearest", time["bare"], AtMost(1.5) if entries >= 1000 else None)
    line("the very same prompt", time["same"], "the nearest", time["bare"])


def answers(superuser: psycopg.Connection, connection: psycopg.Connection, given: Input, entries: int) -> None:
    """Ask for each package by its synopsis, in shadow mode, and judge: right is the same package."""
    for question, text, own in zip(given.questions, given.texts, given.own, strict=True):
        row = connection.execute(
            "select lookup_id, shadow_answer from llm.semantic_cache_get(%s, %b, 1, 'm', p_shadow => true)", [text, question]
        ).fetchone()
        assert row
        connection.execute("select llm.semantic_cache_judge(%s, %s)", [row[0], row[1] == own])
    kept = {row.id for row in given.rows[:entries]}
    known = sum(own in kept for own in given.own)
    fact("questions, of which the answer is there", f"{len(given.own):,}", f"{known:,}")
    print(f"  {'threshold':>12}{'answered':>12}{'wrong':>12}{'error rate':>12}")
    for threshold, hits, wrong, error_rate in connection.execute(
        "select threshold, hits, wrong, error_rate from llm.semantic_cache_report(p_thresholds => '{0.5,0.6,0.7,0.75,0.8,0.85,0.9,0.95}')"
    ).fetchall():
        print(f"  {threshold:12.2f}{hits:12,}{wrong:12,}{'-' if error_rate is None else f'{error_rate:.1%}':>12}")
