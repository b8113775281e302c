"""Vectors: descriptions of packages, found by what they mean, by their words, and by both; and how well."""

from __future__ import annotations

import json
from itertools import batched
from typing import Any

import psycopg

from demo.config import ask
from demo.packages import DIMENSIONS, Query, is_whole, packages, queries
from demo.stage import Stage

#: What is looked for, as somebody says it who does not know the name; each comes with its embedding.
QUESTIONS = (
    "tool to compute the statistical distribution of dice rolls",
    "heuristic minimizer of interesting files",
    "Smaller embedded C library for ESP8266 development",
    "Rename network interfaces based on various static criteria",
)

BATCH = 500
SHOWN = 4

#: Rows of the side-by-side table: what each way finds, and where.
FOUND = """
    select h.payload ->> 'package', h.id
    from llm.hybrid_search('packages', %s::text, %s::vector, %s) h
    """

GAMES = {"must": [{"key": "section", "match": {"value": "games"}}, {"key": "installed_size", "range": {"lt": 1000}}]}
ONE = {"must": [{"key": "package", "match": {"any": ["dicelab", "nosuchpackage"]}}]}


def play(stage: Stage) -> None:
    """Play the scene."""
    asked = {query.text: query for query in queries()}
    with stage.connect() as superuser, stage.connect("app") as app:
        load(stage, superuser, app)
        compare(stage, app, [asked[text] for text in QUESTIONS])
        narrow(stage, app, asked[QUESTIONS[0]])
        examine(stage, superuser, app, list(asked.values()))


def load(stage: Stage, superuser: psycopg.Connection, app: psycopg.Connection) -> None:
    """Store the packages as points, and build the index."""
    stage.scene("Vectors: what is there for this?")
    superuser.execute("set maintenance_work_mem = '512MB'")
    stage.sql(f"select llm.create_collection('packages', {DIMENSIONS}, p_payload_indexes => '{{\"section\": \"keyword\", …}}');")
    superuser.execute(
        "select llm.create_collection('packages', %s, p_payload_indexes => %s, p_indexing_threshold => 1000)",
        [DIMENSIONS, json.dumps({"package": "keyword", "section": "keyword", "installed_size": "integer"})],
    )
    upsert = """
        select inserted
        from llm.upsert_points('packages', p_ids => %s, p_embeddings => %s::text[]::vector[], p_contents => %s, p_payloads => %s::jsonb[])
        """
    with stage.step("select llm.upsert_points('packages', …)") as step:
        stored = 0
        for batch in batched(packages(), BATCH, strict=False):
            rows = [(str(package.id), str(package.vector), package.description, json.dumps(package.payload)) for package in batch]
            ((inserted,),) = ask(app, "acme", upsert, *map(list, zip(*rows, strict=True)))
            stored += inserted
            step.progress(f"{stored:,} packages")
        step.result = f"{stored:,} descriptions with their embeddings" + ("" if is_whole() else ": a sample; PACKAGES=folder for all")
    with stage.step("call llm.maintain('packages', p_lock_writers => true)"):
        superuser.execute("call llm.maintain('packages', true)")
    superuser.execute("vacuum analyze llm.points_packages")
    stage.table(
        ("segment", "points", "index", "MB"),
        superuser.execute("select segment, rows, settings, round(index_bytes / 1e6, 1) from llm.segment_progress order by segment").fetchall(),
    )


def compare(stage: Stage, app: psycopg.Connection, questions: list[Query]) -> None:
    """Ask by meaning, by words, and by both."""
    stage.sql("select id from llm.vector_search('packages', embedding, 4);")
    stage.sql("select id from llm.hybrid_search('packages', 'tool to compute the statistical distribution of dice rolls', embedding, 4);")
    rows: list[tuple[object, ...]] = []
    for query in questions:
        legs = [
            ask(app, "acme", FOUND, text, vector, SHOWN)
            for text, vector in ((None, str(query.vector)), (query.text, None), (query.text, str(query.vector)))
        ]
        wanted = str(query.package)
        columns = [[f"[bold green]{name}[/]" if point == wanted else name for name, point in leg] for leg in legs]
        rows.append((query.text, *("\n".join(names) for names in columns)))
        rows.append(("",) * 4)
    stage.say("Each question is the one-line synopsis of a package, whose longer description is what is searched; that package is green:")
    stage.table(("looked for", "by meaning", "by words", "by both"), rows[:-1])


def narrow(stage: Stage, app: psycopg.Connection, query: Query) -> None:
    """Ask with filters, and show how it was done."""
    search = (
        "select h.payload ->> 'package', h.payload ->> 'installed_size', round(h.score::numeric, 3) from llm.vector_search('packages', %s, 5, %s) h"
    )
    report = "select plan, requested, returned, matching, matching_is_exact, reason from llm.search_report()"
    stage.sql(f"select … from llm.vector_search('packages', embedding, 5, '{json.dumps(GAMES)}');")
    stage.table(("small games", "kB", "similarity"), ask(app, "acme", search, str(query.vector), json.dumps(GAMES)))
    stage.say("Never silently short: the report says how a search was done, and why it returned less than was asked for.")
    stage.sql("select * from llm.search_report();")
    rows: list[tuple[Any, ...]] = []
    for what, condition in (("everything", None), ("small games", GAMES), ("one of two names", ONE)):
        with app.transaction():
            app.execute("select llm.set_tenant('acme')")
            app.execute(search, [str(query.vector), None if condition is None else json.dumps(condition)])
            row = app.execute(report).fetchone()
            assert row
        plan, requested, returned, matching, is_exact, reason = row
        rows.append((what, plan, requested, returned, matching if is_exact else f"{matching} or more", reason))
    stage.table(("among", "plan", "requested", "returned", "matching", "reason"), rows)


def examine(stage: Stage, superuser: psycopg.Connection, app: psycopg.Connection, asked: list[Query]) -> None:
    """Measure recall, tune, and evaluate labelled queries."""
    stage.scene("How good are these searches?")
    stage.sql("select * from llm.tune_collection('packages', p_target_recall => 0.98, p_sample => 100);")
    with stage.step("100 vectors, each searched for by index and by comparing all") as step:
        columns = "ef_before, ef_search, round(recall::numeric, 4), round(standard_error::numeric, 4), p50_ms, measured, is_met, reason"
        tuned = ask(superuser, "acme", f"select {columns} from llm.tune_collection('packages', 0.98, 100)")[0]
        step.result = f"{tuned[5]} settings tried"
    stage.say(
        f"  ef_search was {tuned[0]}, and is {tuned[1]} now, which finds {tuned[2]} ± {tuned[3]} of the ten nearest in {tuned[4]:.2f} ms"
        + (f": {tuned[7]}." if tuned[7] else ".")
    )
    stage.table(
        ("ef", "plan", "recall", "ms", "ms, comparing all"),
        ask(app, "acme", "select ef, plan, round(recall::numeric, 4), round(p50_ms::numeric, 2), round(exact_p50_ms::numeric, 2)"
            " from llm.recall_history order by ef"),
    )  # fmt: skip
    labelled = [{"query": query.text, "vector": query.vector.values, "relevant": [str(query.package)]} for query in asked]
    stage.sql("select * from llm.evaluate_search('packages', '[{\"query\": …, \"vector\": […], \"relevant\": [\"44032\"]}, …]');")
    with stage.step(f"{len(labelled)} labelled queries") as step:
        columns = "method, round(hit_rate::numeric, 3), round(mrr::numeric, 3), round(ndcg::numeric, 3), round(p50_ms::numeric, 2), missing"
        rows = ask(app, "acme", f"select {columns} from llm.evaluate_search('packages', %s)", json.dumps(labelled))
        step.result = "each by three methods"
    stage.table(("method", "hit rate of 10", "MRR", "nDCG", "ms"), (row[:5] for row in rows))
