create function llm._audited_columns(
    p_table  oid,
    p_source text
)
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select string_agg(
            case
                when a.atttypid < 16384 then format('%s.%I', p_source, a.attname)
                else format('case when num_nulls(%1$s.%2$I) = 0 then format(''%%s'', %1$s.%2$I) end as %2$I', p_source, a.attname)
            end,
            ', ' order by a.attnum
        )
        from pg_attribute a
        where a.attrelid = p_table
            and a.attnum > 0
            and not a.attisdropped
    );
end
$$;

comment on function llm._audited_columns(oid, text) is
'The columns of a table as a select list; those of types that users made as text, by their output function, because to_jsonb() would call a cast of
the user''s, as llm_owner. p_source: what stands before the period.';


create function llm._audited_key(
    p_row jsonb,
    p_key text[]
)
    returns text
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if cardinality(p_key) = 1 then
        return coalesce(p_row ->> p_key[1], '');
    elsif cardinality(p_key) = 0 then
        return '';
    end if;
    return (select jsonb_agg(p_row -> k.name order by k.position) from unnest(p_key) with ordinality k (name, position))::text;
end
$$;

comment on function llm._audited_key(jsonb, text[]) is
'The object_id of a row: its key; for a key of several columns their values as a JSON array; empty without a key.';


create function llm._audited_row(
    p_row    jsonb,
    p_hidden text[],
    p_masked text[],
    p_other  jsonb
)
    returns jsonb
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_row is null then
        return null;
    end if;
    return (p_row - p_hidden) || coalesce(
        (
            select jsonb_object_agg(m.name, case when p_other -> m.name <> p_row -> m.name then '*** (changed)' else '***' end)
            from unnest(p_masked) m (name)
            where p_row ->> m.name is not null
        ),
        '{}'
    );
end
$$;

comment on function llm._audited_row(jsonb, text[], text[], jsonb) is
'What the log may hold of a row: without the hidden columns, and of the masked ones only that they have a value. p_other: the row before, of which it
tells whether a masked value is another; null when there was none.';


create function llm._audited_rows(
    p_table oid,
    p_op    text
)
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return case p_op
        when 'INSERT' then format(
            'select null::jsonb as o, to_jsonb(q.*) as n from (select %s from new_rows) q', llm._audited_columns(p_table, 'new_rows'::text)
        )
        when 'DELETE' then format(
            'select to_jsonb(q.*) as o, null::jsonb as n from (select %s from old_rows) q', llm._audited_columns(p_table, 'old_rows'::text)
        )
        else format(
            'select o.r as o, n.r as n from (select row_number() over () as i, to_jsonb(q.*) as r from (select %s from old_rows) q) o'
            ' full join (select row_number() over () as i, to_jsonb(q.*) as r from (select %s from new_rows) q) n using (i)',
            llm._audited_columns(p_table, 'old_rows'::text), llm._audited_columns(p_table, 'new_rows'::text)
        )
    end;
end
$$;

comment on function llm._audited_rows(oid, text) is
'A query for the rows of a statement before (o) and after (n), for a table with columns of types that users made. p_op: INSERT, UPDATE or DELETE.';


-- security definer: whoever changes a table can neither write to the log what did not happen nor keep out of it what did.
create function llm._audit_changes()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
    set row_security = on
as $$
declare
    v_user        text := session_user;
    v_address     inet := inet_client_addr();
    v_application text := current_setting('application_name');
    v_tenant      text := coalesce(llm.current_tenant(), '*');
    v_is_foreign  boolean;
    v_type        text;
    v_key         text[];
    v_hidden      text[];
    v_masked      text[];
    v_old         jsonb;
    v_new         jsonb;
begin
    v_is_foreign := exists (
        select from pg_attribute a where a.attrelid = tg_relid and a.attnum > 0 and a.atttypid >= 16384 and not a.attisdropped
    );

    -- What most statements are comes first, and sets no variable that it does not need: each costs a statement of one row 2 %.
    if tg_argv[3] <> '' and not v_is_foreign then
        v_type := tg_relid::regclass;
        if tg_op = 'INSERT' then
            insert into llm.audit_log (tenant_id, user_id, action, object_type, login_role, client_address, application, object_id, after)
            select v_tenant, v_user, 'insert', v_type, v_user, v_address, v_application, coalesce(s.n ->> tg_argv[3], ''), s.n
            from (select to_jsonb(q.*) as n from (select new_rows.* from new_rows) q offset 0) s;
        elsif tg_op = 'UPDATE' then
            insert into llm.audit_log (tenant_id, user_id, action, object_type, login_role, client_address, application, object_id, before, after)
            select v_tenant, v_user, 'update', v_type, v_user, v_address, v_application, coalesce(o.r ->> tg_argv[3], ''), o.r, n.r
            from (select to_jsonb(q.*) as r from (select old_rows.* from old_rows) q offset 0) o
            cross join (select to_jsonb(q.*) as r from (select new_rows.* from new_rows) q) n
            where not exists (select from new_rows offset 1);
            if found then
                return null;
            end if;
            -- Both tables hold the rows in the same order. A full join, because this plan is kept, and a nested loop is right for few rows only.
            insert into llm.audit_log (tenant_id, user_id, action, object_type, login_role, client_address, application, object_id, before, after)
            select v_tenant, v_user, 'update', v_type, v_user, v_address, v_application, coalesce(o.r ->> tg_argv[3], ''), o.r, n.r
            from (select row_number() over () as i, to_jsonb(q.*) as r from (select old_rows.* from old_rows) q) o
            full join (select row_number() over () as i, to_jsonb(q.*) as r from (select new_rows.* from new_rows) q) n using (i);
        else
            insert into llm.audit_log (tenant_id, user_id, action, object_type, login_role, client_address, application, object_id, before)
            select v_tenant, v_user, 'delete', v_type, v_user, v_address, v_application, coalesce(s.o ->> tg_argv[3], ''), s.o
            from (select to_jsonb(q.*) as o from (select old_rows.* from old_rows) q offset 0) s;
        end if;
        return null;
    end if;

    v_type := coalesce(pg_partition_root(tg_relid), tg_relid)::regclass;
    if tg_op = 'TRUNCATE' then
        insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id)
        values (v_tenant, v_user, 'truncate', v_type, '');
        return null;
    end if;

    v_key := tg_argv[0];
    v_hidden := tg_argv[1];
    v_masked := tg_argv[2];
    if exists (
        select
        from unnest(v_hidden || v_masked) c (name)
        where not exists (select from pg_attribute a where a.attrelid = tg_relid and a.attname = c.name and a.attnum > 0)
    )
    then
        raise exception 'columns of % that the audit log must not hold have other names now', tg_relid::regclass
            using errcode = 'object_not_in_prerequisite_state',
                  detail = format('Excluded: %s; masked: %s.', v_hidden, v_masked),
                  hint = 'Say anew which columns those are: select llm.audit_table(…).';
    end if;

    if tg_level = 'ROW' then
        if v_is_foreign then
            execute format('select to_jsonb(q.*) from (select %s where $1 is distinct from null) q', llm._audited_columns(tg_relid, '($1)'::text))
                into v_old using old;
            execute format('select to_jsonb(q.*) from (select %s where $1 is distinct from null) q', llm._audited_columns(tg_relid, '($1)'::text))
                into v_new using new;
        else
            if tg_op <> 'INSERT' then
                select to_jsonb(q.*) into v_old from (select old.*) q;
            end if;
            if tg_op <> 'DELETE' then
                select to_jsonb(q.*) into v_new from (select new.*) q;
            end if;
        end if;
        insert into llm.audit_log (tenant_id, user_id, action, object_type, object_id, before, after)
        values (
            v_tenant, v_user, lower(tg_op), v_type, llm._audited_key(coalesce(v_old, v_new), v_key),
            llm._audited_row(v_old, v_hidden, v_masked, null::jsonb), llm._audited_row(v_new, v_hidden, v_masked, v_old)
        );
    else
        execute format(
            'insert into llm.audit_log (tenant_id, user_id, action, object_type, client_address, application, object_id, before, after)'
            ' select $1, $2, $3, $4, $5, $6, llm._audited_key(coalesce(s.o, s.n), $7), llm._audited_row(s.o, $8, $9, null::jsonb),'
            ' llm._audited_row(s.n, $8, $9, s.o) from (%s offset 0) s', llm._audited_rows(tg_relid, tg_op)
        ) using v_tenant, v_user, lower(tg_op), v_type, v_address, v_application, v_key, v_hidden, v_masked;
    end if;
    return null;
end
$$;

alter function llm._audit_changes() owner to llm_owner;

comment on function llm._audit_changes() is
'Trigger of audited tables: writes each row that a statement changed to the audit log. Arguments: the columns of the key, those to leave out, those
to mask; and the key''s only column, where rows are logged whole and statement by statement, else empty. Errors: object_not_in_prerequisite_state
when a column to leave out or to mask is gone: nothing is written to the table then.';


create function llm._audit_triggers(
    p_table regclass
)
    returns table (name text, event text)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- PostgreSQL hands triggers for rows down to partitions, also to those to come and when they are written to directly; others it does not.
    return query
        select v.name, v.event
        from pg_class c
        join (
            values
                (true, 'llm_audit_row', 'insert or update or delete on %s for each row'),
                (false, 'llm_audit_insert', 'insert on %s referencing new table as new_rows for each statement'),
                (false, 'llm_audit_update', 'update on %s referencing old table as old_rows new table as new_rows for each statement'),
                (false, 'llm_audit_delete', 'delete on %s referencing old table as old_rows for each statement')
        ) v (is_partitioned, name, event) on v.is_partitioned = (c.relkind = 'p' or c.relispartition)
        where c.oid = p_table
        union all
        values ('llm_audit_truncate', 'truncate on %s for each statement');
end
$$;

comment on function llm._audit_triggers(regclass) is
'The triggers that audit a table: names, and what they fire on and how, with %s for the table.';


create function llm._make_audit_triggers(
    p_table   regclass,
    p_key     text[],
    p_exclude text[],
    p_mask    text[]
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_whole boolean := cardinality(p_key) = 1 and p_exclude = '{}' and p_mask = '{}';
    v_trigger  record;
begin
    for v_trigger in select * from llm._audit_triggers(p_table) loop
        execute format('create or replace trigger %I after %s execute function llm._audit_changes(%L, %L, %L, %L)',
                       v_trigger.name, format(v_trigger.event, p_table), p_key, p_exclude, p_mask,
                       case when v_is_whole and v_trigger.event like '% referencing %' then p_key[1] else '' end);
        execute format('alter table %s enable always trigger %I', p_table, v_trigger.name);
    end loop;
end
$$;

comment on function llm._make_audit_triggers(regclass, text[], text[], text[]) is
'The part of llm.audit_table() that makes the triggers, or changes their arguments.';


create function llm.audit_table(
    p_table   regclass,
    p_exclude text[] default '{}',
    p_mask    text[] default '{}',
    p_key     text[] default null
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_key     text[];
    v_missing text;
    v_class   record;
begin
    perform llm._require_storage();
    select c.relname, c.relkind, n.nspname into v_class from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = p_table;
    if v_class.relkind not in ('r', 'p') or v_class.nspname in ('llm', 'pg_catalog', 'pg_toast') then
        raise exception '% cannot be audited', p_table
            using errcode = 'wrong_object_type',
                  hint = 'Ordinary and partitioned tables can, outside schema llm, which keeps its own history.';
    end if;

    v_key := coalesce(
        p_key,
        (
            select array_agg(a.attname::text order by k.position)
            from pg_index i
            cross join unnest(i.indkey) with ordinality k (attnum, position)
            join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
            where i.indrelid = p_table
                and i.indisprimary
                and k.position <= i.indnkeyatts
        ),
        '{}'
    );
    select c.name
    into v_missing
    from unnest(v_key || p_exclude || p_mask) c (name)
    where not exists (select from pg_attribute a where a.attrelid = p_table and a.attname = c.name and a.attnum > 0 and not a.attisdropped)
    limit 1;
    if found then
        raise exception 'table % has no column %', p_table, v_missing
            using errcode = 'undefined_column',
                  hint = 'Check p_key, p_exclude and p_mask: names are as the catalogue has them, unquoted.';
    end if;
    if p_exclude is null or p_mask is null or v_key && (p_exclude || p_mask) then
        raise exception 'the key of % must be visible in the log', p_table
            using errcode = 'invalid_parameter_value',
                  detail = format('Key: %s; excluded: %s; masked: %s.', v_key, p_exclude, p_mask),
                  hint = 'Give another p_key, or leave its columns out of p_exclude and p_mask, which cannot be null.';
    end if;

    perform llm._make_audit_triggers(p_table, v_key, p_exclude, p_mask);
    insert into llm.audited_tables (table_schema, table_name, key_columns, excluded_columns, masked_columns)
    values (v_class.nspname, v_class.relname, v_key, p_exclude, p_mask)
    on conflict (table_schema, table_name) do update
        set key_columns = excluded.key_columns,
            excluded_columns = excluded.excluded_columns,
            masked_columns = excluded.masked_columns;
end
$$;

comment on function llm.audit_table(regclass, text[], text[], text[]) is
'From now on every change of the table''s rows is an event of the audit log, in the same transaction: action insert, update, delete or truncate,
object_type the table, object_id its key, before and after the row. Call it again to change how. p_table: any table outside schema llm; p_exclude:
columns to leave out; p_mask: columns of which the log shows only that they have a value, and that it changed; p_key: the columns of object_id, by
default the primary key. For superusers and for members of llm_admin who own the table. Errors: wrong_object_type; undefined_column;
invalid_parameter_value when the key is to be hidden; insufficient_privilege.';


create function llm.unaudit_table(
    p_table regclass
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_trigger text;
    v_found   boolean := false;
begin
    for v_trigger in
        select t.tgname
        from pg_trigger t
        where t.tgrelid = p_table
            and t.tgparentid = 0
            and t.tgfoid = 'llm._audit_changes'::regproc
    loop
        execute format('drop trigger %I on %s', v_trigger, p_table);
        v_found := true;
    end loop;
    delete from llm.audited_tables a
    using pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    where c.oid = p_table
        and (a.table_schema, a.table_name) = (n.nspname, c.relname);
    if v_found then
        perform llm.log_audit_event(
            'unaudit'::text, 'audit'::text, p_table::text, null::jsonb, session_user::text, null::jsonb, null::jsonb, null::jsonb, null::text,
            'llm_auditor'::text
        );
    end if;
    return v_found;
end
$$;

comment on function llm.unaudit_table(regclass) is
'Ends what llm.audit_table() began, and notes that as an event. p_table: the table. Returns whether it was audited. For superusers and for members of
llm_admin who own the table.';


create function llm._restore_auditing()
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_table record;
begin
    for v_table in
        select c.oid::regclass as oid, a.key_columns, a.excluded_columns, a.masked_columns
        from llm.audited_tables a
        join pg_namespace n on n.nspname = a.table_schema
        join pg_class c on c.relnamespace = n.oid and c.relname = a.table_name
        where not exists (select from pg_trigger t where t.tgrelid = c.oid and t.tgname like 'llm\_audit\_%')
        order by 1
    loop
        perform llm._make_audit_triggers(v_table.oid, v_table.key_columns, v_table.excluded_columns, v_table.masked_columns);
    end loop;
end
$$;

comment on function llm._restore_auditing() is
'The part of llm.setup() that audits tables again whose triggers went when the extension was dropped.';


select llm._grant_execute(
    array['llm_owner'],
    '_audited_columns', '_audited_key', '_audited_row', '_audited_rows'
);

select llm._grant_execute(
    array['llm_admin'],
    'audit_table', 'unaudit_table', '_audit_triggers', '_make_audit_triggers', '_audit_changes'
);
