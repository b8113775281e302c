create function llm.partition_plan(
    p_table regclass default null
)
    returns setof llm.partition_action
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
begin
    return query
        select a.*
        from llm.partition_sets s
        cross join lateral llm._plan(s.parent) a
        where p_table is null or s.parent = llm._partition_parent(p_table)
        order by s.parent;
end
$$;

comment on function llm.partition_plan(regclass) is
'What llm.manage_partitions() would do now, and why, without doing it: a row for each partition. p_table: null for all tables. For superusers.';


create function llm._plan(
    p_parent text
)
    returns setof llm.partition_action
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if llm._partition_table(p_parent) is null then
        return next (p_parent, 'forget', null, null, null, 'the table is gone')::llm.partition_action;
    else
        return query select * from llm._plan_making(p_parent);
        return query select * from llm._plan_dropping(p_parent);
    end if;
end
$$;

comment on function llm._plan(text) is
'llm.partition_plan() for one table in llm.partition_sets, also when it is gone.';


create function llm._plan_making(
    p_parent text
)
    returns setof llm.partition_action
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
declare
    v_table   regclass := llm._partition_table(p_parent);
    v_schema  text := split_part(p_parent, '.', 1);
    v_set     record;
    v_window  record;
    v_default regclass;
begin
    select * into strict v_set from llm.partition_sets s where s.parent = p_parent;
    select * into strict v_window from llm._partition_window(v_set.partition_interval, v_set.retention_days);
    select p.partition into v_default from llm._partitions(v_table) p where p.is_default;

    return query
        select p_parent, 'finish', p.partition::text, p.begins_at, p.ends_at, 'detaching it concurrently was interrupted'
        from llm._partitions(v_table) p
        where p.is_half_detached;

    return query
        select
            p_parent,
            case when d.fits then 'move' else 'keep' end,
            case when d.fits then format('%I.%I', v_schema, llm._partition_name(v_table, d.begins_at)) else v_default::text end,
            d.begins_at,
            d.ends_at,
            format('rows in %s: %s%s', v_default, d.row_count, case when not d.fits then ', too far from now for a partition of their own' end)
        from llm._default_rows(v_table, v_default) d;

    if not found and pg_relation_size(v_default) > 0 then
        return next (p_parent, 'move', v_default::text, null, null, 'no rows, but the space of some')::llm.partition_action;
    end if;

    return query
        with present as (
            select p.begins_at, p.ends_at from llm._partitions(v_table) p where not p.is_default and not p.is_half_detached
            union all
            select d.begins_at, d.ends_at from llm._default_rows(v_table, v_default) d where d.fits
        ),
        -- From the first partition there is; from the one before the present when there is none, for rows that come late.
        bounds as (
            select p.begins_at, p.ends_at from present p
            union all
            select
                '-infinity',
                least(v_window.now_at - v_set.partition_interval, min(case when isfinite(p.begins_at) then p.begins_at else p.ends_at end))
            from present p
        ),
        gaps as (
            select
                max(b.ends_at) over (order by b.begins_at, b.ends_at) as begins_at,
                lead(b.begins_at, 1, v_window.ends_at) over (order by b.begins_at, b.ends_at) as ends_at
            from bounds b
        )
        select
            p_parent,
            case when n.is_taken then 'keep' else 'make' end,
            n.name,
            s.at,
            s.at + v_set.partition_interval,
            case
                when n.is_taken then 'missing, but a table of this name is there: attach it, or rename it'
                when s.at > v_window.now_at then 'made ahead'
                else 'missing'
            end
        from gaps g
        cross join generate_series(
            greatest(g.begins_at, v_window.begins_at), least(g.ends_at, v_window.ends_at) - interval '1 us', v_set.partition_interval
        ) s (at)
        cross join lateral (select format('%I.%I', v_schema, llm._partition_name(v_table, s.at))) f (name)
        cross join lateral (select f.name, to_regclass(f.name) is not null) n (name, is_taken)
        where g.begins_at < g.ends_at
        order by s.at;
end
$$;

comment on function llm._plan_making(text) is
'The part of llm.partition_plan() about partitions that are missing and rows that wait for them.';


create function llm._plan_dropping(
    p_parent text
)
    returns setof llm.partition_action
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
declare
    v_set       record;
    v_partition record;
    v_due       timestamptz;
    v_action    text;
    v_reason    text;
begin
    select * into strict v_set from llm.partition_sets s where s.parent = p_parent;
    for v_partition in
        select *
        from llm._partitions(llm._partition_table(p_parent)) p
        where not p.is_default
            and not p.is_half_detached
        order by p.begins_at
    loop
        v_due := v_partition.ends_at + make_interval(days => v_set.retention_days);
        v_action := 'keep';
        if v_due is null then
            v_reason := 'kept for ever';
        elsif v_due > now() then
            v_reason := format('kept until %s', v_due);
        elsif not llm._may_be_dropped(v_set.before_drop, v_partition.partition, false) then
            v_reason := format('its rows were due at %s, but llm.%s() does not agree', v_due, v_set.before_drop);
        else
            v_action := 'drop';
            v_reason := format('its rows were due at %s', v_due);
        end if;
        return next (p_parent, v_action, v_partition.partition::text, v_partition.begins_at, v_partition.ends_at, v_reason)::llm.partition_action;
    end loop;
end
$$;

comment on function llm._plan_dropping(text) is
'The part of llm.partition_plan() about partitions that are there, and whether they are kept.';


create procedure llm.manage_partitions(
    inout p_ok boolean default null
)
    language plpgsql
as $$
declare
    v_tables pg_catalog.text[] := array(select s.parent from llm.partition_sets s order by s.parent);
    v_table  pg_catalog.text;
    v_action llm.partition_action;
    v_done   boolean;
begin
    perform llm._require_storage();
    p_ok := true;
    foreach v_table in array v_tables loop
        <<steps>>
        foreach v_action in array llm._begin_maintenance(v_table) loop
            commit;
            for v_attempt in 1 .. 3 loop
                v_done := llm._attempt(v_action, v_attempt);
                exit steps when v_done is null;
                exit when v_done;
                -- Those who queued up behind the lock that was waited for go first.
                commit;
                perform pg_catalog.pg_sleep(0.5::pg_catalog.float8);
            end loop;
        end loop;
        p_ok := llm._end_maintenance(v_table) and p_ok;
        commit;
    end loop;
end
$$;

comment on procedure llm.manage_partitions(boolean) is
'Does all that llm.partition_plan() says, each step in a transaction of its own: no table waits for another, none is spoilt by another. A step
waits at most 1 s for a lock, so that nobody waits longer behind it; after three times the table is left alone. What fails is a WARNING, stays in
llm.partition_status, and is due again at the next call. Call it outside of a transaction, about every hour: see llm.schedule_maintenance(). For
superusers. p_ok: leave it out; the row that is returned says whether everything was done.';


-- Planning only reads: who waits longer than a step does, keeps nobody waiting behind.
create function llm._begin_maintenance(
    p_parent text
)
    returns llm.partition_action[]
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '10s'
as $$
declare
    v_plan  llm.partition_action[] := '{}';
    v_error text;
begin
    begin
        v_plan := array(select a::llm.partition_action from llm._plan(p_parent) a where a.action <> 'keep');
    exception
        when others then
            v_error := sqlerrm;
    end;
    -- Last, because others that are at work note what they do in the same row.
    update llm.partition_sets s
    set last_run_at = clock_timestamp(),
        last_error = null,
        last_actions = '{}'
    where s.parent = p_parent;
    if v_error is not null then
        perform llm._note_failure(p_parent, 'plan'::text, v_error);
    end if;
    return v_plan;
end
$$;

comment on function llm._begin_maintenance(text) is
'Notes that maintenance of a table begins, and returns what is to be done.';


create function llm._attempt(
    p_action llm.partition_action,
    p_number integer
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '1s'
as $$
declare
    v_done text := concat_ws(' ', p_action.action, p_action.partition_name);
begin
    begin
        if llm._carry_out(p_action) then
            update llm.partition_sets s set last_actions = s.last_actions || v_done where s.parent = p_action.table_name;
        end if;
        return true;
    exception
        when lock_not_available or deadlock_detected then
            if p_number < 3 then
                return false;
            end if;
            perform llm._note_failure(p_action.table_name, v_done, sqlerrm);
            return null;
        when others then
            perform llm._note_failure(p_action.table_name, v_done, sqlerrm);
            return true;
    end;
end
$$;

comment on function llm._attempt(llm.partition_action, integer) is
'Tries a step for the first, second or third time. True: it was done, or failed for good; false: try again, a lock could not be had; null: leave the
table alone for now, the lock could not be had the third time either.';


create function llm._note_failure(
    p_parent text,
    p_what   text,
    p_error  text
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise warning 'partitions of %: cannot %: %', p_parent, p_what, p_error;
    update llm.partition_sets s
    set last_error = concat_ws(E'\n', s.last_error, format('cannot %s: %s', p_what, p_error))
    where s.parent = p_parent;
end
$$;

comment on function llm._note_failure(text, text, text) is
'Keeps what went wrong with a table, for llm.partition_status and llm.doctor().';


create function llm._end_maintenance(
    p_parent text
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    update llm.partition_sets s set last_ok_at = clock_timestamp() where s.parent = p_parent and s.last_error is null;
    update @extschema:pg_partman@.part_config c
    set maintenance_last_run = s.last_ok_at
    from llm.partition_sets s
    where s.parent = p_parent
        and c.parent_table = s.parent;
    return not exists (select from llm.partition_sets s where s.parent = p_parent and s.last_error is not null);
end
$$;

comment on function llm._end_maintenance(text) is
'Notes that maintenance of a table ended, for pg_partman too. Returns whether all went well.';


create function llm._regular_calls(
    p_schedule text
)
    returns table (name text, schedule text, command text)
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select c.name, c.schedule, format('call %s()', c.name)
        from (
            values
                ('llm.manage_partitions', p_schedule),
                ('llm.index_new_messages', '* * * * *'),
                ('llm.maintain', '* * * * *'),
                ('llm.clean_cache', '*/5 * * * *'),
                ('llm.expire_rate_limits', '*/5 * * * *'),
                ('llm.expire_semantic_cache', '41 * * * *'),
                ('llm.trim_streams', '* * * * *'),
                ('llm.tend_queues', '* * * * *')
        ) c (name, schedule);
end
$$;

comment on function llm._regular_calls(text) is
'What is to be called regularly, and when, as cron writes it. p_schedule: when llm.manage_partitions() is.';


create function llm.schedule_maintenance(
    p_scheduler text default null,
    p_schedule  text default '17 * * * *'
)
    returns table (scheduler text, is_ready boolean, next_step text)
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_libraries text[] := regexp_split_to_array(current_setting('shared_preload_libraries'), '\s*,\s*');
    -- pg_partman 5.5 takes partman_maintainer, which it does not make; those before take postgres.
    v_worker    text := current_setting('pg_partman_bgw.role', true);
    v_has_role  boolean := exists (select from pg_roles r where r.rolname = v_worker);
begin
    if p_scheduler not in ('pg_cron', 'pg_partman_bgw') then
        raise exception 'scheduler % is unknown', p_scheduler
            using errcode = 'invalid_parameter_value',
                  hint = 'Use pg_cron, pg_partman_bgw, or null for whatever is there.';
    end if;

    if exists (select from pg_extension e where e.extname = 'pg_cron') and p_scheduler is distinct from 'pg_partman_bgw' then
        perform cron.schedule(c.name, c.schedule, c.command) from llm._regular_calls(p_schedule) c;
        perform llm._leave_making_to_pg_partman(false);
        return query
            select 'pg_cron', true, string_agg(format('%s runs at %s', c.command, c.schedule), E'\n') from llm._regular_calls(p_schedule) c;
        return;
    end if;

    if p_scheduler = 'pg_partman_bgw' then
        perform llm._leave_making_to_pg_partman(true);
    end if;
    return query
        select 'pg_cron', false, concat_ws(
            E'\n',
            case when not 'pg_cron' = any (v_libraries) then 'alter system set shared_preload_libraries = …, pg_cron; then restart the server' end,
            format('In database %s:', coalesce(current_setting('cron.database_name', true), 'postgres')),
            'create extension if not exists pg_cron;',
            (
                select string_agg(
                    format('select cron.schedule_in_database(%L, %L, %L, %L);',
                           c.name || ' in ' || current_database(), c.schedule, c.command, current_database()),
                    E'\n'
                )
                from llm._regular_calls(p_schedule) c
            )
        )
        where p_scheduler is distinct from 'pg_partman_bgw'
        union all
        select
            'pg_partman_bgw',
            coalesce(
                'pg_partman_bgw' = any (v_libraries)
                and current_database() = any (regexp_split_to_array(current_setting('pg_partman_bgw.dbname', true), '\s*,\s*'))
                and p_scheduler is not null
                and v_has_role,
                false
            ),
            concat_ws(
                E'\n',
                'It only makes partitions. Rows of default partitions and retention wait for llm.manage_partitions(),',
                'and all else for its own call: let pg_cron or cron make those.',
                case when p_scheduler is null then 'select * from llm.schedule_maintenance(''pg_partman_bgw'');' end,
                case
                    when not 'pg_partman_bgw' = any (v_libraries)
                        then 'alter system set shared_preload_libraries = …, pg_partman_bgw; then restart the server'
                end,
                format('alter system set pg_partman_bgw.dbname = %L;', current_database()),
                case when not v_has_role then format('alter system set pg_partman_bgw.role = %L;', session_user) end,
                'select pg_reload_conf();',
                format('alter role %I in database %I set timezone = ''UTC'';  -- else bounds move with summer time',
                       case when v_has_role then v_worker else session_user end, current_database())
            )
        where p_scheduler is distinct from 'pg_cron'
        union all
        select 'the system''s cron', false, string_agg(format('%s psql -X -d %s -c "%s"', c.schedule, current_database(), c.command), E'\n')
        from llm._regular_calls(p_schedule) c
        having p_scheduler is null;
end
$$;

comment on function llm.schedule_maintenance(text, text) is
'Has llm.manage_partitions() called regularly, and what else this extension needs (docs/upkeep.md), most of it every minute: by pg_cron, where that is
installed in this database; else says what to do for each scheduler that there could be. p_scheduler: pg_cron or pg_partman_bgw (pg_partman''s
background worker), null for whatever is there; p_schedule: as pg_cron and cron write it. Returns the schedulers, whether each is set up now, and the
statements that are still to be run. For superusers. Errors: invalid_parameter_value.';


create function llm._leave_making_to_pg_partman(
    p_leave boolean
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    update @extschema:pg_partman@.part_config c
    set automatic_maintenance = case when p_leave then 'on' else 'off' end
    from llm.partition_sets s
    where s.parent = c.parent_table;
end
$$;

comment on function llm._leave_making_to_pg_partman(boolean) is
'Whether pg_partman''s own maintenance, too, makes partitions of the tables in llm.partition_sets. Not so at first, because it works in the time zone
of its session.';
