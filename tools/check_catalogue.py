"""Rules that only a database can answer: what it should never hold once pg_llm is installed in it."""

from __future__ import annotations

import psycopg

from tools.check_sql import COMMITTING, FORBIDDEN_TYPES, INLINED

#: Tables with a tenant_id whose keys need not begin with it, and why.
NOT_BY_TENANT = {"llm.tenant_roles": "answers which tenant a role works for: looked up by role"}

_FUNCTIONS = "pg_proc p where p.pronamespace = 'llm'::regnamespace"
_FUNCTION = "p.oid::regprocedure"
_IN_LLM = "c.relnamespace = 'llm'::regnamespace"
_IS_TABLE = f"{_IN_LLM} and c.relkind in ('r', 'p')"
_HAS_TENANT = "exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped)"
_IS_BY_TENANT = f"{_HAS_TENANT} and c.oid::regclass::text <> all (%(not_by_tenant)s)"

#: All objects of the extension.
_MEMBERS = """
    select d.classid, d.objid
    from pg_depend d
    join pg_extension e on e.oid = d.refobjid
    where d.refclassid = 'pg_extension'::regclass and d.deptype = 'e' and e.extname = 'pg_llm'
    """

#: The tables of pg_llm and the types of their rows, with their numbers in pg_depend.
_STORAGE = f"""
    select 'pg_class'::regclass::oid as classid, c.oid as objid
    from pg_class c
    where {_IN_LLM} and c.relkind in ('r', 'p', 'v', 'm', 'S')
    union all
    select 'pg_type'::regclass, t.oid
    from pg_class c
    join pg_type t on c.reltype in (t.oid, t.typelem)
    where {_IN_LLM} and c.relkind in ('r', 'p', 'v', 'm')
    """

#: What is wrong, and a query for the names of all of which that is so.
_RULES = (
    (
        "does not pin a search_path that ends in pg_temp",
        f"""
        select {_FUNCTION}
        from {_FUNCTIONS}
            and p.proname <> all (%(inlined)s::text[] || %(committing)s::text[])
            and not exists (select from unnest(p.proconfig) s where s ~ '^search_path=.*\\mpg_temp$')
        """,
    ),
    (
        "is listed as inlined, but is not an SQL function without settings",
        f"""
        select {_FUNCTION}
        from {_FUNCTIONS}
            and p.proname = any (%(inlined)s)
            and (p.proconfig is not null or p.prolang <> (select oid from pg_language where lanname = 'sql'))
        """,
    ),
    ("has no comment", f"select {_FUNCTION} from {_FUNCTIONS} and obj_description(p.oid, 'pg_proc') is null"),
    (
        "is executable by PUBLIC",
        f"""
        select {_FUNCTION}
        from {_FUNCTIONS}
            and exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee = 0)
        """,
    ),
    ("is security definer, but not of llm_owner", f"select {_FUNCTION} from {_FUNCTIONS} and p.prosecdef and p.proowner <> 'llm_owner'::regrole"),
    (
        "is of llm_owner, but not security definer: a superuser who calls it trusts that role",
        f"select {_FUNCTION} from {_FUNCTIONS} and not p.prosecdef and p.proowner = 'llm_owner'::regrole",
    ),
    (
        "has no comment",
        """
        select t.oid::regtype
        from pg_type t
        left join pg_class c on c.oid = t.typrelid
        where t.typnamespace = 'llm'::regnamespace
            and t.typtype in ('c', 'd', 'e', 'r')
            and coalesce(c.relkind, 'c') = 'c'
            and obj_description(t.oid, 'pg_type') is null
        """,
    ),
    (
        "has no comment",
        f"""
        select c.oid::regclass
        from pg_class c
        where {_IN_LLM}
            and c.relkind in ('r', 'p', 'v', 'm')
            and not c.relispartition
            and obj_description(c.oid, 'pg_class') is null
        """,
    ),
    (
        "is granted to PUBLIC",
        f"""
        select c.oid::regclass
        from pg_class c
        where {_IN_LLM}
            and exists (select from aclexplode(c.relacl) a where a.grantee = 0)
        """,
    ),
    (
        "is a view with its owner's rights: create it with (security_invoker = true)",
        f"""
        select c.oid::regclass
        from pg_class c
        where {_IN_LLM}
            and c.relkind = 'v'
            and coalesce((select option_value::boolean from pg_options_to_table(c.reloptions) where option_name = 'security_invoker'), false) = false
        """,
    ),
    (
        "keeps tenants' rows in a materialized view, which has no row-level security",
        f"select c.oid::regclass from pg_class c where {_IN_LLM} and c.relkind = 'm' and {_HAS_TENANT}",
    ),
    (
        "has a tenant_id without forced row-level security",
        f"select c.oid::regclass from pg_class c where {_IS_TABLE} and {_HAS_TENANT} and not (c.relrowsecurity and c.relforcerowsecurity)",
    ),
    (
        "has a tenant_id that may be null",
        f"""
        select c.oid::regclass
        from pg_class c
        where {_IS_TABLE}
            and {_HAS_TENANT}
            and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attnotnull)
        """,
    ),
    (
        "has no primary key",
        f"""
        select c.oid::regclass
        from pg_class c
        where {_IS_TABLE}
            and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)
        """,
    ),
    (
        "is a key that does not begin with tenant_id: its errors tell one tenant of another's rows",
        f"""
        select i.indexrelid::regclass
        from pg_class c
        join pg_index i on i.indrelid = c.oid
        where {_IS_TABLE}
            and {_IS_BY_TENANT}
            and i.indisunique
            and (select a.attname from pg_attribute a where a.attrelid = c.oid and a.attnum = i.indkey[0]) is distinct from 'tenant_id'
        """,
    ),
    (
        "is asked for by a policy, but leads no index",
        f"""
        select distinct format('%%s.%%I', p.polrelid::regclass, a.attname)
        from pg_policy p
        join pg_class c on c.oid = p.polrelid
        join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid and d.refobjid = p.polrelid and d.refobjsubid > 0
        join pg_attribute a on a.attrelid = p.polrelid and a.attnum = d.refobjsubid
        where {_IN_LLM}
            and p.polpermissive
            and not exists (select from pg_index i where i.indrelid = p.polrelid and i.indkey[0] = a.attnum)
        """,
    ),
    (
        "is a number that ends at 2147483647: keys are bigint",
        f"""
        select format('%%s.%%I', c.oid::regclass, a.attname)
        from pg_class c
        join pg_attribute a on a.attrelid = c.oid
        where {_IS_TABLE}
            and a.atttypid in ('int2'::regtype, 'int4'::regtype)
            and (a.attidentity <> ''
                 or pg_get_serial_sequence(c.oid::regclass::text, a.attname) is not null
                 or exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary and i.indkey = a.attnum::text::int2vector))
        """,
    ),
    (
        "is of a type that must not be used",
        f"""
        select format('%%s.%%I', c.oid::regclass, a.attname)
        from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
        join pg_type t on t.oid = a.atttypid
        where {_IN_LLM}
            and coalesce((select e.typname from pg_type e where e.oid = t.typelem and t.typcategory = 'A'), t.typname) = any (%(forbidden)s)
            and c.relkind in ('r', 'p', 'v', 'm', 'c')
        """,
    ),
    (
        "takes or returns a type that must not be used",
        f"""
        select {_FUNCTION}
        from {_FUNCTIONS}
            and exists (select from pg_type t where t.typname = any (%(forbidden)s)
                        and t.oid = any (p.proargtypes::oid[] || p.prorettype || p.proallargtypes))
        """,
    ),
    (
        "counts money in binary fractions: use numeric",
        f"""
        select format('%%s.%%I', c.oid::regclass, a.attname)
        from pg_class c
        join pg_attribute a on a.attrelid = c.oid
        where {_IS_TABLE}
            and a.attname ~ '(cost|price|amount|budget|spend)'
            and a.atttypid in ('float4'::regtype, 'float8'::regtype)
        """,
    ),
    (
        # What llm.setup() makes anew may: triggers, policies, defaults, views. A column would take its data along.
        "is storage, but depends on a member of the extension: DROP EXTENSION CASCADE would drop it, and a restore may fail",
        f"""
        select distinct pg_describe_object(d.classid, d.objid, d.objsubid)
        from pg_depend d
        join ({_MEMBERS}) m on m.classid = d.refclassid and m.objid = d.refobjid
        where d.deptype in ('n', 'a')
            and (d.classid, d.objid) not in ({_MEMBERS})
            and d.classid not in ('pg_trigger'::regclass, 'pg_policy'::regclass, 'pg_rewrite'::regclass)
            and not exists (select from pg_class c where d.classid = 'pg_class'::regclass and c.oid = d.objid and c.relkind in ('c', 'v', 'm'))
            and not exists (select from pg_attrdef f join pg_attribute a on a.attrelid = f.adrelid and a.attnum = f.adnum
                            where d.classid = 'pg_attrdef'::regclass and f.oid = d.objid and a.attgenerated = '')
        """,
    ),
    (
        "is a member of the extension, but depends on storage: a restore makes it before the tables. Views belong into tables.sql",
        f"""
        select distinct pg_describe_object(m.classid, m.objid, 0)
        from ({_MEMBERS}) m
        left join pg_type t on m.classid = 'pg_type'::regclass and t.oid = m.objid
        left join pg_rewrite r on m.classid = 'pg_class'::regclass and r.ev_class = m.objid
        join pg_depend d on (d.classid, d.objid) in
            ((m.classid, m.objid), ('pg_class'::regclass, t.typrelid), ('pg_rewrite'::regclass, r.oid))
        join ({_STORAGE}) s on s.classid = d.refclassid and s.objid = d.refobjid
        where (s.classid, s.objid) <> (m.classid, m.objid)
        """,
    ),
    (
        "holds data, but is a member of the extension: a dump would leave its rows out",
        f"""
        select c.oid::regclass
        from pg_class c
        join ({_MEMBERS}) m on m.classid = 'pg_class'::regclass and m.objid = c.oid
        where c.relkind in ('r', 'p', 'm', 'S')
        """,
    ),
)


def catalogue_findings(connection: psycopg.Connection) -> list[str]:
    """Return what is wrong with schema llm of a database, for a superuser."""
    parameters = {
        "inlined": [signature.removeprefix("llm.").split("(")[0] for signature in INLINED],
        "committing": [signature.removeprefix("llm.").split("(")[0] for signature in COMMITTING],
        "not_by_tenant": list(NOT_BY_TENANT),
        "forbidden": list(FORBIDDEN_TYPES),
    }
    return sorted(f"{name} {message}" for message, query in _RULES for (name,) in connection.execute(query, parameters))
