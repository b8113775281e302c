"""Traps: objects of an attacker that say so when somebody's query finds them instead of what it meant."""

from __future__ import annotations

from dataclasses import dataclass, field

from psycopg.errors import Diagnostic

from tests.support import Client

#: Types whose operators and functions are planted: those that our code computes with.
_TYPES = (
    'text, name, jsonb, bigint, integer, smallint, oid, regclass, boolean, bytea, uuid, xid8, timestamptz, interval, double precision,'
    ' numeric, "char", text[], name[]'
)

#: Counted by a sequence, because a capture that is rolled back was one too; named by a warning.
_CAPTURE = """
    create sequence evil.captures;
    grant usage, select on sequence evil.captures to public;
    create function evil.capture(p_what pg_catalog.text) returns pg_catalog.bool language plpgsql as $$
    begin
        perform pg_catalog.nextval('evil.captures');
        raise warning 'captured as %: %', current_user, p_what;
        return true;
    end
    $$;
"""

#: Each operator and function of the system over those types, each of its types as a domain, and a cast.
_PLANT = f"""
    do $plant$
    declare
        v_types  constant oid[] := '{{{_TYPES.replace('"', chr(92) + '"')}}}'::regtype[]::oid[];
        v_create constant text := 'create function evil.%I(%s) returns %s language plpgsql as %L';
        v_body   constant text := 'begin perform evil.capture(%L); %s end';
        v        record;
    begin
        for v in
            select o.oid::regoperator::text as name, o.oprname, o.oprleft::regtype as l, o.oprright::regtype as r, o.oprresult::regtype as result
            from pg_operator o
            where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprleft = any (v_types) and o.oprright = any (v_types)
        loop
            execute format(v_create, 'operator ' || v.name, v.l || ', ' || v.r, v.result, format(v_body, v.name, 'return null;'));
            execute format('create operator evil.%s (function = evil.%I, leftarg = %s, rightarg = %s)', v.oprname, 'operator ' || v.name, v.l, v.r);
        end loop;

        for v in
            select p.oid::regprocedure::text as name, p.proname, oidvectortypes(p.proargtypes) as arguments, p.prorettype::regtype as result,
                   case when p.prorettype <> 'void'::regtype then 'return null;' end as answer
            from pg_proc p
            where p.pronamespace = 'pg_catalog'::regnamespace
                and p.prokind = 'f'
                and not p.proretset
                and p.provariadic = 0
                and p.proargtypes::oid[] <@ v_types
                and p.prorettype = any (v_types || 'void'::regtype::oid)
        loop
            execute format(v_create, v.proname, v.arguments, v.result, format(v_body, v.name, v.answer));
        end loop;
        execute format(v_create, 'format', 'text, text', 'text', format(v_body, 'format', 'return null;'));
        execute format(v_create, 'format', 'text, text, text', 'text', format(v_body, 'format', 'return null;'));

        for v in
            select t.typname from pg_type t
            where t.typnamespace = 'pg_catalog'::regnamespace and t.typtype = 'b' and t.typcategory <> 'A' and t.typname !~ '^(_|pg_)'
        loop
            execute format('create domain evil.%I as pg_catalog.text check (evil.capture(%L))', v.typname, 'type ' || v.typname);
        end loop;

        create type evil.bait as (bait pg_catalog.text);
        create function evil.bait(pg_catalog.text) returns evil.bait language plpgsql as
            $$ begin perform evil.capture('cast'); return null; end $$;
        create cast (pg_catalog.text as evil.bait) with function evil.bait(pg_catalog.text) as implicit;
    end
    $plant$
"""

#: Beside each function, what resolution of overloads would rather take for an untyped literal, a shorter number or fewer arguments.
_PLANT_OVERLOADS = """
    do $plant$
    declare
        v record;
    begin
        for v in
            with ours as (
                select p.oid, p.proname, p.proargtypes::oid[] as types, p.pronargs, p.pronargdefaults,
                       pg_get_function_result(p.oid) as result
                from pg_proc p
                where p.pronamespace = 'llm'::regnamespace and p.prokind = 'f' and p.prorettype <> 'trigger'::regtype
            ),
            planted as (
                select o.oid, o.proname, o.result,
                       array(select case when a.position = s.position then r.replacement else a.type::regtype end
                             from unnest(o.types) with ordinality a (type, position) order by a.position) as types
                from ours o
                cross join unnest(o.types) with ordinality s (type, position)
                join (values
                    ('bigint'::regtype, 'integer'::regtype), ('bigint', 'text'), ('integer', 'smallint'), ('integer', 'text'),
                    ('text', 'name'), ('text', 'character varying'), ('jsonb', 'json'), ('jsonb', 'text'), ('name', 'text'),
                    ('timestamptz', 'date'), ('timestamptz', 'text'), ('regclass', 'text'), ('regclass', 'oid'), ('xid8', 'text'),
                    ('boolean', 'text'), ('text[]', 'text'), ('text[]', 'name[]'), ('bytea', 'text'), ('uuid', 'text')
                ) r (type, replacement) on r.type = s.type
                union
                select o.oid, o.proname, o.result, o.types[1:o.pronargs - fewer]::regtype[]
                from ours o
                cross join generate_series(1, o.pronargdefaults) fewer
            )
            select distinct on (p.proname, p.types) p.*
            from planted p
            where not exists (select from ours o where o.proname = p.proname and o.types = p.types::oid[])
        loop
            execute format('create function llm.%I(%s) returns %s language plpgsql as %L',
                           v.proname, array_to_string(v.types, ', '), v.result,
                           format('begin perform evil.capture(%L); raise exception %L; end', v.oid::regprocedure, 'captured'));
            execute format('grant execute on function llm.%I(%s) to public', v.proname, array_to_string(v.types, ', '));
        end loop;
    end
    $plant$
"""


@dataclass
class Traps:
    """What the traps have caught so far."""

    db: Client
    warnings: list[str] = field(default_factory=list)

    def watch(self, client: Client) -> Client:
        """Note the names of what a client is caught by."""
        client.connection.add_notice_handler(self._note)
        return client

    def caught(self) -> set[str]:
        """Return what was captured, each with the role that it ran as."""
        count = self.db.one("select case when is_called then last_value else 0 end from evil.captures")
        names = {warning for warning in self.warnings if warning.startswith("captured")}
        return names or ({f"{count} captures"} if count else set())

    def _note(self, diagnostic: Diagnostic) -> None:
        self.warnings.append(diagnostic.message_primary or "")


def plant(db: Client) -> Traps:
    """Fill schema evil, which belongs to role nobody, with traps for names that a search_path may find there first."""
    db.run("create schema evil authorization nobody").run("grant usage on schema evil to public")
    db.run("set role nobody").run(_CAPTURE).run(_PLANT).run("reset role")
    return Traps(db)


def plant_overloads(db: Client) -> Traps:
    """Let role nobody create functions in schema llm itself, beside ours."""
    db.run("create schema evil authorization nobody").run("grant usage on schema evil to public").run("grant create, usage on schema llm to nobody")
    db.run("set role nobody").run(_CAPTURE).run(_PLANT_OVERLOADS).run("reset role")
    return Traps(db)
