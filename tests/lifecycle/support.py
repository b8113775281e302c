"""What lifecycle tests compare and move: fingerprints of the catalogue, contents of the storage, dumps; and a data set worth keeping."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from tests.support import Client, Database
from tools.cluster import Cluster

_ACL = """(
    select array_agg(format('%s: %s%s', coalesce(r.rolname, 'PUBLIC'), a.privilege_type, case when a.is_grantable then '*' end) order by r.rolname, 2)
    from aclexplode({}) a
    left join pg_roles r on r.oid = a.grantee
)"""

_IS_MEMBER = """exists (
    select from pg_depend d
    join pg_extension e on e.oid = d.refobjid and d.refclassid = 'pg_extension'::regclass
    where d.classid = '{}'::regclass and d.objid = {}.oid and d.deptype = 'e' and e.extname = 'pg_llm'
)"""

_INITIAL_ACL = _ACL.format("(select i.initprivs from pg_init_privs i where i.classoid = '{0}'::regclass and i.objoid = {1}.oid and i.objsubid = 0)")

#: Everything that schema llm consists of, in an order and in words that do not depend on when and how it was made. The pretty forms, because
#: the others show which of several ANDs once stood in parentheses, and a dump does not keep that.
_CATALOGUE = {
    "schema": f"""
        select n.nspowner::regrole::text, {_ACL.format("n.nspacl")}
        from pg_namespace n where n.nspname = 'llm'
    """,
    "functions": f"""
        select
            p.oid::regprocedure::text, pg_get_functiondef(p.oid), p.proowner::regrole::text, obj_description(p.oid, 'pg_proc'),
            {_ACL.format("coalesce(p.proacl, acldefault('f', p.proowner))")}, {_INITIAL_ACL.format("pg_proc", "p")},
            {_IS_MEMBER.format("pg_proc", "p")}
        from pg_proc p where p.pronamespace = 'llm'::regnamespace order by 1
    """,
    "types": f"""
        select
            t.typname, t.typtype, t.typowner::regrole::text, obj_description(t.oid, 'pg_type'),
            {_ACL.format("coalesce(t.typacl, acldefault('T', t.typowner))")}, {_IS_MEMBER.format("pg_type", "t")},
            array(select e.enumlabel from pg_enum e where e.enumtypid = t.oid order by e.enumsortorder)
        from pg_type t where t.typnamespace = 'llm'::regnamespace order by 1
    """,
    "relations": f"""
        select
            c.relname, c.relkind, c.relpersistence, c.relowner::regrole::text, c.relrowsecurity, c.relforcerowsecurity, c.reloptions,
            obj_description(c.oid, 'pg_class'), pg_get_viewdef(c.oid, true), pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid),
            {_ACL.format("coalesce(c.relacl, acldefault((case c.relkind when 'S' then 's' else 'r' end)::\"char\", c.relowner))")},
            {_INITIAL_ACL.format("pg_class", "c")}, {_IS_MEMBER.format("pg_class", "c")}
        from pg_class c where c.relnamespace = 'llm'::regnamespace order by 1
    """,
    "columns": f"""
        select
            c.relname, row_number() over (partition by c.oid order by a.attnum), a.attname, format_type(a.atttypid, a.atttypmod),
            a.attnotnull, a.attidentity, a.attgenerated, a.attstorage, a.attcompression, pg_get_expr(d.adbin, d.adrelid),
            col_description(c.oid, a.attnum), {_ACL.format("a.attacl")}
        from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
        where c.relnamespace = 'llm'::regnamespace order by 1, 2
    """,
    "constraints": """
        select conrelid::regclass::text, conname, pg_get_constraintdef(oid, true), convalidated, obj_description(oid, 'pg_constraint')
        from pg_constraint where connamespace = 'llm'::regnamespace order by 1, 2
    """,
    "indexes": """
        select indexrelid::regclass::text, pg_get_indexdef(indexrelid, 0, true), indisvalid, indisreplident, indisclustered
        from pg_index where indrelid in (select oid from pg_class where relnamespace = 'llm'::regnamespace) order by 1
    """,
    "triggers": """
        select t.tgrelid::regclass::text, t.tgname, pg_get_triggerdef(t.oid, true), t.tgenabled, obj_description(t.oid, 'pg_trigger')
        from pg_trigger t
        join pg_class c on c.oid = t.tgrelid
        where c.relnamespace = 'llm'::regnamespace and not t.tgisinternal order by 1, 2
    """,
    "event triggers": f"""
        select
            e.evtname, e.evtevent, e.evtowner::regrole::text, e.evtfoid::regproc::text, e.evtenabled, e.evttags,
            obj_description(e.oid, 'pg_event_trigger'), {_IS_MEMBER.format("pg_event_trigger", "e")}
        from pg_event_trigger e where e.evtname like 'llm%' order by 1
    """,
    "rules": """
        select c.relname, r.rulename, pg_get_ruledef(r.oid, true), r.ev_enabled
        from pg_rewrite r
        join pg_class c on c.oid = r.ev_class
        where c.relnamespace = 'llm'::regnamespace order by 1, 2
    """,
    "policies": """
        select
            c.relname, p.polname, p.polpermissive, p.polcmd, array(select r::regrole::text from unnest(p.polroles) r order by 1),
            pg_get_expr(p.polqual, c.oid, true), pg_get_expr(p.polwithcheck, c.oid, true)
        from pg_policy p
        join pg_class c on c.oid = p.polrelid
        where c.relnamespace = 'llm'::regnamespace order by 1, 2
    """,
    "sequences": """
        select sequencename, sequenceowner, data_type::text, start_value, min_value, max_value, increment_by, cycle, cache_size
        from pg_sequences where schemaname = 'llm' order by 1
    """,
}

_names = count(1)


type Fingerprint = dict[str, list[tuple[Any, ...]]]


def fingerprint(client: Client) -> Fingerprint:
    """Return all that the catalogue says about schema llm, by kind of object."""
    return {kind: client.rows(query) for kind, query in _CATALOGUE.items()}


def differences(found: Fingerprint, expected: Fingerprint) -> list[str]:
    """Return what only one of two fingerprints has, a line each: easier to read than two whole catalogues."""
    return [
        f"{sign} {kind}: {row}"
        for kind in expected
        for sign, rows, others in (("+", found[kind], expected[kind]), ("-", expected[kind], found[kind]))
        for row in rows
        if row not in others
    ]


def contents(client: Client) -> dict[str, tuple[int, str | None]]:
    """Return the number of rows and the MD5 of all rows of each table of the storage."""
    tables = client.column("select oid::regclass::text from pg_class where relnamespace = 'llm'::regnamespace and relkind in ('r', 'p') order by 1")
    return {table: client.row(f"select count(*), md5(string_agg(t::text, E'\\n' order by t::text)) from {table} t") for table in tables}


def positions(client: Client) -> dict[str, tuple[int, bool]]:
    """Return where each sequence of the storage stands."""
    # The era of streams is another one after each restore.
    sequences = client.column("select oid::regclass::text from pg_class where relnamespace = 'llm'::regnamespace and relkind = 'S'"
                              " and relname <> 'stream_era_number' order by 1")  # fmt: skip
    return {sequence: client.row(f"select last_value, is_called from {sequence}") for sequence in sequences}


def user_data(client: Client) -> dict[str, tuple[int, str | None]]:
    """Return the contents without what llm.setup() writes about itself."""
    return {table: rows for table, rows in contents(client).items() if table != "llm.schema_migrations"}


def storage(client: Client) -> list[tuple[str, str, str]]:
    """Return which steps the storage consists of."""
    return client.rows("select name, version, checksum from llm.schema_migrations order by name")


def fill(database: Database) -> None:
    """Leave every kind of row: of two tenants and global, overridden, changed, deleted, rolled back, truncated, odd text, bound roles."""
    admin, app, superuser = database.client("admin"), database.client("app"), database.client()
    admin.run("select llm.save_config('gone', '1')")
    superuser.run("truncate llm.config")
    admin.run("select llm.save_configs('{\"model\": \"small\", \"limit\": 10, \"back\": {\"deep\": [1, null]}}', 'for all')")
    for tenant in ("acme", "globex"):
        for value in ('"large"', '"huge"', "null"):
            with app.tenant(tenant):
                app.run("select llm.save_config('model', %s, 'of ' || %s, p_reason => 'better')", value, tenant)
        with app.tenant(tenant):
            app.run("select llm.save_config(llm.clean_text('\\x6b00e29ca8'), to_jsonb(repeat('text \"\\ \n\t é ✨ ', 2000)))")
            app.run("select llm.save_configs((select jsonb_object_agg('key ' || n, n) from generate_series(1, 50) n))")
            app.run("select llm.delete_config('key 7', p_reason => 'unused')")
            app.run("select llm.rollback_config(p_change => (select min(id) from llm.config_history where tenant_id = %s), p_key => 'model')", tenant)
    with app.tenant("globex"):
        app.run("select llm.delete_config('model')")
    admin.run("select llm.bind_role('reader', 'acme')")
    superuser.run("create table public.visits (at timestamptz not null default now()) partition by range (at)")
    superuser.run("select llm.create_partitions(('public.visits', 'at', 'daily', 30)::llm.partition_strategy)")
    superuser.run("insert into public.visits (at) select now() - n * interval '1 day' from generate_series(0, 4) n")
    # Keys; their master key comes from a command that every server of the tests can run.
    superuser.run("select llm.add_master_key(p_command => array['/bin/sh', '-c', 'printf %064d $0'])")
    superuser.run("create table public.letters (id bigint primary key, body bytea)").run("grant all on public.letters to llm_app, llm_admin")
    admin.run("select llm.register_encrypted_column('public.letters', 'body', 'id')")
    for tenant, number in (("acme", 1), ("globex", 2)):
        with app.tenant(tenant):
            app.run(
                "insert into letters values (%s, llm.encrypt_data('of ' || %s, '(,,,t)', 'public.letters', 'body', %s::text))", number, tenant, number
            )
            app.run("select llm.generate_key(), llm.rotate_key(), llm.blind_index('x', 't', 'c')")
    with admin.tenant("acme"):
        admin.run("select llm.revoke_key((select key_id from llm.key_management where kind = 'data'), 'for the test')")
    app.run("call llm.rewrap('public.letters', 'body', 'globex')")
    superuser.run("select llm.apply_security_policy((array['public.letters.body'], null, null, null, true)::llm.security_policy)")
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            app.run("select llm.log_audit_event('read', 'document', llm.clean_text('\\x00e29ca8'), '{\"n\": [1, null, \"\\\\ \\n é\"]}', 'ann')")
            app.run("insert into llm.audit_events (action, object_type, object_id) select 'a', 'b', i::text from generate_series(1, 100) i")
            app.run("select llm.log_audit_event('pay', 'account', '7', p_sensitive => 'secret')")
    superuser.run("create table public.orders (id int primary key, secret text)").run("select llm.audit_table('public.orders', p_mask => '{secret}')")
    superuser.run("insert into public.orders values (1, 'x'), (2, 'y')").run("update public.orders set secret = 'z' where id = 2")
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            value = '{"c": ["bytes", null, null, "", 0, 1, null]}'
            app.run("select llm.put_checkpoint('thread', '', '1', null, '{}', '{\"run_id\": \"r\"}', %s, %s)", value, [b"long" * 1000])
            app.run("select llm.put_checkpoint_writes('thread', '', '1', 't', '', '{0}', '{c}', '{bytes}', %s)", [b"long" * 1000])
            app.run("select llm.copy_checkpoint_thread('thread', 'copy')")
            app.run("select llm.stream_append_all('orders', '{1,2,3}'), llm.metric_record('m', 1), llm.group_create('orders', 'g')")
            app.run("select llm.channel_subscribe('ann', '{incidents:*}'), llm.set_stream_policy('orders', 100, '1 day')")
    for tenant in ("acme", "globex"):
        with app.tenant(tenant):
            app.run("select llm.group_read('orders', 'g', 'ann', 2)")
    # Past 2^31: what a 32-bit sequence or a client's int would lose.
    superuser.run("select setval('llm.config_history_id_seq', 3000000000)")
    admin.run("select llm.save_config('limit', '11')")


class Mover:
    """Takes databases to other servers in dumps."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: list[Database] = []

    def empty(self, cluster: Cluster) -> Database:
        """Return a new database without pg_llm and what it requires."""
        database = Database(cluster, f"moved_{next(_names)}")
        with cluster.connect() as connection:
            connection.execute(f"create database {database.name} template template0")
        self._made.append(database)
        return database

    def dump(self, database: Database, *options: str) -> Path:
        """Dump a database with pg_dump and return the file."""
        file = self._directory / f"{database.name}.dump"
        database.cluster.program("pg_dump", *options, "-f", file, database.name)
        return file

    def restore(self, file: Path, cluster: Cluster, *options: str) -> Database:
        """Restore a dump in pg_dump's own format into a new database; anything that pg_restore complains of raises."""
        database = self.empty(cluster)
        cluster.program("pg_restore", "--exit-on-error", *options, "-d", database.name, file)
        return database

    def run_script(self, file: Path, cluster: Cluster) -> Database:
        """Restore a dump in plain SQL with psql into a new database, all or nothing."""
        database = self.empty(cluster)
        cluster.program("psql", "-q", "-X", "-v", "ON_ERROR_STOP=1", "--single-transaction", "-f", file, "-d", database.name)
        return database

    def close(self) -> None:
        """Drop what was made."""
        for database in self._made:
            database.close()
            with database.cluster.connect() as connection:
                connection.execute(f"drop database {database.name} with (force)")
