create function llm._boot()
    returns void
    language plpython3u
    volatile
    set search_path = pg_catalog, pg_temp
as $$
import ctypes
import importlib.util
import os
import sys

# The running server's $libdir. A path fixed at build time would not survive pg_upgrade to another major version.
libdir = os.fsdecode((ctypes.c_char * 1024).in_dll(ctypes.CDLL(None), "pkglib_path").value)
directory = os.path.join(libdir, "pg_llm", "@VERSION@")
module = "pg_llm_" + "@VERSION@".replace(".", "_")
spec = importlib.util.spec_from_file_location(
    module, os.path.join(directory, "__init__.py"), submodule_search_locations=[directory]
)
package = importlib.util.module_from_spec(spec)
sys.modules[module] = package
try:
    spec.loader.exec_module(package)
except OSError as error:
    del sys.modules[module]
    plpy.error(
        f"the Python package of pg_llm @VERSION@ cannot be read: {error}",
        hint="On this server run make install from the sources of pg_llm @VERSION@.",
        sqlstate="58P01",
    )
GD["pg_llm@@VERSION@"] = package
$$;

comment on function llm._boot() is
'Loads the Python package that belongs to this version of the extension and keeps it in GD.';


create function llm.version()
    returns text
    language sql
    immutable
    parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select '@VERSION@'
$$;

comment on function llm.version() is
'The version of the installed code, such as 0.1.0. The storage can lag behind it: see llm.schema_migrations.';


create function llm.uuid_v7()
    returns uuid
    language plpgsql
    volatile
    parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_microseconds bigint;
    v_bytes        bytea;
begin
    if current_setting('server_version_num')::integer >= 180000 then
        return uuidv7();
    end if;
    -- RFC 9562 section 6.2, method 3: the fraction of the millisecond fills the 12 bits after the version.
    v_microseconds := extract(epoch from clock_timestamp()) * 1000000;
    v_bytes := substring(int8send(v_microseconds / 1000) from 3)
        || substring(int8send(28672 + (v_microseconds % 1000) * 4096 / 1000) from 7)
        || substring(uuid_send(gen_random_uuid()) from 9);
    return encode(v_bytes, 'hex')::uuid;
end
$$;

comment on function llm.uuid_v7() is
'A new UUID of version 7 (RFC 9562): its order is the order of time, to the microsecond. On PostgreSQL 18 the server''s own.';


create function llm.clean_text(
    p_bytes bytea
)
    returns text
    language plpython3u
    immutable
    strict
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import text
return text.clean_bytes(p_bytes)
$$;

comment on function llm.clean_text(bytea) is
'Text that PostgreSQL can store, from UTF-8 bytes as a model or a PDF gave them. Nothing is lost: NUL, lone surrogates, bytes
that are not UTF-8, and the mark U+241B itself become U+241B and four hexadecimal digits; llm.original_bytes turns them back.
p_bytes: any bytes. Result: text without NUL.';


create function llm.original_bytes(
    p_text text
)
    returns bytea
    language plpython3u
    immutable
    strict
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import text
return text.original_bytes(p_text)
$$;

comment on function llm.original_bytes(text) is
'The bytes that llm.clean_text was given. p_text: its result. Text without a mark comes back as its own UTF-8 bytes.';


create function llm.clean_jsonb(
    p_json text
)
    returns jsonb
    language plpython3u
    immutable
    strict
    set search_path = pg_catalog, pg_temp
as $$
from pg_llm import text
return text.clean_json(p_json)
$$;

comment on function llm.clean_jsonb(text) is
'jsonb from a JSON text whose strings may escape NUL (\u0000) or lone surrogates, which jsonb refuses (SQLSTATE 22P05). They are
marked as llm.clean_text marks them. p_json: one JSON value. Errors: invalid_text_representation when it is not JSON.';


create function llm._bound_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text;
begin
    -- The login role first: SET ROLE to a group that it is a member of must not set it free.
    select r.tenant_id into v_tenant from llm.tenant_roles r where r.role_name = session_user;
    if not found and current_user <> session_user then
        select r.tenant_id into v_tenant from llm.tenant_roles r where r.role_name = current_user;
    end if;
    return v_tenant;
end
$$;

comment on function llm._bound_tenant() is
'The tenant that llm.tenant_roles binds the login role, else the current role, to; null when neither is bound.';


create function llm.current_tenant()
    returns text
    language plpgsql
    stable
    parallel safe
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._bound_tenant();
begin
    if v_tenant is not null then
        return v_tenant;
    end if;

    -- After a transaction with SET LOCAL a setting is '', not null. What is global is nobody's tenant.
    v_tenant := nullif(current_setting('llm.tenant', true), '');
    if v_tenant = '*' or v_tenant is not null
        and current_setting('llm.tenant_set_at', true) is distinct from date_part('epoch', now())::text
    then
        raise exception 'tenant % was not set by llm.set_tenant() in this transaction', v_tenant
            using errcode = 'object_not_in_prerequisite_state',
                  detail = 'A setting that outlives its transaction reaches the next client of a connection pool.',
                  hint = format('Run: select llm.set_tenant(%L); as the first statement of each transaction.', v_tenant);
    end if;
    return v_tenant;
end
$$;

comment on function llm.current_tenant() is
'The tenant that this transaction works for, or null: that of the login or current role in llm.tenant_roles, else the one given to llm.set_tenant.
Errors: object_not_in_prerequisite_state when llm.tenant was set in any other way.';


-- security definer: row-level security shows a role its own binding only, and the answer concerns all of them.
create function llm._any_role_is_bound()
    returns boolean
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (select from llm.tenant_roles);
end
$$;

alter function llm._any_role_is_bound() owner to llm_owner;

comment on function llm._any_role_is_bound() is
'Whether llm.tenant_roles binds any role to a tenant.';


create function llm._claimed_tenant()
    returns text
    language sql
    stable
    parallel safe
as $$
    select case
        when pg_catalog.current_setting('llm.tenant_set_at', true)
             operator(pg_catalog.=) pg_catalog.date_part('epoch', pg_catalog.now())::pg_catalog.text
            then pg_catalog.current_setting('llm.tenant', true)
        else llm.current_tenant()
    end
$$;

comment on function llm._claimed_tenant() is
'llm.current_tenant() for hot paths: inlined, without the look-up of the role''s own tenant. Who trusts it must check llm.tenant_roles.';


create function llm.set_tenant(
    p_tenant text
)
    returns text
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_bound text;
begin
    if p_tenant is null or p_tenant = '*' or length(p_tenant) not between 1 and 100 or p_tenant ~ '[[:cntrl:]]' then
        raise exception 'tenant % cannot be set', coalesce(quote_literal(p_tenant), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'A tenant is 1 to 100 printable characters; * stands for what is global.';
    end if;

    v_bound := llm._bound_tenant();
    if v_bound <> p_tenant then
        raise exception 'role % works for tenant % only', session_user, v_bound
            using errcode = 'insufficient_privilege',
                  hint = 'llm.tenant_roles decides, for the login role first; llm_admin can change it.';
    end if;

    perform set_config('llm.tenant', p_tenant, true);
    perform set_config('llm.tenant_set_at', date_part('epoch', now())::text, true);
    return p_tenant;
end
$$;

comment on function llm.set_tenant(text) is
'Sets the tenant for the rest of this transaction. p_tenant: 1 to 100 printable characters. Returns it.
Errors: invalid_parameter_value for a bad name; insufficient_privilege when the role is bound to another tenant.';


create function llm.bind_role(
    p_role   name,
    p_tenant text
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if to_regrole(quote_ident(p_role)) is null then
        raise exception 'role % does not exist', p_role
            using errcode = 'undefined_object',
                  hint = 'Create the role first, and grant it llm_app or llm_reader.';
    end if;

    if p_tenant is null then
        delete from llm.tenant_roles where role_name = p_role;
    else
        insert into llm.tenant_roles (role_name, tenant_id)
        values (p_role, p_tenant)
        on conflict (role_name) do update set tenant_id = excluded.tenant_id;
    end if;
end
$$;

comment on function llm.bind_role(name, text) is
'Binds a role to one tenant, whatever it sets: for roles that may send SQL of their own. p_role: an existing role; p_tenant: its tenant, null to
unbind. For llm_admin. Errors: undefined_object when there is no such role; check_violation for a bad tenant.';


create function llm._acting_role()
    returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select session_user || coalesce(' as ' || nullif(current_setting('role'), 'none'), '')
$$;

comment on function llm._acting_role() is
'Who acts, for history: the login role, and the role that it was set to, such as app or app as llm_admin. Also right inside security definer.';


create function llm._protect_tenant_table(
    p_table          regclass,
    p_app_privileges text default 'select, insert, update, delete'
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    execute format('alter table %s owner to llm_owner', p_table);
    execute format('alter table %s alter column tenant_id set default llm.current_tenant()', p_table);
    execute format('alter table %s enable row level security', p_table);
    execute format('alter table %s force row level security', p_table);
    execute format('drop policy if exists tenant_isolation on %s', p_table);
    execute format('create policy tenant_isolation on %s using (tenant_id = (select llm.current_tenant()))'
                   ' with check (tenant_id = (select llm.current_tenant()))', p_table);
    execute format('grant %s on %s to llm_admin, llm_app', p_app_privileges, p_table);
    execute format('grant select on %s to llm_reader', p_table);
end
$$;

comment on function llm._protect_tenant_table(regclass, text) is
'What every table with a tenant_id gets: owner, forced row-level security by tenant, grants (p_app_privileges: those of llm_admin and
llm_app). Row-level security evaluates the tenant once a statement, because the policy asks for it in a sub-select.';


create function llm._may_write_global()
    returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_has_role(current_user, 'llm_admin', 'usage')
$$;

comment on function llm._may_write_global() is
'Whether the current role may change what is global (tenant *): members of llm_admin and superusers.';


create function llm._writable_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm.current_tenant();
begin
    if v_tenant is null and not llm._may_write_global() then
        raise exception 'no tenant is set'
            using errcode = 'object_not_in_prerequisite_state',
                  detail = 'Without a tenant only llm_admin may write: the values are then global.',
                  hint = 'Run: select llm.set_tenant(''…''); as the first statement of the transaction, or llm.bind_role() for the role.';
    end if;
    return coalesce(v_tenant, '*');
end
$$;

comment on function llm._writable_tenant() is
'The tenant whose rows this transaction may write; * (global) for llm_admin without a tenant.
Errors: object_not_in_prerequisite_state when no tenant is set.';


create type llm.migration as (
    name        text,
    version     text,
    checksum    text,
    applied_at  timestamptz,
    duration    interval
);

comment on type llm.migration is
'A step that was applied to the storage: its name (a subsystem''s tables, or subsystem/number_title), the version of pg_llm that
brought it, the SHA-256 of its text, when it was applied and how long that took.';


create function llm._require_storage()
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_storage text;
begin
    if to_regclass('llm.schema_migrations') is not null then
        select version into v_storage
        from llm.schema_migrations
        where name = 'storage'
            and checksum = llm._storage_checksum();
        if found then
            return;
        end if;
        select version into v_storage from llm.schema_migrations where name = 'storage';
    end if;

    raise exception 'the storage of pg_llm is at %, its code at %', coalesce('version ' || v_storage, 'no version'), llm.version()
        using errcode = 'object_not_in_prerequisite_state',
              hint = 'As a superuser run: select llm.setup();';
end
$$;

comment on function llm._require_storage() is
'Refuses to go on when the storage is not what this version of the code expects.
Errors: object_not_in_prerequisite_state, with the call that mends it in the HINT.';


create function llm._refuse_foreign_storage()
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_foreign text;
begin
    if not (select rolsuper from pg_roles where rolname = current_user) then
        raise exception 'role % may not change the storage of pg_llm', current_user
            using errcode = 'insufficient_privilege',
                  hint = 'Run it as a superuser.';
    end if;

    select format('%s belongs to %I', c.oid::regclass, c.relowner::regrole)
    into v_foreign
    from pg_class c
    where c.relnamespace = 'llm'::regnamespace
        and c.relkind <> 'c'
        and c.relowner <> 'llm_owner'::regrole
    order by c.oid
    limit 1;
    if found then
        raise exception 'the storage of pg_llm is not touched: %', v_foreign
            using errcode = 'insufficient_privilege',
                  hint = 'Move it out of schema llm, or give it to llm_owner if it is pg_llm''s own.';
    end if;
end
$$;

comment on function llm._refuse_foreign_storage() is
'Guards llm.setup(): only a superuser, and only while every relation in schema llm belongs to llm_owner.
Errors: insufficient_privilege.';


create function llm._record_migration(
    p_name       text,
    p_version    text,
    p_checksum   text,
    p_started_at timestamptz
)
    returns llm.migration
    language sql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
    insert into llm.schema_migrations as m (name, version, checksum, applied_at, duration)
    values (p_name, p_version, p_checksum, p_started_at, clock_timestamp() - p_started_at)
    on conflict (name) do update
        set version = excluded.version,
            checksum = excluded.checksum,
            applied_at = excluded.applied_at,
            duration = excluded.duration
    returning m.name, m.version, m.checksum, m.applied_at, m.duration
$$;

comment on function llm._record_migration(text, text, text, timestamptz) is
'Notes in llm.schema_migrations that a step was applied, and returns that row.';


create function llm.setup()
    returns setof llm.migration
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '10s'
    set client_min_messages = warning
as $$
declare
    v_is_new  boolean;
    v_known   text;
    v_started timestamptz;
    v_step    record;
begin
    perform llm._refuse_foreign_storage();
    perform pg_advisory_xact_lock(hashtext('llm.setup'));
    v_is_new := to_regclass('llm.schema_migrations') is null;

    -- Numbered migrations bring older tables to the shape that tables.sql describes; new storage has that shape at once.
    for v_step in select * from llm._storage_scripts() s where s.kind = 'up' and not v_is_new order by s.ordinal loop
        select m.checksum into v_known from llm.schema_migrations m where m.name = v_step.name;
        if not found then
            v_started := clock_timestamp();
            execute v_step.script;
            return next llm._record_migration(v_step.name, v_step.version, v_step.checksum, v_started);
        elsif v_known <> v_step.checksum then
            raise exception 'migration % is not the one that was applied', v_step.name
                using errcode = 'object_not_in_prerequisite_state',
                      detail = format('Applied: %s. In this version: %s.', v_known, v_step.checksum),
                      hint = 'A released migration must not change. Install the release that it came from.';
        end if;
    end loop;

    for v_step in select * from llm._storage_scripts() s where s.kind = 'tables' order by s.ordinal loop
        v_started := clock_timestamp();
        execute v_step.script;
        if not exists (select from llm.schema_migrations m where m.name = v_step.name and m.checksum = v_step.checksum) then
            return next llm._record_migration(v_step.name, v_step.version, v_step.checksum, v_started);
        end if;
    end loop;

    for v_step in select * from llm._storage_scripts() s where s.kind = 'up' and v_is_new order by s.ordinal loop
        return next llm._record_migration(v_step.name, v_step.version, v_step.checksum, clock_timestamp());
    end loop;

    perform llm._record_migration('storage'::text, llm.version(), llm._storage_checksum(), clock_timestamp());
    perform llm._coherence_raise_all();
end
$$;

comment on function llm.setup() is
'Brings the storage to what this version of pg_llm needs: applies pending migrations in order, then creates what is missing. Idempotent, all
or nothing, waits at most 10 s for a lock. CREATE EXTENSION calls it; call it again after ALTER EXTENSION pg_llm UPDATE. For superusers.
Returns the steps that it applied, none when nothing was pending.
Errors: insufficient_privilege, lock_not_available, object_not_in_prerequisite_state when a migration changed after it was applied.';


create function llm.migrate()
    returns setof llm.migration
    language sql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
    select * from llm.setup()
$$;

comment on function llm.migrate() is
'llm.setup() by the name that its counterpart llm.migrate_down() suggests.';


create function llm.migrate_down(
    p_steps integer default 1
)
    returns setof llm.migration
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '10s'
    set client_min_messages = warning
as $$
declare
    v_step  record;
    v_count integer := 0;
begin
    perform llm._refuse_foreign_storage();
    if p_steps is null or p_steps < 1 then
        raise exception 'cannot go down % steps', coalesce(p_steps::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give the number of migrations to undo, at least 1.';
    end if;
    perform pg_advisory_xact_lock(hashtext('llm.setup'));

    for v_step in
        select m.name, m.version, m.checksum, m.applied_at, m.duration, s.script
        from llm.schema_migrations m
        join llm._storage_scripts() s on s.name = m.name and s.kind = 'down'
        order by s.ordinal desc
        limit p_steps
    loop
        execute v_step.script;
        delete from llm.schema_migrations m where m.name = v_step.name;
        v_count := v_count + 1;
        return next (v_step.name, v_step.version, v_step.checksum, v_step.applied_at, v_step.duration)::llm.migration;
    end loop;

    if v_count < p_steps then
        raise exception 'only % of % migrations can be undone', v_count, p_steps
            using errcode = 'invalid_parameter_value',
                  hint = 'Nothing was changed. llm.schema_migrations lists what is applied; only numbered migrations can be undone.';
    end if;
    perform llm._forget_setup();
end
$$;

comment on function llm.migrate_down(integer) is
'Undoes the last migrations, newest first, all or nothing. The functions of pg_llm then refuse to work until llm.setup() or an older release
of pg_llm fits the storage again. Tables that a later version added stay, with their rows. p_steps: how many, at least 1. For superusers.
Returns what it undid. Errors: invalid_parameter_value when fewer can be undone; insufficient_privilege; lock_not_available.';


create function llm._forget_setup()
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    update llm.schema_migrations set checksum = '' where name = 'storage';
    perform llm._coherence_raise_all();
end
$$;

comment on function llm._forget_setup() is
'Makes every function ask for llm.setup() first: the storage may lack what it needs (triggers, policies, defaults).';


grant execute on function
    llm._boot, llm.version, llm.uuid_v7, llm.clean_text, llm.original_bytes, llm.clean_jsonb,
    llm._bound_tenant, llm.current_tenant, llm._claimed_tenant, llm._any_role_is_bound, llm.set_tenant, llm._require_storage, llm._storage_checksum
to llm_owner, llm_admin, llm_app, llm_reader, llm_auditor;

grant execute on function llm._writable_tenant, llm._may_write_global to llm_admin, llm_app;
grant execute on function llm._acting_role to llm_owner;
grant execute on function llm.bind_role to llm_admin;
