"""Writes docs/reference.md from the comments in a database: `make reference`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import psycopg

from tools.cluster import ROOT, Cluster, Installation

PAGE = ROOT / "docs" / "reference.md"

_HEAD = """# Reference

Generated from the comments in the database by `make reference`; in psql: `\\df+ llm.*`, `\\d+ llm.*`.
"""

_FUNCTIONS = """
    select
        p.proname,
        pg_get_function_arguments(p.oid),
        pg_get_function_result(p.oid),
        obj_description(p.oid, 'pg_proc')
    from pg_proc p
    where p.pronamespace = 'llm'::regnamespace
        and p.proname not like '\\_%'
    order by p.proname
    """

_RELATIONS = """
    select
        c.relname,
        string_agg(format('%%s %%s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' order by a.attnum),
        obj_description(c.oid, 'pg_class'),
        obj_description(c.reltype, 'pg_type')
    from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = 'llm'::regnamespace
        and c.relname not like '\\_%%'
        and not c.relispartition
        and c.relkind::text = any (%s)
    group by c.oid
    order by c.relname
    """


def page(connection: psycopg.Connection) -> str:
    """Return the text of the page for the pg_llm that is installed in this database."""
    parts = [_HEAD, "## Functions\n"]
    for name, arguments, result, comment in connection.execute(_FUNCTIONS):
        call = f"`llm.{name}({arguments})` → `{result}`" if result else f"`call llm.{name}({arguments})`"
        parts.append(f"### llm.{name}\n\n{call}\n\n{_paragraph(comment)}\n")
    for title, kinds in (("Types", ["c"]), ("Tables and views", ["r", "p", "v", "m"])):
        parts.append(f"## {title}\n")
        for name, columns, comment, type_comment in connection.execute(_RELATIONS, [kinds]):
            parts.append(f"### llm.{name}\n\n`({columns})`\n\n{_paragraph(comment or type_comment)}\n")
    return "\n".join(parts)


def _paragraph(comment: str) -> str:
    return " ".join(comment.split())


def main() -> None:
    """Install pg_llm in a throw-away server and print the page."""
    with tempfile.TemporaryDirectory() as folder:
        installation = Installation(Path(folder) / "postgresql").install()
        with Cluster(installation, Path(folder) / "cluster") as cluster, cluster.connect() as connection:
            connection.execute("set client_min_messages = warning")
            connection.execute("create extension pg_llm cascade")
            sys.stdout.write(page(connection))


if __name__ == "__main__":
    main()
