"""The project's own lint finds what it is made to find, and nothing in this tree."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import new_database
from tests.support import Client
from tools import check, check_python, check_sql, spot
from tools.check_catalogue import catalogue_findings
from tools.cluster import ROOT, Cluster, run

GOOD_FUNCTION = """
create function llm.f(
    p_role name
)
    returns text
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_text text;
begin
    return v_text;
end
$$;

comment on function llm.f(name) is 'A function.';
"""

GOOD_TRAMPOLINE = """
create function llm.g()
    returns text
    language plpython3u
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import config
return config.g()
$$;

comment on function llm.g() is 'A trampoline.';
"""


def test_this_tree_is_clean() -> None:
    """SEC-21: the rules hold."""
    assert [str(finding) for finding in check.findings()] == []


def test_good_sql_is_left_alone() -> None:
    assert list(check_sql.findings(GOOD_FUNCTION + GOOD_TRAMPOLINE)) == []


@pytest.mark.parametrize(
    ("good", "bad", "line", "message"),
    [
        ("pg_catalog, pg_temp", "pg_catalog", 2, "llm.f does not set search_path"),
        ("    set search_path = pg_catalog, pg_temp\n", "", 2, "llm.f does not set search_path"),
        ("comment on function llm.f(name) is 'A function.';", "", 2, "function llm.f has no COMMENT ON"),
        ("is 'A function.'", "is null", 2, "function llm.f has no COMMENT ON"),
        ("volatile", "security definer", 2, "no comment '-- security definer: …' above it says why"),
        ("volatile", "security definer", 2, "not given to llm_owner"),
        ("p_role name", "p_role varchar", 3, "type varchar: use text"),
        ("returns text", "returns timestamp", 5, "type timestamp: use timestamptz"),
        ("v_text text", "v_text char(3)", 11, "type bpchar: use text"),
        ("v_text text", "v_text real", 11, "type float4: use double precision"),
        ("return v_text", "execute 'drop role ' || p_role", 13, "llm.f uses EXECUTE, and is not on the reviewed list"),
        ("return v_text", "for v_text in execute p_role loop end loop", 13, "llm.f uses EXECUTE, and is not on the reviewed list"),
        ("returns text", "returns setof text", 5, ""),
    ],
)
def test_bad_sql_is_found(good: str, bad: str, line: int, message: str) -> None:
    """SEC-21, Q-12"""
    assert good in GOOD_FUNCTION
    found = list(check_sql.findings(GOOD_FUNCTION.replace(good, bad)))
    assert any(at == line and message in text for at, text in found) == bool(message), found


@pytest.mark.parametrize(
    "type_name", ["serial", "bigserial", "money", "json", "timestamp(3)", "char(2)", "varchar(9)", "real", "timestamp without time zone"]
)
def test_a_column_of_a_bad_type_is_found(type_name: str) -> None:
    """Q-12"""
    found = list(check_sql.findings(f"create table llm.t (a {type_name}); comment on table llm.t is 'A table.';"))
    assert [line for line, text in found if "use" in text] == [1]


@pytest.mark.parametrize(
    "statement",
    [
        "create type llm.x as (a text)",
        "create type llm.x as enum ('a')",
        "create domain llm.x as text",
        "create view llm.x with (security_invoker = true) as select 1",
        "create table llm.x (a text)",
    ],
)
def test_whatever_is_made_without_a_comment_is_found(statement: str) -> None:
    assert [text for _, text in check_sql.findings(statement)] == [
        f"{'type' if 'view' not in statement and 'table' not in statement else 'relation'} llm.x has no COMMENT ON in this file"
    ]


def test_an_overload_is_found() -> None:
    assert any("created 2 times" in text for _, text in check_sql.findings(GOOD_FUNCTION + GOOD_FUNCTION.replace("name", "text")))


def test_execute_of_what_is_not_a_constant_is_found_in_a_reviewed_function_too() -> None:
    reviewed = (
        GOOD_FUNCTION.replace("llm.f", "llm.setup").replace("returns text", "returns setof text").replace("return v_text", "return next v_text")
    )
    for statement in ("execute format('drop role %I', p_role)", "execute v_step.script"):
        assert list(check_sql.findings(reviewed.replace("return next v_text", statement))) == []
    for statement in ("execute 'drop role ' || p_role", "execute format(p_role, 1)", "return query execute p_role"):
        assert any("not format() of a constant" in text for _, text in check_sql.findings(reviewed.replace("return next v_text", statement)))


def test_a_listed_exception_must_still_be_one() -> None:
    function = GOOD_FUNCTION.replace("llm.f(", "llm.load_config(")
    assert any("listed as inlined" in text for _, text in check_sql.findings(function))


@pytest.mark.parametrize(
    "body",
    [
        "return config.g() if p else None",
        "x = config.g()\nreturn x",
        "for row in config.g():\n    yield row",
        "return other.g()",
        "config.a()\nconfig.b()\nconfig.c()",
        "plpy.execute('select 1')",
    ],
)
def test_a_body_that_does_more_than_call_is_found(body: str) -> None:
    found = list(check_sql.findings(GOOD_TRAMPOLINE.replace("return config.g()", body)))
    assert any(line == 6 and "no trampoline" in text for line, text in found), found


GOOD_MODULE = '''
"""A module."""

import re

from . import spi

WORD = re.compile("a")
STATEMENT = "select 1"
OTHER = spi.plan(STATEMENT)
'''


def test_a_good_module_is_left_alone() -> None:
    assert check_python.module_findings("x", GOOD_MODULE + 'PLAN = spi.plan("select $1", "text")\n') == []


@pytest.mark.parametrize(
    "line",
    [
        'spi.plan("select %s" % STATEMENT)',
        'spi.plan(f"select {STATEMENT}")',
        'spi.plan("select {}".format(1))',
        'spi.plan(STATEMENT + " where true")',
        'spi.plan(" ".join(["select", "1"]))',
        "spi.plan(WORD)",
        "spi.Plan(str(1), ())",
        "from .spi import plan; plan(str(1))",
        "from . import spi as s; s.plan(str(1))",
        'plpy.execute(f"select {STATEMENT}")',
        "import plpy",
        "from plpy import execute",
        'GD["key"] = 1',
        'SD["key"] = 1',
        'import sys; sys.modules["__main__"].GD',
        'getattr(spi, "GD")',
        'eval("1")',
        "run = eval",
        'exec("1")',
        'compile("1", "", "eval")',
        '__import__("os")',
        "from builtins import eval as e; e('1')",
        'open("/etc/passwd")',
        "from pathlib import Path; Path('/etc/passwd').read_text()",
        "import os; os.system('true')",
        "import os as o; o.popen('true')",
        "from os import execv",
        "import subprocess",
        "from subprocess import run",
        "import pickle",
        "import marshal",
        "import threading",
        "import sys; sys.path.insert(0, '')",
        "import os; os.environ['PATH'] = ''",
    ],
)
def test_bad_python_is_found(line: str) -> None:
    """SEC-21"""
    found = check_python.module_findings("x", GOOD_MODULE + line + "\n")
    assert [at for at, _ in found] == [GOOD_MODULE.count("\n") + 1] * len(found) != []


def test_a_statement_kept_in_a_name_that_changes_is_found() -> None:
    assert check_python.module_findings("x", GOOD_MODULE + "STATEMENT = input_text\n")


def test_spi_itself_prepares_only_what_its_plans_were_given() -> None:
    source = (ROOT / "python/pg_llm/spi.py").read_text()
    assert check_python.module_findings("spi", source) == []
    assert check_python.module_findings("spi", source + "\ndef run(statement: str) -> None:\n    plpy.execute(statement)\n")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the lint reads of this tree."""
    for name in ("META.json", "CHANGELOG.md", "pg_llm.control"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("sql", "python", "docs", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize(
    ("path", "good", "bad", "message"),
    [
        ("META.json", '"version": "0.', '"version": "9.', "META.json:1: version 9."),
        ("CHANGELOG.md", "## 0.", "## 9.", "CHANGELOG.md:1: version 9."),
        ("sql/MANIFEST", "config\n", "config\nghost\n", "subsystem ghost has no docs/ghost.md"),
        ("sql/MANIFEST", "config\n", "", "sql/config:1: no subsystem of this name"),
        ("sql/MANIFEST", "config\n", "", "python/pg_llm/config.py:1: no subsystem of this name"),
        ("sql/config/tables.sql", "jsonb not null", "json not null", "type json: use jsonb"),
        ("sql/config/functions.sql", "create type", "create\ttype", "sql/config/functions.sql:1: tab"),
        ("sql/config/functions.sql", "create type llm.config_access as (", "create type llm.config_access as ( ", "functions.sql:1: trailing blank"),
        ("python/pg_llm/text.py", "import re", "import pickle", "python/pg_llm/text.py:9: module pickle is not allowed here"),
        ("sql/core/functions.sql", "returns uuid", "gives uuid", "sql/core/functions.sql:1: cannot be parsed: syntax error"),
        ("python/pg_llm/text.py", "import re", "import 1", "python/pg_llm/text.py:9: cannot be parsed: invalid syntax"),
        ("sql/tenant/functions.sql", "exception 'no tenant is set'", "exception 'none is there'", "no test expects the error 'none is there'"),
        ("python/pg_llm/coherence.py", "keeps the caches coherent cannot be used", "no test knows", "the error 'the file … that no test knows"),
    ],
)
def test_a_flaw_of_the_tree_is_found(tree: Path, path: str, good: str, bad: str, message: str) -> None:
    text = (tree / path).read_text()
    assert good in text
    (tree / path).write_text(text.replace(good, bad))
    found = [str(finding) for finding in check.findings(tree)]
    assert any(message in finding for finding in found), found


def test_a_file_that_is_too_long_or_ends_too_early_is_found(tree: Path) -> None:
    (tree / "docs/long.md").write_text("line\n" * 501 + "end")
    found = [str(finding) for finding in check.texts(tree) if finding.path == "docs/long.md"]
    assert found == ["docs/long.md:502: no newline at the end of the file", "docs/long.md:500: 501 lines: more than 500 are too many"]


@pytest.mark.parametrize(
    ("test", "missing"),
    [
        ('assert "the colour of k" in message', ["sound"]),
        ('assert "the sound of" in message', ["colour"]),
        ('assert "nothing is known of" in message', ["colour", "sound"]),
        ('assert "colour of" in message', ["colour", "sound"]),
        ('"the colour of k, the sound of k"', ["colour", "sound"]),
        ('MATCH = f"(the colour of {1})|(the sound of .*)"', []),
    ],
)
def test_an_error_is_tested_when_a_string_of_a_test_tells_it_from_all_others(tmp_path: Path, test: str, missing: list[str]) -> None:
    errors = [f"raise exception 'nothing is known of %, not even the {what} of %', p_role, p_role" for what in ("colour", "sound")]
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql/functions.sql").write_text(GOOD_FUNCTION.replace("return v_text", "; ".join(errors)))
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_it.py").write_text(test)
    found = [finding.message for finding in check.untested_errors(tmp_path)]
    assert found == [f"no test expects the error 'nothing is known of …, not even the {what} of …'" for what in missing]


def test_pgspot_has_nothing_to_say_about_this_tree() -> None:
    """SEC-20: all scripts, and the storage scripts inside them."""
    assert run(ROOT / "tools/lint", "pgspot") == "pgspot  ok\n"


def test_pgspot_sees_what_is_unsafe() -> None:
    """SEC-20: in install, upgrade and storage scripts."""
    pinned = "set local search_path = pg_catalog, pg_temp;\n"
    good = pinned + GOOD_FUNCTION + GOOD_TRAMPOLINE
    replaced = good.replace("create function", "create or replace function")
    table = "create table if not exists llm.t (a text); create index if not exists i on llm.t (a);"

    assert spot.findings(good, (replaced,), (table,)) == ""
    assert "PS005" in spot.findings(good.replace("    set search_path = pg_catalog, pg_temp\n", ""))
    assert "PS005" in spot.findings(good.replace("search_path = pg_catalog, pg_temp\nas $$\nd", "search_path = pg_catalog, public\nas $$\nd"))
    assert "PS003" in spot.findings(good.replace("    volatile\n    set search_path = pg_catalog, pg_temp\n", "    security definer\n"))
    assert "PS016" in spot.findings("select count(*);")
    assert "PS002" in spot.findings(replaced)
    assert "PS002" in spot.findings(good, (replaced.replace("llm.f", "llm.not_installed"),))
    assert "PS012" in spot.findings(pinned + table)
    assert "PS002" in spot.findings(good, (), (replaced,))


def test_pgspot_looks_into_functions_that_return_next() -> None:
    assert spot.findings(GOOD_FUNCTION.replace("returns text", "returns setof text").replace("return v_text", "return next (v_text || p_role)")) == ""


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A tree with the tools' scripts and settings, and nothing else."""
    for name in ("tools/lint", "tools/test", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "tests").mkdir()
    return tmp_path


def test_lint_says_which_step_fails_and_why(bare: Path) -> None:
    (bare / "tests/test_bad.py").write_text("import os\n")
    with pytest.raises(RuntimeError, match=r"(?s)exited with 1:\nruff    FAILED.*F401.*\nformat  ok"):
        run(bare / "tools/lint", "ruff", "format")
    assert run(bare / "tools/lint", "format") == "format  ok\n"


@pytest.mark.parametrize(
    ("lint", "test", "status"),
    [("exit 0", "def test(): pass", 0), ("exit 3", "def test(): pass", 3), ("exit 0", "def test(): assert False", 1), ("exit 0", "", 5)],
)
def test_the_tests_pass_when_lint_and_some_test_do(bare: Path, lint: str, test: str, status: int) -> None:
    (bare / "tools/lint").write_text(f"#!/bin/sh\n{lint}\n")
    (bare / "tests/test_it.py").write_text(test)
    assert subprocess.run([bare / "tools/test", "-q"], capture_output=True).returncode == status


@pytest.fixture(scope="module")
def catalogue(cluster: Cluster) -> Iterator[Client]:
    """A superuser's client of a database that all tests of the catalogue share."""
    for database in new_database(cluster):
        yield database.client()


def test_the_catalogue_is_clean(catalogue: Client) -> None:
    """Q-12, RLS-08, RLS-09, SEC-07 and what else tools/check_catalogue.py knows."""
    assert catalogue_findings(catalogue.connection) == []


FUNCTION = "create function llm.planted() returns integer language sql set search_path = pg_catalog, pg_temp as 'select 1'; "
TABLE = "create table llm.planted (tenant_id text not null, a text, primary key (tenant_id, a)); "


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        (FUNCTION + "alter function llm.planted() reset search_path", "llm.planted() does not pin a search_path"),
        (FUNCTION + "alter function llm.planted() set search_path = pg_temp, pg_catalog", "llm.planted() does not pin a search_path"),
        (FUNCTION, "llm.planted() has no comment"),
        (FUNCTION, "llm.planted() is executable by PUBLIC"),
        ("grant execute on function llm.version to public", "llm.version() is executable by PUBLIC"),
        (FUNCTION + "alter function llm.planted() security definer", "llm.planted() is security definer, but not of llm_owner"),
        (FUNCTION + "alter function llm.planted() owner to llm_owner", "llm.planted() is of llm_owner, but not security definer"),
        ("alter function llm.load_config set search_path = pg_catalog", "is listed as inlined"),
        ("create function llm.planted(json) returns text language sql as 'select 1'", "llm.planted(json) takes or returns a type"),
        ("create function llm.planted(out a timestamp, out b text) language sql as 'select 1'", "llm.planted() takes or returns a type"),
        ("create type llm.planted as (a text)", "llm.planted has no comment"),
        ("create type llm.planted as enum ('a')", "llm.planted has no comment"),
        ("create domain llm.planted as text", "llm.planted has no comment"),
        ("create type llm.planted as (a timestamp)", "llm.planted.a is of a type"),
        (TABLE, "llm.planted has no comment"),
        (TABLE, "llm.planted has a tenant_id without forced row-level security"),
        (TABLE + "alter table llm.planted enable row level security", "llm.planted has a tenant_id without forced row-level security"),
        ("alter table llm.config no force row level security", "llm.config has a tenant_id without forced row-level security"),
        ("create table llm.planted (tenant_id text)", "llm.planted has a tenant_id that may be null"),
        ("create table llm.planted (tenant_id text)", "llm.planted has no primary key"),
        ("create table llm.planted (id bigint primary key, tenant_id text)", "llm.planted_pkey is a key that does not begin with tenant_id"),
        ("create unique index planted on llm.config (key, tenant_id)", "llm.planted is a key that does not begin with tenant_id"),
        ("create unique index planted on llm.config (lower(key))", "llm.planted is a key that does not begin with tenant_id"),
        ("create policy planted on llm.config using (description = 'a')", "llm.config.description is asked for by a policy, but leads no index"),
        (TABLE + "alter table llm.planted add b integer generated always as identity", "llm.planted.b is a number that ends"),
        (TABLE + "alter table llm.planted add b serial", "llm.planted.b is a number that ends"),
        ("create table llm.planted (id integer primary key)", "llm.planted.id is a number that ends"),
        *(
            (TABLE + f"alter table llm.planted add b {bad}", "llm.planted.b is of a type")
            for bad in ("timestamp", "json", "money", "char(3)", "json[]")
        ),
        (TABLE + "alter table llm.planted add total_cost double precision", "llm.planted.total_cost counts money"),
        ("grant select on llm.config to public", "llm.config is granted to PUBLIC"),
        ("create materialized view llm.planted as select * from llm.config", "llm.planted keeps tenants' rows"),
        (TABLE + "alter table llm.planted add b llm.migration", "column b of table llm.planted is storage, but depends on a member"),
        (TABLE + "alter table llm.planted add b llm.migration[]", "column b of table llm.planted is storage, but depends on a member"),
        (TABLE + "alter table llm.planted add check (a < llm.version())", "on table llm.planted is storage, but depends on a member"),
        (
            TABLE + "alter table llm.planted add b text generated always as (llm.version()) stored",
            "column b of table llm.planted is storage, but depends on a member",
        ),
        (TABLE + "create index planted_i on llm.planted ((a || llm.version()))", "index llm.planted_i is storage, but depends on a member"),
        (
            "create view llm.planted as select * from llm.config; alter extension pg_llm add view llm.planted",
            "view llm.planted is a member of the extension, but depends on storage",
        ),
        (
            "create function llm.planted() returns setof llm.config language sql as 'select 1'; alter extension pg_llm add function llm.planted()",
            "function llm.planted() is a member of the extension, but depends on storage",
        ),
        (
            "create type llm.planted as (a llm.config); alter extension pg_llm add type llm.planted",
            "type llm.planted is a member of the extension, but depends on storage",
        ),
        (TABLE + "alter extension pg_llm add table llm.planted", "llm.planted holds data, but is a member"),
    ],
)
def test_a_flaw_of_the_catalogue_is_found(catalogue: Client, statement: str, finding: str) -> None:
    """Q-12, RLS-08, SEC-21"""
    with catalogue.connection.transaction(force_rollback=True):
        catalogue.run("set local check_function_bodies = off").run(statement)
        found = catalogue_findings(catalogue.connection)
        assert any(finding in each for each in found), found


@pytest.mark.parametrize(
    "statement",
    [
        "create trigger planted before truncate on llm.config for each statement execute function llm._coherence_truncate()",
        "alter table llm.config alter description set default llm.version()",
        "create policy planted on llm.config using (key = llm.version())",
        "create view llm.planted as select key, llm.version(), null::llm.migration from llm.config",
    ],
)
def test_what_setup_makes_anew_may_depend_on_the_extension(catalogue: Client, statement: str) -> None:
    with catalogue.connection.transaction(force_rollback=True):
        catalogue.run(statement)
        assert [each for each in catalogue_findings(catalogue.connection) if "depends on" in each] == []


@pytest.mark.parametrize(
    ("options", "is_found"),
    [("", True), ("with (security_barrier)", True), ("with (security_invoker = off)", True), ("with (security_invoker)", False)],
)
def test_a_view_with_its_owners_rights_is_found(catalogue: Client, options: str, is_found: bool) -> None:
    """RLS-09"""
    with catalogue.connection.transaction(force_rollback=True):
        catalogue.run(f"create view llm.planted {options} as select * from llm.config")
        found = [each for each in catalogue_findings(catalogue.connection) if "owner's rights" in each]
        assert len(found) == is_found
