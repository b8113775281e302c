create type llm.partition_action as (
    table_name      text,
    action          text,
    partition_name  text,
    begins_at       timestamptz,
    ends_at         timestamptz,
    reason          text
);

comment on type llm.partition_action is
'A step of llm.partition_plan(): the table; finish (a detaching that was interrupted), move (rows from the default partition), make, drop, keep, forget (a
table that is gone) or a failure to plan; the partition, its bounds, and why.';


create function llm.partition_plan(
    p_table regclass default null
)
    returns setof llm.partition_action
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
declare
    v_set record;
begin
    for v_set in
        select *
        from llm.partition_sets s
        where p_table is null or s.parent = llm._partition_parent(p_table)
        order by s.parent
    loop
        if llm._partition_table(v_set.parent) is null then
            return next (v_set.parent, 'forget', null, null, null, 'the table is gone')::llm.partition_action;
        else
            return query select * from llm._plan_making(v_set.parent);
            return query select * from llm._plan_dropping(v_set.parent);
        end if;
    end loop;
end
$$;

comment on function llm.partition_plan(regclass) is
'What llm.manage_partitions() would do now, and why, without doing it: a row for each partition. p_table: null for all tables. For superusers.';


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
            case when d.fits then llm._partition_name(v_table, d.begins_at) else v_default::text end,
            d.begins_at,
            d.ends_at,
            format('%s rows in %s%s', d.row_count, v_default, case when not d.fits then ', too far from now for a partition of their own' end)
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
            select '-infinity', least(v_window.now_at - v_set.partition_interval, min(case when isfinite(p.begins_at) then p.begins_at else p.ends_at end))
            from present p
        ),
        gaps as (
            select
                max(b.ends_at) over (order by b.begins_at, b.ends_at) as begins_at,
                lead(b.begins_at, 1, v_window.ends_at) over (order by b.begins_at, b.ends_at) as ends_at
            from bounds b
        )
        select p_parent, 'make', llm._partition_name(v_table, s.at), s.at, s.at + v_set.partition_interval,
            case when s.at > v_window.now_at then 'made ahead' else 'missing' end
        from gaps g
        cross join generate_series(
            greatest(g.begins_at, v_window.begins_at), least(g.ends_at, v_window.ends_at) - interval '1 us', v_set.partition_interval
        ) s (at)
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


create function llm._may_be_dropped(
    p_before_drop text,
    p_partition   regclass,
    p_for_good    boolean
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_agrees boolean := false;
begin
    if p_before_drop is null then
        return true;
    end if;
    -- Only a plan: what it writes (a tombstone) is undone.
    begin
        execute format('select llm.%I($1)', p_before_drop) into v_agrees using p_partition;
        if not p_for_good then
            raise sqlstate 'LLM00';
        end if;
    exception
        when sqlstate 'LLM00' then
            null;
    end;
    return coalesce(v_agrees, false);
end
$$;

comment on function llm._may_be_dropped(text, regclass, boolean) is
'Whether a function of schema llm agrees, if one is named. p_for_good: the partition is dropped now; else what before_drop writes is undone.';


create function llm._drop_partition(
    p_table     regclass,
    p_partition regclass
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
declare
    v_set   record;
    v_other regclass;
begin
    -- With the parent's lock nobody who comes through it can hold up the others for long; who waits behind us waits for one timeout and a bit.
    execute format('lock table only %s in access exclusive mode', p_table);
    perform set_config('lock_timeout', '200ms', true);
    select * into strict v_set from llm.partition_sets s where s.parent = llm._partition_parent(p_table);
    perform
    from llm._partitions(p_table) p
    where p.partition = p_partition
        and p.ends_at + make_interval(days => v_set.retention_days) <= now();
    if not found or not llm._may_be_dropped(v_set.before_drop, p_partition, true) then
        return false;
    end if;

    -- Detached first, because DROP alone is refused where a foreign key refers to the parent.
    execute format('alter table %s detach partition %s', p_table, p_partition);
    execute format('drop table %s', p_partition);
    return true;
end
$$;

comment on function llm._drop_partition(regclass, regclass) is
'Drops a partition, if all of its rows are past retention and before_drop agrees, in the same transaction. Returns whether it did.';


create function llm._carry_out(
    p_action llm.partition_action
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
declare
    v_table regclass := llm._partition_table(p_action.table_name);
begin
    -- pg_partman's own lock: one of us at a time.
    perform pg_advisory_xact_lock(hashtext('pg_partman run_maintenance'));
    case p_action.action
        when 'finish' then
            execute format('alter table %s detach partition %s finalize', v_table, p_action.partition_name::regclass);
        when 'move' then
            if (select pg_relation_size(p.partition) > 0 from llm._partitions(v_table) p where p.is_default) then
                perform llm._move_default_rows(v_table);
            end if;
        when 'make' then
            if not exists (select from llm._partitions(v_table) p where p_action.begins_at >= p.begins_at and p_action.begins_at < p.ends_at) then
                perform llm._make_partition(v_table, p_action.begins_at, p_action.ends_at - p_action.begins_at);
            end if;
        when 'drop' then
            perform llm._drop_partition(v_table, p_action.partition_name::regclass);
        when 'forget' then
            delete from llm.partition_sets s where s.parent = p_action.table_name;
            delete from @extschema:pg_partman@.part_config c where c.parent_table = p_action.table_name;
    end case;
end
$$;

comment on function llm._carry_out(llm.partition_action) is
'Does one step of llm.partition_plan(), unless that was done in the meantime.';
