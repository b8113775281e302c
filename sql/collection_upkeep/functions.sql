-- Indexes are made over closed ranges of numbers, never in the transaction of who writes points. CREATE INDEX CONCURRENTLY, which lets writers go on,
-- runs in no procedure: llm.index_statements() says what to run, llm.maintain() does the rest.

create function llm._parallel_builds_are_safe()
    returns boolean
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select string_to_array(e.extversion, '.')::integer[] >= '{0,8,2}' from pg_extension e where e.extname = 'vector');
end
$$;

comment on function llm._parallel_builds_are_safe() is
'Whether pgvector is 0.8.2 or newer: before, building an HNSW index with parallel workers overflows a buffer (CVE-2026-3172).';


create function llm._payload_indexes(
    p_collection text,
    p_fields     jsonb
)
    returns table (name text, definition text)
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_table text := 'points_' || p_collection;
begin
    return query
        select i.name, format('if not exists %I on llm.%I %s', i.name, v_table, i.rest)
        from (
            select format('index_%s_payload', p_collection) as name, 'using gin (payload jsonb_path_ops)' as rest
            where p_fields <> '{}'
            union all
            -- Partial, lest a look-up by id be made along it: to a table that was never analyzed, all of a tenant's points are one row.
            select
                format('index_%s_p%s', p_collection, substr(md5(f.key), 1, 10)),
                format('(tenant_id, (payload -> %1$L)) where payload -> %1$L is not null', f.key)
            from jsonb_each_text(p_fields) f
            where f.value in ('integer', 'float', 'datetime')
        ) i
        order by i.name;
end
$$;

comment on function llm._payload_indexes(text, jsonb) is
'The indexes over the payload that a collection should have, and what follows CREATE INDEX: one for what is equal, one each for fields that have an
order. No table of points has a name like theirs.';


create function llm._doctor_vectors()
    returns table (name text, ok boolean, detail text, hint text)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_wrong text;
begin
    if to_regclass('llm.collections') is null then
        return;
    end if;
    select string_agg(c.oid::regclass::text, ', ' order by c.relname)
    into v_wrong
    from llm.collections l
    join pg_class c on c.oid = to_regclass(format('llm.%I', 'points_' || l.name))
    where not llm._parallel_builds_are_safe()
        and not coalesce('parallel_workers=0' = any (c.reloptions), false);
    return query select
        'vector indexes are built safely',
        v_wrong is null,
        format('pgvector %s: ', (select e.extversion from pg_extension e where e.extname = 'vector')) || coalesce(
            'parallel builds of ' || v_wrong,
            case when llm._parallel_builds_are_safe() then 'parallel builds are safe' else 'built without parallel workers (CVE-2026-3172)' end
        ),
        'Run: call llm.maintain(); and build indexes of your own tables with max_parallel_maintenance_workers = 0, or install pgvector 0.8.2.';

    select string_agg(format('segment %s of %s: %s', s.segment, s.collection, s.last_error), ', ' order by s.collection, s.segment)
    into v_wrong
    from llm.segments s
    where s.last_error is not null;
    return query select
        'vector indexes can be built',
        v_wrong is null,
        coalesce(v_wrong, 'none has failed'),
        'Mend what the error says, such as maintenance_work_mem or disk space; then llm.maintain() tries again.';
    return query select * from llm._doctor_search_quality();
    return query select * from llm._doctor_embeddings();
end
$$;

comment on function llm._doctor_vectors() is
'The part of llm.doctor() about collections.';


create function llm._build_serially(
    p_collection text
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_table     regclass := format('llm.%I', 'points_' || p_collection)::regclass;
    v_is_serial boolean := exists (select from pg_class c where c.oid = v_table and 'parallel_workers=0' = any (c.reloptions));
begin
    if llm._parallel_builds_are_safe() = v_is_serial then
        if v_is_serial then
            execute format('alter table %s reset (parallel_workers)', v_table);
        else
            execute format('alter table %s set (parallel_workers = 0)', v_table);
        end if;
    end if;
end
$$;

comment on function llm._build_serially(text) is
'Has the indexes of a collection built without parallel workers, by whomever (pg_restore, REINDEX), as long as pgvector is one that fails with them.';


create function llm._missing_payload_indexes(
    p_collection text
)
    returns table (name text, definition text)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select i.name, i.definition
        from llm.collections c
        cross join llm._payload_indexes(c.name, c.payload_indexes) i
        where (p_collection is null or c.name = p_collection)
            and llm._index_state(i.name) = 'missing'
        order by i.name;
end
$$;

comment on function llm._missing_payload_indexes(text) is
'Indexes over the payload that were asked for and are not there. p_collection: null for all.';


create function llm._needless_payload_indexes(
    p_collection text
)
    returns setof text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select i.relname::text
        from llm.collections c
        join pg_index x on x.indrelid = to_regclass(format('llm.%I', 'points_' || c.name))
        join pg_class i on i.oid = x.indexrelid
        where (p_collection is null or c.name = p_collection)
            and starts_with(i.relname, format('index_%s_p', c.name))
            and (
                i.relname not in (select w.name from llm._payload_indexes(c.name, c.payload_indexes) w)
                or llm._index_state(i.relname::text) = 'interrupted'
            )
        order by 1;
end
$$;

comment on function llm._needless_payload_indexes(text) is
'Indexes over the payload that are no longer asked for, or were left behind when building them was interrupted. p_collection: null for all.';


create function llm._settle_payload_indexes(
    p_collection text
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '10s'
as $$
declare
    v_index      text;
    v_definition text;
begin
    for v_index in select n.name from llm._needless_payload_indexes(p_collection) n (name) loop
        execute format('drop index llm.%I', v_index);
    end loop;
    for v_definition in select m.definition from llm._missing_payload_indexes(p_collection) m loop
        execute format('create index %s', v_definition);
    end loop;
end
$$;

comment on function llm._settle_payload_indexes(text) is
'Builds the indexes over the payload that are missing, and drops those that are needless, while writers of the collection wait.';


create function llm.index_statements()
    returns setof text
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_collection text;
begin
    perform llm._require_storage();
    for v_collection in select c.name from llm.collections c order by c.name loop
        perform llm._publish_segments(v_collection);
        perform llm._plan_segment(v_collection);
    end loop;
    return query
        select 'create index concurrently ' || m.definition from llm._missing_payload_indexes(null::text) m
        union all
        select format('drop index concurrently if exists llm.%I', n.name) from llm._needless_payload_indexes(null::text) n (name);
    return query
        select case
            when s.state = 'building' and i.state = 'missing' then 'create index concurrently ' || llm._segment_index(s.collection, s.segment)
            else format('drop index concurrently if exists llm.%I', s.index_name)
        end
        from llm.segments s
        cross join llm._index_state(s.index_name) i (state)
        where i.state in ('missing', 'interrupted')
            or s.state = 'retiring'
        order by s.state <> 'retiring', s.collection, s.segment;
end
$$;

comment on function llm.index_statements() is
'The statements that build and drop indexes of collections while writers go on, to be run one by one outside of a transaction, as by psql''s \gexec;
then again, until there is none: an index that was interrupted is dropped first. See llm.maintain(). For superusers.';


create function llm._fill_words(
    p_collection text,
    p_limit      bigint
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
as $$
declare
    v_collection llm.collection := llm._find_collection(p_collection);
    v_count      bigint;
begin
    if not v_collection.text_indexed then
        return 0;
    end if;
    execute format(
        $words$
        with due as (
            select p.tenant_id, p.id
            from llm.%1$I p
            where p.words is null
                and p.content is not null
            order by p.tenant_id, p.number
            limit $1
            for no key update skip locked
        )
        update llm.%1$I p
        set words = llm._point_words(%2$L::regconfig, p.tenant_id, p.user_id, p.content)
        from due d
        where p.tenant_id = d.tenant_id
            and p.id = d.id
        $words$,
        'points_' || p_collection, 'pg_catalog.' || quote_ident(v_collection.language)
    ) using p_limit;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

comment on function llm._fill_words(text, bigint) is
'Finds the words of points that have none yet, so many at a time; those that somebody is writing come next time. Returns how many.';


create procedure llm.maintain(
    p_collection    text default null,
    p_lock_writers  boolean default false,
    inout p_waiting bigint default null
)
    language plpgsql
as $$
declare
    v_collection pg_catalog.text;
    v_segment    pg_catalog.int8;
begin
    perform llm._require_storage();
    if p_collection is not null then
        p_collection := (llm._find_collection(p_collection)).name;
    end if;
    foreach v_collection in array array(
        select c.name from llm.collections c where p_collection is null or c.name operator(pg_catalog.=) p_collection order by c.name
    ) loop
        -- First the words: a point that has an index already would be indexed again.
        while llm._fill_words(v_collection, 200::pg_catalog.int8) operator(pg_catalog.=) 200 loop
            commit;
        end loop;
        commit;
        perform llm._build_serially(v_collection);
        if p_lock_writers then
            perform llm._settle_payload_indexes(v_collection);
        end if;
        commit;
        loop
            perform llm._publish_segments(v_collection);
            perform llm._plan_segment(v_collection);
            commit;
            exit when not p_lock_writers;
            select s.segment
            into v_segment
            from llm.segments s
            where s.collection operator(pg_catalog.=) v_collection
                and s.state operator(pg_catalog.=) 'building';
            exit when v_segment is null;
            exit when not llm._build_segment(v_collection, v_segment);
            commit;
        end loop;
        commit;
        perform llm._drop_retired(v_collection);
        commit;
    end loop;
    select pg_catalog.count(*) into p_waiting from llm.index_statements();
end
$$;

comment on procedure llm.maintain(text, boolean, bigint) is
'Looks after the collections, each step in a transaction of its own: finds the words of new points, decides which numbers get an index next, takes
note of indexes that were built, drops those that are covered by others. Building them is left to llm.index_statements(), which keeps no writer
waiting; p_lock_writers: true builds them right here, while writers of the collection wait. p_collection: null for all; p_waiting: leave it out; the
row that is returned says how many statements wait to be run. Call it outside of a transaction, every minute or so; llm.segment_progress shows how far
it is. For superusers. Errors: undefined_object when there is no such collection.';


select llm._grant_execute(
    array['llm_owner'],
    '_payload_indexes'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_auditor'],
    '_parallel_builds_are_safe'
);

select llm._grant_execute(
    array['llm_admin', 'llm_auditor'],
    '_doctor_vectors'
);
