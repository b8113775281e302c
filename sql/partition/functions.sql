create type llm.partition_strategy as (
    table_name        text,
    partition_column  text,
    partition_type    text,
    retention_days    integer
);

comment on type llm.partition_strategy is
'How a table is kept in partitions: its qualified name; its date or timestamptz column; hourly, daily, weekly, monthly, quarterly, yearly, or the text of an
interval of whole hours, days or months; and after how many days a partition is dropped, null for never.';


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
'The partitions of a table that is partitioned by range of a point in time, with their bounds; is_half_detached: DETACH … CONCURRENTLY was interrupted.';


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
    return to_regclass(format('%I.%I', split_part(p_parent, '.', 1), split_part(p_parent, '.', 2)));
end
$$;

comment on function llm._partition_table(text) is
'The table that llm.partition_sets names, null when it is gone.';


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


create function llm._make_partition(
    p_parent    regclass,
    p_begins_at timestamptz,
    p_interval  interval
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
declare
    v_name   text := llm._partition_name(p_parent, p_begins_at);
    v_parent record;
begin
    select n.nspname::text as schema, c.relname::text as name, c.relowner::regrole as owner, ' tablespace ' || quote_ident(s.spcname) as tablespace,
        p.parent_table, p.template_table
    into strict v_parent
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    left join pg_tablespace s on s.oid = c.reltablespace
    join @extschema:pg_partman@.part_config p on p.parent_table = llm._partition_parent(p_parent)
    where c.oid = p_parent;

    -- As pg_partman does it, because ATTACH PARTITION lets readers and writers of the parent go on. Its own function would not do: it changes the
    -- session's search_path for good, works in the session's time zone, and turns every error into P0001, so that no lock can be tried for again.
    execute format('create table %I.%I (like %s including comments including compression including constraints including defaults'
                   ' including generated including statistics including storage)%s', v_parent.schema, v_name, p_parent, v_parent.tablespace);
    if v_parent.template_table is not null then
        perform @extschema:pg_partman@.inherit_template_properties(v_parent.parent_table, v_parent.schema, v_name);
    end if;
    execute format('alter table %I.%I owner to %s', v_parent.schema, v_name, v_parent.owner);
    execute format('alter table %s attach partition %I.%I for values from (%L) to (%L)',
                   p_parent, v_parent.schema, v_name, p_begins_at, p_begins_at + p_interval);
    perform @extschema:pg_partman@.inherit_replica_identity(v_parent.schema, v_parent.name, v_name);
end
$$;

comment on function llm._make_partition(regclass, timestamptz, interval) is
'Makes one partition of a table, with the owner, indexes and tablespace of its parent, and what pg_partman''s template table adds.';


create function llm._make_default_partition(
    p_parent regclass
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_schema text;
    v_name   text;
    v_owner  regrole;
begin
    select n.nspname, @extschema:pg_partman@.check_name_length(c.relname::text, '_default'::text), c.relowner
    into strict v_schema, v_name, v_owner
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.oid = p_parent;

    execute format('create table %I.%I partition of %s default', v_schema, v_name, p_parent);
    execute format('alter table %I.%I owner to %s', v_schema, v_name, v_owner);
    perform @extschema:pg_partman@.inherit_replica_identity(v_schema, split_part(llm._partition_parent(p_parent), '.', 2), v_name);
end
$$;

comment on function llm._make_default_partition(regclass) is
'Makes the partition for rows that fit no other, so that no row is ever refused for its time.';


create function llm._copy_rows(
    p_from regclass,
    p_to   regclass
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set session_replication_role = replica
    set row_security = off
as $$
declare
    v_owner   regrole;
    v_trusted boolean;
    v_columns text;
    v_count   bigint;
begin
    select c.relowner, r.rolsuper or r.rolname = 'llm_owner'
    into strict v_owner, v_trusted
    from pg_class c
    join pg_roles r on r.oid = c.relowner
    where c.oid = p_to;

    select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
    into v_columns
    from pg_attribute a
    where a.attrelid = p_from
        and a.attnum > 0
        and not a.attisdropped
        and a.attgenerated = '';

    if v_trusted then
        execute format('insert into %s (%s) overriding system value select %2$s from only %s', p_to, v_columns, p_from);
        get diagnostics v_count = row_count;
        return v_count;
    end if;

    -- A trigger, default or check of the owner's would run as the superuser who calls this; after SET ROLE it could reset the role. Not so in here.
    execute format(
        'create function pg_temp.llm_copy_rows() returns bigint language plpgsql security definer set search_path = pg_catalog, pg_temp as %L',
        format('declare n bigint; begin'
               ' insert into %s (%s) overriding system value select %2$s from only %s; get diagnostics n = row_count;'
               ' set constraints all immediate; return n; end', p_to, v_columns, p_from)
    );
    execute format('alter function pg_temp.llm_copy_rows() owner to %s', v_owner);
    execute format('select pg_temp.llm_copy_rows()') into v_count;
    execute format('drop function pg_temp.llm_copy_rows()');
    return v_count;
end
$$;

comment on function llm._copy_rows(regclass, regclass) is
'Copies rows between tables of the same columns, as the second one''s owner; triggers do not fire, unless ENABLE ALWAYS, since the rows are not new.
Returns how many.';


create function llm._move_default_rows(
    p_parent regclass
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
declare
    v_default  regclass;
    v_interval interval;
    v_slot     timestamptz;
    v_slots    timestamptz[];
    v_rows     bigint;
begin
    execute format('lock table only %s in access exclusive mode', p_parent);
    select p.partition into v_default from llm._partitions(p_parent) p where p.is_default;
    if not found then
        return;
    end if;
    select s.partition_interval into strict v_interval from llm.partition_sets s where s.parent = llm._partition_parent(p_parent);
    v_slots := array(select d.begins_at from llm._default_rows(p_parent, v_default) d where d.fits order by d.begins_at);

    -- Not DELETE and INSERT: an append-only table refuses the one, and only an empty default partition lets others be made quickly.
    execute format('alter table %s detach partition %s', p_parent, v_default);
    execute format('alter table %s rename to %I', v_default, format('llm_moving_%s', v_default::oid));
    foreach v_slot in array v_slots loop
        perform llm._make_partition(p_parent, v_slot, v_interval);
    end loop;
    perform llm._make_default_partition(p_parent);

    execute format('select count(*) from only %s', v_default) into v_rows;
    if v_rows <> llm._copy_rows(v_default, p_parent) then
        raise exception 'not all rows of % could be moved', v_default
            using errcode = 'triggered_data_change_violation',
                  hint = 'A trigger that is ENABLE ALWAYS, or row-level security that is forced on the owner, keeps rows out. Nothing was changed.';
    end if;
    execute format('drop table %s', v_default);
end
$$;

comment on function llm._move_default_rows(regclass) is
'Brings rows that landed in the default partition to partitions of their own, as far as they lie in the window that is kept, all or nothing. The table is
locked meanwhile.';


create function llm._default_rows(
    p_parent  regclass,
    p_default regclass
)
    returns table (begins_at timestamptz, ends_at timestamptz, fits boolean, row_count bigint)
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
declare
    v_set    record;
    v_bounds timestamptz[];
begin
    if p_default is null or pg_relation_size(p_default) = 0 then
        return;
    end if;
    select * into strict v_set from llm.partition_sets s where s.parent = llm._partition_parent(p_parent);
    v_bounds := array(
        select generate_series(w.begins_at, w.ends_at, v_set.partition_interval)
        from llm._partition_window(v_set.partition_interval, v_set.retention_days) w
    );
    return query execute format(
        'select $1[b], $1[b + 1], b between 1 and cardinality($1) - 1, count(*)'
        ' from (select width_bucket(%I::timestamptz, $1) as b from only %s) r group by b order by b',
        v_set.partition_column, p_default
    ) using v_bounds;
end
$$;

comment on function llm._default_rows(regclass, regclass) is
'How many rows are in a default partition, by the partition that they should be in; fits: it lies in the window that is kept.';


create function llm._partition_window(
    p_interval       interval,
    p_retention_days integer
)
    returns table (begins_at timestamptz, now_at timestamptz, ends_at timestamptz)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
begin
    now_at := llm._partition_slot(p_interval, now());
    begins_at := case
        when p_retention_days is null then llm._partition_slot(p_interval, now_at - 1000 * p_interval)
        else llm._partition_slot(p_interval, now() - make_interval(days => p_retention_days))
    end;
    ends_at := now_at + 5 * p_interval;
    return next;
end
$$;

comment on function llm._partition_window(interval, integer) is
'The time for which a table has partitions: from the oldest that retention keeps, else 1,000 before the present one, to the fourth after the present one.';


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
                  hint = 'Check the clock that the time comes from. Older rows would be dropped at once; later ones would stop the making of partitions.';
    end if;
end
$$;

comment on function llm._check_partition_time(regclass, timestamptz) is
'Refuses a time that no partition of a log is made for. p_table: a table in llm.partition_sets; p_at: when the row says it happened.
Errors: datetime_field_overflow.';


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
    perform llm._refuse_partitions(v_table, p_strategy, v_interval);

    select s.partition_interval into v_known from llm.partition_sets s where s.parent = llm._partition_parent(v_table);
    if v_known <> v_interval then
        raise exception 'table % is kept in partitions of %, not of %', v_table, v_known, v_interval
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'The length of partitions cannot be changed: copy the rows to a new table.';
    end if;

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
'Keeps a table in partitions from now on: makes a default partition and those of the present, the past and the next four intervals, brings rows of the
default partition to them, and leaves the rest to llm.manage_partitions(). For tables of pg_llm and for any of yours; again and again, also to change
retention. Bounds are in UTC. For superusers. p_strategy: the table, its column, the length of partitions, retention; p_before_drop: a function of schema
llm that must agree before a partition is dropped, null leaves that as it is. Returns whether anything changed.
Errors: undefined_table, wrong_object_type, datatype_mismatch, invalid_table_definition, invalid_parameter_value, undefined_function, invalid_name,
object_not_in_prerequisite_state when the table is kept in other partitions; lock_not_available.';


create function llm._protect_partition(
    p_partition regclass
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_partition record;
    v_grantee   oid;
    v_trigger   record;
begin
    select * into strict v_partition from pg_class c where c.oid = p_partition;
    if v_partition.relowner <> 'llm_owner'::regrole then
        execute format('alter table %s owner to llm_owner', p_partition);
    end if;
    if not v_partition.relrowsecurity then
        execute format('alter table %s enable row level security', p_partition);
    end if;
    if not v_partition.relforcerowsecurity then
        execute format('alter table %s force row level security', p_partition);
    end if;
    for v_grantee in
        select distinct a.grantee
        from aclexplode(v_partition.relacl) a
        where a.grantee not in (v_partition.relowner, 'llm_owner'::regrole)
    loop
        execute format('revoke all on table %s from %s', p_partition, case v_grantee when 0 then 'public' else v_grantee::regrole::text end);
    end loop;

    -- A dump brings the triggers of partitions itself, after those of their parents.
    if not current_setting('row_security')::boolean then
        return;
    end if;
    for v_trigger in select * from llm._missing_triggers() m where m.partition = p_partition loop
        execute format('create or replace trigger %I %s truncate on %s %s',
                       v_trigger.name, v_trigger.moment, p_partition, v_trigger.rest);
        execute format('alter table %s %s trigger %I', p_partition, v_trigger.state, v_trigger.name);
    end loop;
end
$$;

comment on function llm._protect_partition(regclass) is
'Gives a partition of one of pg_llm''s own tables what it does not take from its parent: owner, forced row-level security (without a policy of its own:
nobody reads it by its own name), no privileges, and the triggers of TRUNCATE.';


create function llm._missing_triggers()
    returns table (partition regclass, name name, moment text, rest text, state text)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select
            i.inhrelid::regclass,
            t.tgname,
            case t.tgtype & 2 when 0 then 'after' else 'before' end,
            substring(pg_get_triggerdef(t.oid) from 'FOR EACH STATEMENT.*'),
            case t.tgenabled when 'A' then 'enable always' when 'R' then 'enable replica' when 'D' then 'disable' else 'enable' end
        from pg_trigger t
        join pg_class c on c.oid = t.tgrelid and c.relnamespace = 'llm'::regnamespace and c.relkind = 'p'
        join pg_inherits i on i.inhparent = c.oid
        where not t.tgisinternal
            and t.tgtype & 32 <> 0
            and not exists (
                select
                from pg_trigger o
                where o.tgrelid = i.inhrelid
                    and (o.tgname, o.tgtype, o.tgfoid, o.tgargs, o.tgenabled) = (t.tgname, t.tgtype, t.tgfoid, t.tgargs, t.tgenabled)
            );
end
$$;

comment on function llm._missing_triggers() is
'Triggers of TRUNCATE that a partition of one of pg_llm''s own tables lacks: PostgreSQL hands down only triggers for rows.';


create function llm._protect_new_partitions()
    returns event_trigger
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_partition regclass;
begin
    -- Whoever runs any DDL comes here: what is not in schema llm must cost little, and need no right. What is done to a partition later is not undone.
    for v_partition in
        select i.inhrelid
        from pg_event_trigger_ddl_commands() d
        left join pg_trigger t on d.classid = 'pg_trigger'::regclass and t.oid = d.objid
        join pg_inherits i
            on d.command_tag = 'CREATE TABLE' and i.inhrelid = d.objid
            or d.command_tag <> 'CREATE TABLE' and i.inhparent = coalesce(t.tgrelid, d.objid)
        join pg_class c on c.oid = i.inhparent and c.relkind = 'p' and c.relnamespace = 'llm'::regnamespace
        where d.classid in ('pg_class'::regclass, 'pg_trigger'::regclass)
    loop
        perform llm._protect_partition(v_partition);
    end loop;
end
$$;

comment on function llm._protect_new_partitions() is
'Event trigger: whoever makes or attaches a partition of one of pg_llm''s own tables (llm.create_partitions(), pg_partman, a user), it is protected at once.';

do $event_trigger$
begin
    if not exists (select from pg_event_trigger e where e.evtname = 'llm_protect_new_partitions') then
        create event trigger llm_protect_new_partitions
            on ddl_command_end
            when tag in ('CREATE TABLE', 'ALTER TABLE', 'CREATE TRIGGER')
            execute function llm._protect_new_partitions();
    end if;
    alter event trigger llm_protect_new_partitions enable always;
end
$event_trigger$;
