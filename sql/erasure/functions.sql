create type llm.erasure as (
    relation  text,
    action    text,
    rows      bigint,
    residual  bigint,
    columns   text[],
    reason    text
);

comment on type llm.erasure is
'What became of a user''s rows in a table: action is delete, anonymize, shred, release or keep, null for a table that is not registered; rows, of how
many; residual, in how many other rows the user is still found, in these columns; reason: why rows are kept.';


create function llm._rows_of_user(
    p_relation text,
    p_alias    text default 't',
    p_only     text default null
)
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_table     regclass := to_regclass(p_relation);
    v_condition text;
begin
    if length(p_alias) > 20 then
        raise exception 'the tables that % is registered by lead to no user', p_relation
            using errcode = 'program_limit_exceeded',
                  hint = 'Register one of them by the column that holds the user''s id.';
    end if;
    select string_agg(
        case
            when d.action = 'release' then llm._rows_referred_to(p_relation::regclass, p_alias)
            when d.via = '' then format(
                case a.atttypid when 'uuid'::regtype then '%s.%I = $2' else '%s.%I = $2::text' end, p_alias, d.user_column
            )
            else (
                select format(
                    '(%s) in (select %s from %s %s where %s)',
                    string_agg(format('%s.%I', p_alias, ours.attname), ', ' order by c.position),
                    string_agg(format('%s.%I', p_alias || 'v', theirs.attname), ', ' order by c.position),
                    k.confrelid::regclass, p_alias || 'v', llm._rows_of_user(d.via, p_alias || 'v', null::text)
                )
                from pg_constraint k
                cross join lateral unnest(k.conkey, k.confkey) with ordinality c (ours, theirs, position)
                join pg_attribute ours on ours.attrelid = k.conrelid and ours.attnum = c.ours
                join pg_attribute theirs on theirs.attrelid = k.confrelid and theirs.attnum = c.theirs
                where k.contype = 'f'
                    and k.conrelid = v_table
                    and k.confrelid = to_regclass(d.via)
                group by k.oid, k.confrelid
            )
        end,
        ' or ' order by d.via, d.user_column
    )
    into v_condition
    from llm.personal_data d
    left join pg_attribute a on a.attrelid = v_table and a.attname = d.user_column
    where d.relation = p_relation
        and (p_only is null or d.user_column || d.via = p_only);
    if v_condition is null then
        return 'false';
    end if;
    if exists (select from pg_attribute a where a.attrelid = v_table and a.attname = 'tenant_id' and not a.attisdropped) then
        return format('%s.tenant_id = $1 and (%s)', p_alias, v_condition);
    end if;
    return format('(%s)', v_condition);
end
$$;

comment on function llm._rows_of_user(text, text, text) is
'The condition for rows of a registered table, called p_alias, that are of user $2 of tenant $1. p_only: by one registration, its user_column or via.
Errors: program_limit_exceeded when tables refer to each other in a circle.';


create function llm._rows_referred_to(
    p_relation regclass,
    p_alias    text
)
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select coalesce(
            format('(%s) and not (%s)',
                string_agg(r.referring || format(' and (%s))', r.of_user), ' or '),
                string_agg(r.referring || format(' and (%s) is not true)', r.of_user), ' or ')
            ),
            'false'
        )
        from (
            select
                format(
                    'exists (select from %s %s where (%s) = (%s)', k.conrelid::regclass, p_alias || 'r',
                    string_agg(format('%s.%I', p_alias || 'r', theirs.attname), ', ' order by c.position),
                    string_agg(format('%s.%I', p_alias, ours.attname), ', ' order by c.position)
                ) as referring,
                llm._rows_of_user(k.conrelid::regclass::text, p_alias || 'r', null::text) as of_user
            from pg_constraint k
            cross join lateral unnest(k.conkey, k.confkey) with ordinality c (theirs, ours, position)
            join pg_attribute theirs on theirs.attrelid = k.conrelid and theirs.attnum = c.theirs
            join pg_attribute ours on ours.attrelid = k.confrelid and ours.attnum = c.ours
            where k.contype = 'f'
                and k.conparentid = 0
                and k.confrelid = p_relation
            group by k.oid, k.conrelid
            order by k.oid
        ) r
    );
end
$$;

comment on function llm._rows_referred_to(regclass, text) is
'The condition for rows of a table, called p_alias, that rows of user $2 of tenant $1 refer to, and no others.';


create function llm._personal_tables()
    returns table (relation text, user_column text, via text, action text, columns text[], reason text, depth integer)
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    with recursive referring (relation, path) as (
        select distinct to_regclass(d.relation)::oid, array[to_regclass(d.relation)::oid]
        from llm.personal_data d
        where to_regclass(d.relation) is not null
        union all
        select k.confrelid, r.path || k.confrelid
        from referring r
        join pg_constraint k on k.contype = 'f' and k.conrelid = r.relation and k.confrelid <> all (r.path)
        where cardinality(r.path) < 20
    )
    select d.relation, d.user_column, d.via, d.action, d.columns, d.reason, max(cardinality(r.path))
    from llm.personal_data d
    join referring r on r.relation = to_regclass(d.relation)
    group by d.relation, d.user_column, d.via
$$;

comment on function llm._personal_tables() is
'The registered tables that are there; depth: those that refer to others have a smaller one than these.';


create function llm._lock_rows_of_user(
    p_tenant   text,
    p_user_id  uuid,
    p_relation text,
    p_only     text
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_count bigint;
begin
    execute format(
        'select count(*) from (select from %s t where %s for update) l', p_relation::regclass, llm._rows_of_user(p_relation, 't'::text, p_only)
    )
    into v_count
    using p_tenant, p_user_id;
    return v_count;
end
$$;

comment on function llm._lock_rows_of_user(text, uuid, text, text) is
'Locks a user''s rows of a table, so that nobody adds any that refer to them. Returns how many.';


create function llm._lock_released_rows(
    p_tenant   text,
    p_user_id  uuid,
    p_relation text
)
    returns text[]
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_places text[];
begin
    execute format(
        'select array_agg(l.place) from (select t.tableoid || '' '' || t.ctid as place from %s t where %s for update) l',
        p_relation::regclass, llm._rows_of_user(p_relation, 't'::text, null::text)
    )
    into v_places
    using p_tenant, p_user_id;
    return coalesce(v_places, '{}');
end
$$;

comment on function llm._lock_released_rows(text, uuid, text) is
'Locks the rows of a table that only the user''s rows refer to. Returns where they are.';


create function llm._delete_rows_at(
    p_relation text,
    p_places   text[]
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    execute format(
        'delete from %s t using unnest($1) p where t.ctid = split_part(p, '' '', 2)::tid and t.tableoid = split_part(p, '' '', 1)::oid',
        p_relation::regclass
    )
    using p_places;
end
$$;

comment on function llm._delete_rows_at(text, text[]) is
'Deletes rows that llm._lock_released_rows() found, as far as no trigger has done so.';


create function llm._erase_rows_of_user(
    p_tenant   text,
    p_user_id  uuid,
    p_relation text,
    p_only     text,
    p_action   text,
    p_columns  text[],
    p_reason   text
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_where text := llm._rows_of_user(p_relation, 't'::text, p_only);
    v_count bigint;
    v_key   text;
begin
    if p_action = 'shred' then
        for v_key in
            execute format('select distinct t.%I::text from %s t where %s order by 1', p_columns[1], p_relation::regclass, v_where)
            using p_tenant, p_user_id
        loop
            perform llm.shred_key(v_key, p_reason) where v_key is not null;
        end loop;
    end if;
    case p_action
        when 'keep' then
            execute format('select count(*) from %s t where %s', p_relation::regclass, v_where) into v_count using p_tenant, p_user_id;
        when 'anonymize' then
            execute format(
                'update %s t set %s where %s',
                p_relation::regclass, (select string_agg(format('%I = null', c), ', ') from unnest(p_columns) c), v_where
            )
            using p_tenant, p_user_id;
            get diagnostics v_count = row_count;
        else
            execute format('delete from %s t where %s', p_relation::regclass, v_where) using p_tenant, p_user_id;
            get diagnostics v_count = row_count;
    end case;
    return v_count;
end
$$;

comment on function llm._erase_rows_of_user(text, uuid, text, text, text, text[], text) is
'Does with a user''s rows of a table what the register says. Returns how many.';


create function llm._residual_rows(
    p_tenant   text,
    p_user_id  uuid,
    p_relation regclass,
    p_needles  text[]
)
    returns table (residual bigint, columns text[])
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tests   text[];
    v_columns text;
begin
    select
        array_agg(
            case a.atttypid
                when 'uuid'::regtype then format('coalesce(t.%I = $2, false)', a.attname)
                when 'bytea'::regtype then format('exists (select from unnest($3) n where position(convert_to(n, ''UTF8'') in t.%I) > 0)', a.attname)
                else format('exists (select from unnest($3) n where strpos(lower(t.%I::text), n) > 0)', a.attname)
            end
            order by a.attnum
        ),
        string_agg(format('%L', a.attname), ', ' order by a.attnum)
    into v_tests, v_columns
    from pg_attribute a
    where a.attrelid = p_relation
        and a.attnum > 0
        and not a.attisdropped
        and a.atttypid in (
            'uuid'::regtype, 'text'::regtype, 'jsonb'::regtype, 'json'::regtype, 'varchar'::regtype, 'name'::regtype, 'uuid[]'::regtype,
            'text[]'::regtype, 'jsonb[]'::regtype, 'varchar[]'::regtype, 'bytea'::regtype
        );
    if v_tests is null then
        return query select 0::bigint, '{}'::text[];
        return;
    end if;
    return query execute format(
        'select count(*), array(select distinct c from unnest(string_to_array(string_agg(s.hits, %L), %L)) c order by c)'
        ' from (select array_to_string(array('
        'select (array[%s])[f.position] from unnest(array[%s]) with ordinality f (hit, position) where f.hit), %L) as hits'
        ' from %s t where (%s) is not true %s) s where s.hits <> %L',
        ', ', ', ', v_columns, array_to_string(v_tests, ', '), ', ', p_relation, llm._rows_of_user(p_relation::text, 't'::text, null::text),
        case when exists (select from pg_attribute a where a.attrelid = p_relation and a.attname = 'tenant_id' and not a.attisdropped)
            then 'and t.tenant_id = $1' else '' end,
        ''
    )
    using p_tenant, p_user_id, p_needles;
end
$$;

comment on function llm._residual_rows(text, uuid, regclass, text[]) is
'In how many rows of a table, besides those that are registered as the user''s, his id or another of p_needles (in lower case, for any) stands,
and in which columns of them: in all columns of text, JSON or UUIDs, and arrays of these, and as it is written in those of bytes.';


-- security definer: it reaches every table, whoever holds it, and writes to the audit log.
create function llm.forget_user(
    p_user_id uuid,
    p_reason  text default null,
    p_dry_run boolean default false,
    p_also    text[] default null
)
    returns setof llm.erasure
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready  boolean := llm._require_storage();
    v_tenant    text := llm.current_tenant();
    v_needles   text[];
    v_table     record;
    v_counts    jsonb := '{}';
    v_places    text[];
    v_released  jsonb := '{}';
    v_count     bigint;
    v_items     llm.erasure[] := '{}';
    v_relations text[] := '{}';
    v_at        integer;
begin
    if v_tenant is null or p_user_id is null then
        raise exception '% is given to forget', case when v_tenant is null then 'no tenant whose user' else 'no user' end
            using errcode = 'invalid_parameter_value',
                  hint = 'Run: select llm.set_tenant(''…''); first, and give the id of a user of that tenant.';
    end if;
    if p_user_id <> llm.current_user_id() then
        raise exception 'this transaction works for another user than %', p_user_id
            using errcode = 'insufficient_privilege',
                  hint = 'Run: select llm.set_user(null); first.';
    end if;
    -- What is shorter than three characters stands everywhere.
    v_needles := array[p_user_id::text, replace(p_user_id::text, '-', '')]
        || array(select v from unnest(p_also) n cross join lateral unnest(array[n, lower(n)]) v where length(n) >= 3);

    if not p_dry_run then
        -- From those that others refer to: in the order of all who add rows.
        for v_table in
            select * from llm._personal_tables() p where p.action not in ('keep', 'release') order by p.depth desc, p.relation, p.user_column
        loop
            v_counts := v_counts || jsonb_build_object(
                v_table.relation || v_table.user_column || v_table.via,
                llm._lock_rows_of_user(v_tenant, p_user_id, v_table.relation, v_table.user_column || v_table.via)
            );
        end loop;
        for v_table in select * from llm._personal_tables() p where p.action = 'release' order by p.relation loop
            v_places := llm._lock_released_rows(v_tenant, p_user_id, v_table.relation);
            v_counts := v_counts || jsonb_build_object(v_table.relation, cardinality(v_places));
            v_released := v_released || jsonb_build_object(v_table.relation, v_places);
        end loop;
    end if;

    for v_table in select * from llm._personal_tables() p order by p.action = 'release', p.depth, p.relation, p.user_column loop
        v_count := llm._erase_rows_of_user(
            v_tenant, p_user_id, v_table.relation, v_table.user_column || v_table.via,
            case when p_dry_run or v_table.action = 'release' then 'keep' else v_table.action end,
            case when v_table.action = 'anonymize' then array_remove(v_table.columns || v_table.user_column, '') else v_table.columns end,
            p_reason
        );
        if v_released ? v_table.relation then
            perform llm._delete_rows_at(v_table.relation, array(select jsonb_array_elements_text(v_released -> v_table.relation)));
        end if;
        -- As they were before: rows may have gone with others, by a foreign key or a trigger.
        v_count := coalesce((v_counts ->> (v_table.relation || v_table.user_column || v_table.via))::bigint, v_count);
        v_items := v_items || (v_table.relation, v_table.action, v_count, 0, '{}', v_table.reason)::llm.erasure;
        v_relations := v_relations || v_table.relation;
    end loop;

    for v_table in
        select r.relation, r.residual, r.columns
        from (
            select c.oid::regclass::text as relation, s.residual, s.columns
            from pg_class c
            cross join lateral llm._residual_rows(v_tenant, p_user_id, c.oid::regclass, v_needles) s
            where c.relkind in ('r', 'p')
                and not c.relispartition
                and (c.relnamespace = 'llm'::regnamespace
                     or exists (select from llm.personal_data d where to_regclass(d.relation) = c.oid::regclass))
        ) r
        where r.residual > 0
        order by r.relation
    loop
        v_at := array_position(v_relations, v_table.relation);
        if v_at is null then
            v_items := v_items || (v_table.relation, null, 0, v_table.residual, v_table.columns, null)::llm.erasure;
        else
            v_items[v_at].residual := v_table.residual;
            v_items[v_at].columns := v_table.columns;
        end if;
    end loop;

    if not p_dry_run then
        perform llm.log_audit_event(
            'user_forgotten'::text, 'user'::text, p_user_id::text,
            jsonb_build_object(
                'reason', p_reason,
                'rows', (select sum(i.rows) from unnest(v_items) i where i.action <> 'keep'),
                'residual', (select sum(i.residual) from unnest(v_items) i),
                'tables', (select jsonb_agg(jsonb_strip_nulls(to_jsonb(i))) from unnest(v_items) i where i.rows > 0 or i.residual > 0)
            ),
            session_user::text, null::jsonb, null::jsonb, null::jsonb, null::text, 'llm_auditor'::text
        );
    end if;
    return query select i.* from unnest(v_items) i order by i.relation, i.action;
end
$$;

alter function llm.forget_user(uuid, text, boolean, text[]) owner to llm_owner;

comment on function llm.forget_user(uuid, text, boolean, text[]) is
'Forgets a user of the tenant, in this transaction: does with his rows what each table is registered for (llm.register_personal_data), then looks for
him in all text, JSON, UUIDs and bytes that the tenant has in schema llm. p_user_id: whom; p_reason: for the audit log; p_dry_run: true changes
nothing and tells what would be done; p_also: more to look for, such as his name and address, each of at least 3 characters. Returns a receipt, a
row a table, which is an event user_forgotten of the audit log too. For llm_admin. Errors: invalid_parameter_value without a tenant or a user;
insufficient_privilege when llm.set_user() told of another.';


create function llm._unregistered_tables()
    returns table (relation text, problem text)
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select c.oid::regclass::text, 'has a user_id'
    from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attname = 'user_id' and not a.attisdropped
    where c.relnamespace = 'llm'::regnamespace
        and c.relkind in ('r', 'p')
        and not c.relispartition
        and not exists (select from llm.personal_data d where to_regclass(d.relation) = c.oid::regclass)
    union all
    select k.conrelid::regclass::text, 'refers to ' || d.relation
    from llm.personal_data d
    join pg_constraint k on k.contype = 'f' and k.conparentid = 0 and k.confrelid = to_regclass(d.relation)
    where d.action not in ('keep', 'release')
        and not exists (select from llm.personal_data o where to_regclass(o.relation) = k.conrelid::regclass)
    union all
    select d.relation, 'is registered and not there'
    from llm.personal_data d
    where to_regclass(d.relation) is null
        or d.user_column <> '' and not exists (
            select from pg_attribute a where a.attrelid = to_regclass(d.relation) and a.attname = d.user_column and not a.attisdropped
        )
$$;

comment on function llm._unregistered_tables() is
'Tables that llm.forget_user() should know of and does not, or the other way round.';


select llm._grant_execute(
    array['llm_owner'],
    '_rows_of_user', '_rows_referred_to', '_personal_tables', '_lock_rows_of_user', '_lock_released_rows', '_delete_rows_at',
    '_erase_rows_of_user', '_residual_rows'
);

select llm._grant_execute(
    array['llm_admin'],
    'forget_user'
);

select llm._grant_execute(
    array['llm_admin', 'llm_auditor'],
    '_unregistered_tables'
);
