create type llm.partition_strategy as (
    table_name        text,
    partition_column  text,
    partition_type    text,
    retention_days    integer
);

comment on type llm.partition_strategy is
'How a table is kept in partitions: its qualified name; its date or timestamptz column; hourly, daily, weekly, monthly, quarterly, yearly, or the
text of an interval of whole hours, days or months; and after how many days a partition is dropped, null for never.';


create type llm.partition_action as (
    table_name      text,
    action          text,
    partition_name  text,
    begins_at       timestamptz,
    ends_at         timestamptz,
    reason          text
);

comment on type llm.partition_action is
'A step of llm.partition_plan(): the table; finish (a detaching that was interrupted), move (rows from the default partition), make, drop, keep,
forget (a table that is gone) or a failure to plan; the partition, its bounds, and why.';


create function llm._partition_interval(
    p_type text
)
    returns interval
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_interval interval;
    v_months   integer;
begin
    begin
        v_interval := case lower(p_type)
            when 'hourly' then interval '1 hour'
            when 'daily' then interval '1 day'
            when 'weekly' then interval '7 days'
            when 'monthly' then interval '1 month'
            when 'quarterly' then interval '3 months'
            when 'yearly' then interval '1 year'
            else p_type::interval
        end;
        v_months := extract(year from v_interval) * 12 + extract(month from v_interval);
    exception
        when invalid_datetime_format or datetime_field_overflow or interval_field_overflow then
            v_interval := null;
    end;

    -- Months of different lengths and days cannot be counted from one fixed point together.
    if v_interval is null or v_interval < interval '1 hour' or extract(epoch from v_interval) % 3600 <> 0
        or v_months <> 0 and v_interval <> make_interval(months => v_months)
    then
        raise exception 'partition type % is unknown', coalesce(quote_literal(p_type), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Use hourly, daily, weekly, monthly, quarterly, yearly, or an interval of whole hours, days or months, such as 10 days.';
    end if;
    return v_interval;
end
$$;

comment on function llm._partition_interval(text) is
'The length of a partition. p_type: as in llm.partition_strategy. Errors: invalid_parameter_value.';


create function llm._partition_slot(
    p_interval interval,
    p_at       timestamptz
)
    returns timestamptz
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
declare
    v_months integer := extract(year from p_interval) * 12 + extract(month from p_interval);
    v_since  integer;
begin
    if v_months = 0 then
        return date_bin(p_interval, p_at, timestamptz '2000-01-03 00:00:00+00');
    end if;
    v_since := (extract(year from p_at) - 2000) * 12 + extract(month from p_at) - 1;
    return timestamptz '2000-01-01 00:00:00+00' + make_interval(months => floor(v_since::double precision / v_months)::integer * v_months);
end
$$;

comment on function llm._partition_slot(interval, timestamptz) is
'When the partition begins that a moment belongs to. All is counted in UTC: from Monday, 3 January 2000, or from 1 January 2000 when the interval is
months. A session''s time zone, and its summer time, must not move bounds.';


create function llm._partition_window(
    p_interval       interval,
    p_retention_days integer
)
    returns table (oldest_at timestamptz, begins_at timestamptz, now_at timestamptz, ends_at timestamptz)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
begin
    now_at := llm._partition_slot(p_interval, now());
    oldest_at := llm._partition_slot(p_interval, now_at - 1000 * p_interval);
    begins_at := coalesce(llm._partition_slot(p_interval, now() - make_interval(days => p_retention_days)), oldest_at);
    oldest_at := least(oldest_at, begins_at);
    ends_at := now_at + 5 * p_interval;
    return next;
end
$$;

comment on function llm._partition_window(interval, integer) is
'The time for which a table has partitions: from begins_at (the oldest that retention keeps, else oldest_at) to ends_at, the end of the fourth after
the present one; oldest_at is how far back rows still get partitions of their own, to be dropped with them: 1,000 partitions.';


create function llm._partition_parent(
    p_table regclass
)
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select format('%s.%s', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_table);
end
$$;

comment on function llm._partition_parent(regclass) is
'A table as pg_partman and llm.partition_sets name it: schema.table, unquoted.';


create function llm._partition_table(
    p_parent text
)
    returns regclass
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- Not to_regclass(): it asks for USAGE of the schema, which those who examine need not have.
    return (
        select c.oid
        from pg_class c
        join pg_namespace n on n.oid = c.relnamespace
        where n.nspname = split_part(p_parent, '.', 1)
            and c.relname = split_part(p_parent, '.', 2)
    );
end
$$;

comment on function llm._partition_table(text) is
'The table that llm.partition_sets names, null when it is gone.';


create function llm._partitions(
    p_parent regclass
)
    returns table (partition regclass, begins_at timestamptz, ends_at timestamptz, is_default boolean, is_half_detached boolean)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
begin
    return query
        select
            i.inhrelid::regclass,
            case b.bounds[1] when 'MINVALUE' then '-infinity' else btrim(b.bounds[1], '''')::timestamptz end,
            case b.bounds[2] when 'MAXVALUE' then 'infinity' else btrim(b.bounds[2], '''')::timestamptz end,
            b.bounds is null,
            i.inhdetachpending
        from pg_inherits i
        join pg_class c on c.oid = i.inhrelid
        cross join lateral regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM \((.+)\) TO \((.+)\)$') b (bounds)
        where i.inhparent = p_parent;
end
$$;

comment on function llm._partitions(regclass) is
'The partitions of a table that is partitioned by range of a point in time, with their bounds; is_half_detached: DETACH … CONCURRENTLY was
interrupted.';


create function llm._partition_name(
    p_parent    regclass,
    p_begins_at timestamptz
)
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
begin
    return (
        select @extschema:pg_partman@.check_name_length(c.relname::text, to_char(p_begins_at, p.datetime_string), true)
        from pg_class c
        join @extschema:pg_partman@.part_config p on p.parent_table = llm._partition_parent(p_parent)
        where c.oid = p_parent
    );
end
$$;

comment on function llm._partition_name(regclass, timestamptz) is
'What pg_partman would call the partition that begins at this moment, without its schema.';


create function llm._check_partition_time(
    p_table regclass,
    p_at    timestamptz
)
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_window record;
begin
    select w.begins_at, w.ends_at
    into v_window
    from llm.partition_sets s
    cross join lateral llm._partition_window(s.partition_interval, s.retention_days) w
    where s.parent = llm._partition_parent(p_table);

    if p_at < v_window.begins_at or p_at >= v_window.ends_at then
        raise exception '% is too far from now for %', p_at, p_table
            using errcode = 'datetime_field_overflow',
                  detail = format('There are partitions from %s to %s.', v_window.begins_at, v_window.ends_at),
                  hint = 'Check the clock that the time comes from. No partition is kept, or made ahead, for such a time.';
    end if;
end
$$;

comment on function llm._check_partition_time(regclass, timestamptz) is
'Refuses a time that no partition of a log is made for. p_table: a table in llm.partition_sets; p_at: when the row says it happened.
Errors: datetime_field_overflow.';


create function llm._refuse_partitions(
    p_table    regclass,
    p_strategy llm.partition_strategy,
    p_interval interval
)
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_type     regtype;
    v_not_null boolean;
    v_other    text;
begin
    select a.atttypid, a.attnotnull
    into v_type, v_not_null
    from pg_partitioned_table p
    join pg_attribute a on a.attrelid = p.partrelid and a.attnum = p.partattrs[0]
    where p.partrelid = p_table
        and p.partstrat = 'r'
        and p.partnatts = 1
        and a.attname = p_strategy.partition_column;
    if not found then
        raise exception 'table % is not partitioned by range of column %', p_table, p_strategy.partition_column
            using errcode = 'wrong_object_type',
                  hint = format('A table becomes so when it is made: create table … partition by range (%I).', p_strategy.partition_column);
    end if;

    if v_type not in ('timestamptz'::regtype, 'date'::regtype) or v_type = 'date'::regtype and extract(epoch from p_interval) % 86400 <> 0 then
        raise exception 'column % of % has type %, which does not go with partitions of %',
            p_strategy.partition_column, p_table, v_type, p_interval
            using errcode = 'datatype_mismatch',
                  hint = 'Partition by a column of type timestamptz, or date for whole days. Text and uuid are not points in time.';
    end if;

    if not v_not_null then
        raise exception 'column % of % may be null', p_strategy.partition_column, p_table
            using errcode = 'invalid_table_definition',
                  hint = format('Run: alter table %s alter column %I set not null;', p_table, p_strategy.partition_column);
    end if;

    select a.attname into v_other from pg_attribute a where a.attrelid = p_table and a.attidentity = 'a' limit 1;
    if found then
        raise exception 'column % of % is generated always as identity', v_other, p_table
            using errcode = 'invalid_table_definition',
                  detail = 'pg_partman could not move rows between partitions.',
                  hint = format('Run: alter table %s alter column %I set generated by default;', p_table, v_other);
    end if;

    if llm._partition_parent(p_table) !~ '^[^.]+\.[^.]+$' then
        raise exception 'table % has a period in its name', p_table
            using errcode = 'invalid_name',
                  hint = 'pg_partman takes a period for the end of the schema. Rename the table or its schema.';
    end if;

    select p.partition::text
    into v_other
    from llm._partitions(p_table) p
    cross join unnest(array[p.begins_at, p.ends_at]) b (at)
    where isfinite(b.at)
        and llm._partition_slot(p_interval, b.at) <> b.at
    limit 1;
    if found then
        raise exception 'partition % does not begin and end as partitions of % do', v_other, p_interval
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'They begin in UTC: days at midnight, weeks on Monday, months on the first. Detach it, or attach it with other bounds.';
    end if;
end
$$;

comment on function llm._refuse_partitions(regclass, llm.partition_strategy, interval) is
'Guards llm.create_partitions(): what is wrong with a table, if anything. Errors: wrong_object_type, datatype_mismatch, invalid_table_definition,
invalid_name, object_not_in_prerequisite_state.';


create function llm._register_partitions(
    p_table    regclass,
    p_strategy llm.partition_strategy,
    p_interval interval
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set intervalstyle = 'postgres'
as $$
declare
    v_parent  text := llm._partition_parent(p_table);
    v_known   record;
    v_changed boolean := false;
begin
    select * into v_known from @extschema:pg_partman@.part_config c where c.parent_table = v_parent;
    if not found then
        insert into @extschema:pg_partman@.part_config (
            parent_table, control, partition_interval, partition_type, automatic_maintenance, infinite_time_partitions, jobmon, datetime_string
        )
        select v_parent, p_strategy.partition_column, p_interval, 'range', coalesce(max(c.automatic_maintenance), 'off'), true, false,
            (select i.datetime_string from @extschema:pg_partman@.calculate_time_partition_info(p_interval, now()) i)
        from llm.partition_sets s
        join @extschema:pg_partman@.part_config c on c.parent_table = s.parent;
        v_changed := true;
    elsif v_known.control <> p_strategy.partition_column or v_known.partition_interval::interval <> p_interval then
        raise exception 'pg_partman keeps % in partitions of % by %', p_table, v_known.partition_interval, v_known.control
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Give that column and interval, or take the table out of pg_partman''s part_config first.';
    else
        -- pg_partman's own maintenance knows no before_drop, so that dropping is ours alone.
        update @extschema:pg_partman@.part_config c
        set infinite_time_partitions = true,
            retention = null
        where c.parent_table = v_parent
            and (not c.infinite_time_partitions or c.retention is not null);
        v_changed := found;
    end if;

    insert into llm.partition_sets as s (parent, partition_column, partition_interval, retention_days)
    values (v_parent, p_strategy.partition_column, p_interval, p_strategy.retention_days)
    on conflict (parent) do update
        set partition_column = excluded.partition_column,
            partition_interval = excluded.partition_interval,
            retention_days = excluded.retention_days
        where (s.partition_column, s.partition_interval, s.retention_days)
            is distinct from (excluded.partition_column, excluded.partition_interval, excluded.retention_days);
    return v_changed or found;
end
$$;

comment on function llm._register_partitions(regclass, llm.partition_strategy, interval) is
'Writes a table down for pg_partman and in llm.partition_sets. Returns whether that was new or changed.
Errors: object_not_in_prerequisite_state when pg_partman knows the table otherwise.';


create function llm.create_partitions(
    p_strategy    llm.partition_strategy,
    p_before_drop text default null
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
    set lock_timeout = '10s'
as $$
declare
    v_interval interval := llm._partition_interval(p_strategy.partition_type);
    v_table    regclass := to_regclass(p_strategy.table_name);
    v_known    interval;
    v_changed  boolean;
    v_action   llm.partition_action;
begin
    if v_table is null then
        raise exception 'table % does not exist', p_strategy.table_name
            using errcode = 'undefined_table',
                  hint = 'Name it with its schema, such as public.events.';
    end if;
    if p_strategy.retention_days < 1 then
        raise exception 'rows cannot be kept for % days', p_strategy.retention_days
            using errcode = 'invalid_parameter_value',
                  hint = 'Give at least 1 day, or null to keep rows for ever.';
    end if;
    if p_before_drop is not null and to_regprocedure(format('llm.%I(regclass)', p_before_drop)) is null then
        raise exception 'function llm.%(regclass) does not exist', p_before_drop
            using errcode = 'undefined_function',
                  hint = 'p_before_drop names a function of schema llm that takes the partition and returns whether it may be dropped.';
    end if;
    select s.partition_interval into v_known from llm.partition_sets s where s.parent = llm._partition_parent(v_table);
    if v_known <> v_interval then
        raise exception 'table % is kept in partitions of %, not of %', v_table, v_known, v_interval
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'The length of partitions cannot be changed: copy the rows to a new table.';
    end if;

    perform llm._refuse_partitions(v_table, p_strategy, v_interval);

    v_changed := llm._register_partitions(v_table, p_strategy, v_interval);
    update llm.partition_sets s
    set before_drop = p_before_drop
    where s.parent = llm._partition_parent(v_table)
        and s.before_drop is distinct from coalesce(p_before_drop, s.before_drop);
    v_changed := v_changed or found;

    if not exists (select from llm._partitions(v_table) p where p.is_default) then
        perform llm._make_default_partition(v_table);
        v_changed := true;
    end if;
    for v_action in select * from llm.partition_plan(v_table) p where p.action in ('finish', 'move', 'make') loop
        perform llm._carry_out(v_action);
        v_changed := true;
    end loop;
    return v_changed;
end
$$;

comment on function llm.create_partitions(llm.partition_strategy, text) is
'Keeps a table in partitions from now on: makes a default partition and those of the present, the past and the next four intervals, brings rows of
the default partition to them, and leaves the rest to llm.manage_partitions(). For tables of pg_llm and for any of yours; again and again, also
to change retention. Bounds are in UTC. For superusers. p_strategy: the table, its column, the length of partitions, retention; p_before_drop: a
function of schema llm that must agree before a partition is dropped, null leaves that as it is. Returns whether anything changed. Errors:
undefined_table, wrong_object_type, datatype_mismatch, invalid_table_definition, invalid_parameter_value, undefined_function, invalid_name,
object_not_in_prerequisite_state when the table is kept in other partitions; lock_not_available.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_auditor'],
    '_partition_parent', '_partition_slot', '_partition_window', '_check_partition_time'
);
select llm._grant_execute(
    array['llm_admin', 'llm_auditor'],
    '_partitions', '_partition_table'
);
