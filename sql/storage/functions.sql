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
    returns boolean
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
        where name = 'pg_llm'
            and checksum = llm._storage_checksum();
        if found then
            return true;
        end if;
        select version into v_storage from llm.schema_migrations where name = 'pg_llm';
    end if;

    raise exception 'the storage of pg_llm is at %, its code at %', coalesce('version ' || v_storage, 'no version'), llm.version()
        using errcode = 'object_not_in_prerequisite_state',
              hint = 'As a superuser run: select llm.setup();';
end
$$;

comment on function llm._require_storage() is
'Refuses to go on when the storage is not what this version of the code expects; else true.
Errors: object_not_in_prerequisite_state, with the call that mends it in the HINT.';


create function llm._storage_is_of_this_server()
    returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(
        (
            select m.server_id = s.system_identifier
            from llm.schema_migrations m
            cross join pg_control_system() s
            where m.name = 'pg_llm'
        ),
        true
    )
$$;

comment on function llm._storage_is_of_this_server() is
'Whether llm.setup() ran on this server: not so after a dump was restored into another, whose transaction ids mean nothing here.';


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


create function llm._refuse_newer_storage()
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_unknown text;
begin
    select m.name
    into v_unknown
    from llm.schema_migrations m
    where m.name like '%/%'
        and m.name not in (select s.name from llm._storage_scripts() s)
    order by m.name
    limit 1;
    if found then
        raise exception 'the storage has migration %, which pg_llm % does not know', v_unknown, llm.version()
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Install the newer release again, and there run: select llm.migrate_down();';
    end if;
end
$$;

comment on function llm._refuse_newer_storage() is
'Guards llm.setup(): an older release must not take a newer one''s storage for its own. Errors: object_not_in_prerequisite_state.';


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
    insert into llm.schema_migrations as m (name, version, checksum, applied_at, duration, server_id)
    select p_name, p_version, p_checksum, p_started_at, clock_timestamp() - p_started_at, s.system_identifier
    from pg_control_system() s
    on conflict (name) do update
        set version = excluded.version,
            checksum = excluded.checksum,
            applied_at = excluded.applied_at,
            duration = excluded.duration,
            server_id = excluded.server_id
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
    if not v_is_new then
        perform llm._refuse_newer_storage();
    end if;

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

    perform llm._record_migration('pg_llm'::text, llm.version(), llm._storage_checksum(), clock_timestamp());
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
        select m.name, m.version, m.checksum, m.applied_at, m.duration, d.script
        from llm.schema_migrations m
        join llm._storage_scripts() u on u.name = m.name and u.kind = 'up'
        left join llm._storage_scripts() d on d.name = m.name and d.kind = 'down'
        order by u.ordinal desc
        limit p_steps
    loop
        exit when v_step.script is null;
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
    update llm.schema_migrations set checksum = '' where name = 'pg_llm';
    perform llm._coherence_raise_all();
end
$$;

comment on function llm._forget_setup() is
'Makes every function ask for llm.setup() first: the storage may lack what it needs (triggers, policies, defaults).';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader', 'llm_auditor'],
    '_require_storage', '_storage_checksum', '_storage_is_of_this_server'
);

select llm._grant_execute(
    array['llm_admin', 'llm_auditor'],
    '_storage_scripts'
);
