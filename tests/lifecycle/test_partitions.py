"""Partitions over dumps, upgrades and second installations."""

from __future__ import annotations

import pytest

from tests.lifecycle.releases import NEXT
from tests.lifecycle.support import Mover, differences, fill, fingerprint
from tests.support import Client, Database
from tools.cluster import Cluster

#: Everything that says how tables are partitioned, ours and the users'.
STATE = """
    select c.oid::regclass::text, pg_get_expr(c.relpartbound, c.oid), c.relowner::regrole::text, c.relrowsecurity, c.relforcerowsecurity,
        c.relacl::text,
        array(select t.tgname || t.tgenabled::text from pg_trigger t where t.tgrelid = c.oid order by t.tgname)
    from pg_inherits i join pg_class c on c.oid = i.inhrelid where c.relkind = 'r' order by 1
"""
SETS = "select s::text from llm.partition_sets s order by 1"


@pytest.fixture
def original(fresh_database: Database, fresh: Client) -> Database:
    """A filled database with partitions of pg_llm and of a user, and rows in default partitions."""
    fill(fresh_database)
    fresh.run("insert into llm.notes (tenant_id, body, written_at) select t, 'note ' || n, now() + n * interval '2 months'"
              " from generate_series(-1, 9) n, unnest('{acme,globex}'::text[]) t")  # fmt: skip
    assert fresh.one("select count(*) from llm.notes_default") > 0
    return fresh_database


def partman(client: Client) -> list[tuple[str]]:
    """Return pg_partman's rows about tables."""
    schema = client.one("select extnamespace::regnamespace::text from pg_extension where extname = 'pg_partman'")
    return client.rows(f"select p::text from {schema}.part_config p order by 1")


def assert_goes_on(client: Client) -> None:
    """Look after the partitions as ever, and find them protected, whoever makes more."""
    assert client.rows("select * from llm.setup()") == []
    client.run("set client_min_messages = error")
    assert client.row("call llm.manage_partitions()") == (True,)
    assert client.one("select count(*) from public.visits_default") == 0
    client.run("create table llm.late partition of llm.notes for values from ('2001-01-01') to ('2001-02-01')")
    partitions = ("partitions are protected", "new partitions get protected", "partitions are made ahead", "partitions are looked after",
                  "row-level security", "nothing is granted on partitions")  # fmt: skip
    found = client.rows("select name, detail from llm.doctor() where not ok and name = any (%s)", list(partitions))
    assert found == []


@pytest.mark.parametrize("options", [("-Fc",), ("-Fp",)], ids=" ".join)
def test_a_restore_brings_partitions_and_what_pg_partman_knows(
    original: Database, fresh: Client, cluster: Cluster, mover: Mover, options: tuple[str, ...]
) -> None:
    """DR-01"""
    dump = mover.dump(original, *options)
    restored = (mover.run_script(dump, cluster) if options == ("-Fp",) else mover.restore(dump, cluster, "-1")).client()
    for query in (
        STATE,
        SETS,
        "select tableoid::regclass::text, * from llm.notes order by 1, 2, 3",
        "select tableoid::regclass::text, * from visits",
    ):
        assert sorted(restored.rows(query), key=str) == sorted(fresh.rows(query), key=str)
    assert partman(restored) == partman(fresh) != []
    assert_goes_on(restored)


def test_an_upgrade_makes_partitions_as_a_new_installation_does(filled: Database, fresh: Client) -> None:
    client = filled.client().run("alter extension pg_llm update").run("select llm.setup()")
    expected = [row for row in fresh.rows(STATE) if row[0].startswith("llm.")]
    assert [row for row in client.rows(STATE) if row[0].startswith("llm.")] == expected != []
    assert_goes_on(client)


@pytest.mark.parametrize("extension", ["pg_llm", "pg_partman"])
def test_a_second_installation_takes_the_partitions_over(original: Database, fresh: Client, extension: str) -> None:
    """DR-04: also when pg_partman went with it, and forgot everything."""
    fresh.run("set client_min_messages = error").run("call llm.manage_partitions()")
    state, sets, catalogue = fresh.rows(STATE), fresh.rows(SETS), fingerprint(fresh)
    fresh.run(f"drop extension {extension} cascade")
    assert fresh.rows("select from pg_event_trigger where evtname like 'llm%'") == []
    fresh.run(f"create extension pg_llm version '{NEXT}' cascade").run("select llm.setup()")
    assert (fresh.rows(STATE), fresh.rows(SETS)) == (state, sets)
    assert differences(fingerprint(fresh), catalogue) == []
    if extension == "pg_partman":
        fresh.run("select llm.create_partitions(('public.visits', 'at', 'daily', 30)::llm.partition_strategy)")
    assert_goes_on(fresh)


def test_nothing_of_partitions_is_a_member(fresh: Client) -> None:
    """Neither what CREATE EXTENSION made, nor what came later."""
    fresh.run("create table llm.late partition of llm.notes for values from ('2001-01-01') to ('2001-02-01')")
    members = fresh.column(
        "select d.objid::regclass::text from pg_depend d join pg_extension e on e.oid = d.refobjid join pg_class c on c.oid = d.objid"
        " where d.classid = 'pg_class'::regclass and d.deptype = 'e' and e.extname in ('pg_llm') and c.relkind <> 'c'"
    )
    assert members == []
    assert fresh.one("select count(*) from pg_depend d join pg_event_trigger t on t.oid = d.objid and d.classid = 'pg_event_trigger'::regclass"
                     " join pg_extension e on e.oid = d.refobjid where d.deptype = 'e' and e.extname = 'pg_llm'"
                     " and t.evtname like 'llm_protect%'") == 1  # fmt: skip
