create function llm._index_settings(
    p_collection llm.collection,
    p_rows       bigint
)
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    c       llm.collection := p_collection;
    v_class text := c.element || case c.distance when 'inner_product' then '_ip' else '_' || c.distance end || '_ops';
    -- The number of lists that pgvector's documentation advises.
    v_lists integer := coalesce(c.lists, greatest(1, case when p_rows > 1000000 then sqrt(p_rows) else p_rows / 1000 end)::integer);
begin
    return format(
        '%s (%s) with (%s)',
        c.index_kind,
        case
            when c.element = 'bit' then format(
                '(@extschema:vector@.binary_quantize(embedding)::bit(%s)) @extschema:vector@.bit_hamming_ops', c.dimensions
            )
            else 'embedding @extschema:vector@.' || v_class
        end,
        case c.index_kind when 'hnsw' then format('m = %s, ef_construction = %s', c.m, c.ef_construction) else format('lists = %s', v_lists) end
    );
end
$$;

comment on function llm._index_settings(llm.collection, bigint) is
'How a segment of so many points is to be indexed: what follows USING.';


create function llm._segment_index(
    p_collection text,
    p_segment    bigint
)
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select format(
            'if not exists %I on llm.%I using %s where number >= %s and number < %s',
            s.index_name, 'points_' || s.collection, s.settings, s.from_number, s.to_number
        )
        from llm.segments s
        where s.collection = p_collection
            and s.segment = p_segment
    );
end
$$;

comment on function llm._segment_index(text, bigint) is
'What follows CREATE INDEX, with or without CONCURRENTLY, for a segment.';


create function llm._index_state(
    p_index text
)
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(
        (
            select case
                when i.indisvalid then 'ready'
                when exists (select from pg_stat_progress_create_index p where p.index_relid = i.indexrelid) then 'being built'
                else 'interrupted'
            end
            from pg_index i
            where i.indexrelid = to_regclass(format('llm.%I', p_index))
        ),
        'missing'
    );
end
$$;

comment on function llm._index_state(text) is
'Whether an index is ready, being built (CONCURRENTLY), interrupted (left behind, not valid), or missing.';


create function llm._live_rows(
    p_collection text,
    p_bounds     bigint[]
)
    returns bigint[]
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_counts bigint[];
begin
    execute format(
        $count$
        select array_agg(coalesce(c.rows, 0) order by b.bucket)
        from generate_series(0, cardinality($1)) b (bucket)
        left join (
            select width_bucket(p.number, $1) as bucket, count(*) as rows from llm.%I p where p.embedding is not null group by 1
        ) c using (bucket)
        $count$,
        'points_' || p_collection
    ) into v_counts using p_bounds;
    return v_counts;
end
$$;

comment on function llm._live_rows(text, bigint[]) is
'How many points with a vector there are before the first number, from each number on, and from the last on.';


create function llm._plan_segment(
    p_collection text
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_collection llm.collection := llm._find_collection(p_collection);
    v_segments   bigint[];
    v_starts     bigint[];
    v_ends       bigint[];
    v_built      bigint[];
    v_settings   text[];
    v_live       bigint[];
    v_end        bigint;
    v_rows       bigint;
    v_first      integer;
    v_last       integer;
begin
    -- One decides at a time.
    perform from llm.collections c where c.name = p_collection for no key update;
    if v_collection.index_kind = 'none' then
        update llm.segments s set state = 'retiring' where s.collection = p_collection and s.state <> 'retiring';
        if found then
            perform llm._raise_version(p_collection);
        end if;
        return false;
    end if;
    if exists (select from llm.segments s where s.collection = p_collection and s.state = 'building') then
        return false;
    end if;
    select
        array_agg(s.segment order by s.from_number), array_agg(s.from_number order by s.from_number), array_agg(s.to_number order by s.from_number),
        array_agg(s.rows order by s.from_number), array_agg(s.settings order by s.from_number)
    into v_segments, v_starts, v_ends, v_built, v_settings
    from llm.segments s
    where s.collection = p_collection
        and s.state = 'ready';
    v_last := coalesce(cardinality(v_segments), 0);
    execute format('select last_value + 1 from %s', pg_get_serial_sequence(format('llm.%I', 'points_' || p_collection), 'number')) into v_end;
    -- The tail is the last range: from the end of the last segment on.
    v_starts := v_starts || coalesce(v_ends[v_last], 1);
    v_ends := v_ends || v_end;
    v_live := (llm._live_rows(p_collection, v_starts))[2:];
    v_rows := v_live[v_last + 1];

    if v_last = 0 and v_rows >= v_collection.indexing_threshold or v_last > 0 and v_rows * 10 >= v_collection.indexing_threshold then
        -- With it go the segments before it that are not larger than all after them: so that each is at least as large as the next one together with
        -- those that follow, there are few, and a point is indexed again as often as its segment doubles.
        v_first := v_last + 1;
        v_last := v_first;
        while v_first > 1 and v_live[v_first - 1] <= v_rows and v_live[v_first - 1] + v_rows <= v_collection.max_segment_size loop
            v_first := v_first - 1;
            v_rows := v_rows + v_live[v_first];
        end loop;
        if v_rows > v_collection.max_segment_size then
            execute format('select number from llm.%I where number >= $1 and embedding is not null order by number offset $2 limit 1',
                           'points_' || p_collection)
            into v_end using v_starts[v_first], v_collection.max_segment_size;
            v_ends[v_last] := v_end;
            v_rows := v_collection.max_segment_size;
        end if;
    else
        select i into v_first
        from generate_series(1, v_last) i
        where v_live[i] <= v_built[i] * (1 - v_collection.deleted_threshold)
            or v_settings[i] <> llm._index_settings(v_collection, v_built[i])
        order by i
        limit 1;
        if not found then
            return false;
        end if;
        v_last := v_first;
        v_rows := v_live[v_first];
        if v_rows = 0 then
            update llm.segments s
            set state = 'retiring'
            where s.collection = p_collection
                and s.segment = v_segments[v_first];
            perform llm._raise_version(p_collection);
            return true;
        end if;
    end if;

    insert into llm.segments (collection, from_number, to_number, settings, rows)
    values (p_collection, v_starts[v_first], v_ends[v_last], llm._index_settings(v_collection, v_rows), v_rows);
    return true;
end
$$;

comment on function llm._plan_segment(text) is
'Decides which range of numbers of a collection gets an index next: the tail when it is long enough, with the segments before it that are to be
merged; or a segment that has lost too many of its points, or was built by other settings. Returns whether there was anything to decide.';


create function llm._raise_version(
    p_collection text
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    update llm.collections c set version = c.version + 1, updated_at = clock_timestamp() where c.name = p_collection;
end
$$;

comment on function llm._raise_version(text) is
'Has searches of a collection written anew.';


create function llm._publish_segment(
    p_collection text,
    p_segment    bigint
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    with n as (
        update llm.segments s
        set state = 'ready',
            last_error = null,
            built_at = clock_timestamp()
        where s.collection = p_collection
            and s.segment = p_segment
        returning s.from_number, s.to_number
    )
    update llm.segments s
    set state = 'retiring'
    from n
    where s.collection = p_collection
        and s.state = 'ready'
        and s.from_number >= n.from_number
        and s.to_number <= n.to_number;
    perform llm._raise_version(p_collection);
end
$$;

comment on function llm._publish_segment(text, bigint) is
'Lets searches use a segment whose index is ready, in place of those that it covers.';


create function llm._publish_segments(
    p_collection text
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm._publish_segment(s.collection, s.segment)
    from llm.segments s
    where s.collection = p_collection
        and s.state = 'building'
        and llm._index_state(s.index_name) = 'ready';
    delete from llm.segments s where s.collection = p_collection and s.state = 'retiring' and llm._index_state(s.index_name) = 'missing';
    -- Somebody dropped its index, or was interrupted building it anew.
    update llm.segments s
    set state = 'building'
    where s.collection = p_collection
        and s.state = 'ready'
        and llm._index_state(s.index_name) in ('missing', 'interrupted');
    if found then
        perform llm._raise_version(p_collection);
    end if;
end
$$;

comment on function llm._publish_segments(text) is
'Takes note of the indexes that were built and dropped; one that is gone though its segment is searched is to be built again.';


create function llm._build_segment(
    p_collection text,
    p_segment    bigint
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '10s'
as $$
declare
    v_segment record;
begin
    select llm._index_state(s.index_name) as index_state, s.index_name
    into v_segment
    from llm.segments s
    where s.collection = p_collection
        and s.segment = p_segment
        and s.state = 'building'
    for update skip locked;
    if not found or v_segment.index_state = 'being built' then
        return false;
    end if;
    update llm.segments s set attempts = s.attempts + 1 where s.collection = p_collection and s.segment = p_segment;
    begin
        if v_segment.index_state = 'interrupted' then
            execute format('drop index llm.%I', v_segment.index_name);
        end if;
        execute format('create index %s', llm._segment_index(p_collection, p_segment));
        perform llm._publish_segment(p_collection, p_segment);
        return true;
    exception
        when others then
            raise warning 'segment % of collection % cannot be built: %', p_segment, p_collection, sqlerrm;
            update llm.segments s set last_error = sqlerrm where s.collection = p_collection and s.segment = p_segment;
            return false;
    end;
end
$$;

comment on function llm._build_segment(text, bigint) is
'Builds the index of a segment and publishes it, while writers of the collection wait. What fails is a WARNING, and is tried again next
time. Returns whether it was built.';


create function llm._drop_retired(
    p_collection text
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '200ms'
as $$
declare
    v_index text;
begin
    for v_index in select s.index_name from llm.segments s where s.collection = p_collection and s.state = 'retiring' loop
        execute format('drop index if exists llm.%I', v_index);
    end loop;
    delete from llm.segments s where s.collection = p_collection and s.state = 'retiring';
exception
    when lock_not_available then
        -- Somebody still searches, and others must not queue up behind us: next time.
        null;
end
$$;

comment on function llm._drop_retired(text) is
'Drops the indexes of segments that are covered by others, if that can be done at once.';
