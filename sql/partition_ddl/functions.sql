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
        select generate_series(w.oldest_at, w.ends_at, v_set.partition_interval)
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
'How many rows are in a default partition, by the partition that they should be in; fits: it is near enough to now to have one.';


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
        raise exception 'not all rows in the default partition of % could be moved', p_parent
            using errcode = 'triggered_data_change_violation',
                  hint = 'A trigger that is ENABLE ALWAYS, or row-level security that is forced on the owner, keeps rows out. Nothing was changed.';
    end if;
    execute format('drop table %s', v_default);
end
$$;

comment on function llm._move_default_rows(regclass) is
'Brings rows that landed in the default partition to partitions of their own, as far as they are near enough to now, all or nothing. The
table is locked meanwhile.';


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
    v_set record;
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
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
as $$
declare
    v_table     regclass := llm._partition_table(p_action.table_name);
    v_partition regclass;
begin
    -- pg_partman's own lock: one of us at a time. What another one did before is seen from here on.
    perform pg_advisory_xact_lock(hashtext('pg_partman run_maintenance'));
    v_partition := to_regclass(p_action.partition_name);
    case p_action.action
        when 'finish' then
            if exists (select from llm._partitions(v_table) p where p.partition = v_partition and p.is_half_detached) then
                execute format('alter table %s detach partition %s finalize', v_table, v_partition);
            end if;
        when 'move' then
            if (select pg_relation_size(p.partition) > 0 from llm._partitions(v_table) p where p.is_default) then
                perform llm._move_default_rows(v_table);
            end if;
        when 'make' then
            if not exists (select from llm._partitions(v_table) p where p_action.begins_at >= p.begins_at and p_action.begins_at < p.ends_at) then
                perform llm._make_partition(v_table, p_action.begins_at, p_action.ends_at - p_action.begins_at);
            end if;
        when 'drop' then
            return llm._drop_partition(v_table, v_partition);
        when 'forget' then
            delete from llm.partition_sets s where s.parent = p_action.table_name;
            delete from @extschema:pg_partman@.part_config c where c.parent_table = p_action.table_name;
    end case;
    return true;
end
$$;

comment on function llm._carry_out(llm.partition_action) is
'Does one step of llm.partition_plan(), unless that was done in the meantime. False: there was nothing to drop any more, or before_drop did not
agree.';


create function llm._missing_triggers(
    p_partition regclass default null
)
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
            and (p_partition is null or i.inhrelid = p_partition)
            and not exists (
                select
                from pg_trigger o
                where o.tgrelid = i.inhrelid
                    and (o.tgname, o.tgtype, o.tgfoid, o.tgargs, o.tgenabled) = (t.tgname, t.tgtype, t.tgfoid, t.tgargs, t.tgenabled)
            );
end
$$;

comment on function llm._missing_triggers(regclass) is
'Triggers of TRUNCATE that a partition of one of pg_llm''s own tables lacks: PostgreSQL hands down only triggers for rows.
p_partition: null for all.';


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
    for v_trigger in select * from llm._missing_triggers(p_partition) loop
        execute format('create or replace trigger %I %s truncate on %s %s',
                       v_trigger.name, v_trigger.moment, p_partition, v_trigger.rest);
        execute format('alter table %s %s trigger %I', p_partition, v_trigger.state, v_trigger.name);
    end loop;
end
$$;

comment on function llm._protect_partition(regclass) is
'Gives a partition of one of pg_llm''s own tables what it does not take from its parent: owner, forced row-level security (without a policy of its
own: nobody reads it by its own name), no privileges, and the triggers of TRUNCATE.';


create function llm._protect_new_partitions()
    returns event_trigger
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_command   record;
    v_table     oid;
    v_state     record;
begin
    -- Whoever runs any DDL comes here: what is not in schema llm must need no right, and cost little: look-ups by value, which no number of tables
    -- turns into a scan. What is done to a partition later is not undone.
    for v_command in select d.command_tag, d.objid from pg_event_trigger_ddl_commands() d loop
        v_table := v_command.objid;
        if v_command.command_tag = 'CREATE TRIGGER' then
            select t.tgrelid into v_table from pg_trigger t where t.oid = v_command.objid;
        end if;
        select c.relispartition, c.relkind = 'p' and c.relnamespace = 'llm'::regnamespace as is_parent
        into v_state
        from pg_class c
        where c.oid = v_table;

        if v_command.command_tag = 'CREATE TABLE' and v_state.relispartition then
            perform
            from pg_inherits i
            join pg_class p on p.oid = i.inhparent
            where i.inhrelid = v_table
                and p.relnamespace = 'llm'::regnamespace;
            if found then
                perform llm._protect_partition(v_table::regclass);
            end if;
        elsif v_command.command_tag <> 'CREATE TABLE' and v_state.is_parent then
            perform llm._protect_partition(i.inhrelid) from pg_inherits i where i.inhparent = v_table;
        end if;
    end loop;
end
$$;

comment on function llm._protect_new_partitions() is
'Event trigger: whoever makes or attaches a partition of one of pg_llm''s own tables (llm.create_partitions(), pg_partman, a user), it is
protected at once.';

do $event_trigger$
begin
    if not exists (select from pg_event_trigger e where e.evtname = 'llm_protect_new_partitions') then
        create event trigger llm_protect_new_partitions
            on ddl_command_end
            when tag in ('CREATE TABLE', 'ALTER TABLE', 'CREATE TRIGGER')
            execute function llm._protect_new_partitions();
    end if;
    alter event trigger llm_protect_new_partitions enable always;
    comment on event trigger llm_protect_new_partitions is 'Protects the partitions of pg_llm''s own tables, whoever makes them.';
end
$event_trigger$;


select llm._grant_execute(
    array['llm_admin', 'llm_auditor'],
    '_missing_triggers'
);
