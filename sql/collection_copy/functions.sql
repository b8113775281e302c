create function llm._mirror_point()
    returns trigger
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'DELETE' or new.content is null then
        execute format('delete from llm.%I p where p.tenant_id = $1 and p.id = $2', 'points_' || tg_argv[0])
        using coalesce(new.tenant_id, old.tenant_id), coalesce(new.id, old.id);
    else
        execute format(
            $mirror$
            insert into llm.%I as p (tenant_id, id, user_id, content, content_hash, model, payload)
            select $1, $2, $3, $4, $5, c.model, $6
            from llm.collections c
            where c.name = $7
            on conflict (tenant_id, id) do update
                set number = excluded.number,
                    user_id = excluded.user_id,
                    content = excluded.content,
                    content_hash = excluded.content_hash,
                    model = excluded.model,
                    embedding = case
                        when p.content_hash = excluded.content_hash and p.model is not distinct from excluded.model then p.embedding
                    end,
                    payload = excluded.payload,
                    words = case
                        when p.content_hash = excluded.content_hash and p.user_id is not distinct from excluded.user_id then p.words
                    end,
                    updated_at = clock_timestamp()
                -- What was mirrored comes back here, and goes no further.
                where (p.user_id, p.content_hash, p.payload) is distinct from (excluded.user_id, excluded.content_hash, excluded.payload)
            $mirror$,
            'points_' || tg_argv[0]
        )
        using new.tenant_id, new.id, new.user_id, new.content, new.content_hash, new.payload, tg_argv[0];
    end if;
    return null;
end
$$;

comment on function llm._mirror_point() is
'Trigger of tables of points: writes what was written, but for the vector, to another collection, its argument.';


create function llm._mirror_points(
    p_from text,
    p_to   text
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_table   regclass := format('llm.%I', 'points_' || p_from)::regclass;
    v_trigger record;
begin
    for v_trigger in
        select format('mirror_%s_%s', t.event, p_to) as name, t.event, t.condition
        from (
            values
                ('insert', 'new.content is not null'),
                (
                    'update',
                    '(old.user_id, old.content_hash, old.payload) is distinct from (new.user_id, new.content_hash, new.payload)'
                ),
                ('delete', 'true')
        ) t (event, condition)
        where not exists (select from pg_trigger g where g.tgrelid = v_table and g.tgname = format('mirror_%s_%s', t.event, p_to))
    loop
        execute format(
            'create trigger %I after %s on %s for each row when (%s) execute function llm._mirror_point(%L)',
            v_trigger.name, v_trigger.event, v_table, v_trigger.condition, p_to
        );
    end loop;
end
$$;

comment on function llm._mirror_points(text, text) is
'Makes the triggers that write to one collection what is written to another.';


create function llm._part_copies()
    returns trigger
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_trigger record;
begin
    for v_trigger in
        select g.tgname, g.tgrelid::regclass as relation
        from (values (old.collection, old.copy), (old.copy, old.collection)) m (source, target)
        join pg_trigger g
            on g.tgrelid = to_regclass(format('llm.%I', 'points_' || m.source))
            and g.tgname in ('mirror_insert_' || m.target, 'mirror_update_' || m.target, 'mirror_delete_' || m.target)
    loop
        execute format('drop trigger %I on %s', v_trigger.tgname, v_trigger.relation);
    end loop;
    return old;
end
$$;

comment on function llm._part_copies() is
'Trigger of llm.collection_copies: what is written to the one is no longer written to the other.';


-- security definer: tables of points are llm_owner''s.
create function llm.copy_for_model(
    p_collection text,
    p_name       text,
    p_model      text,
    p_dimensions integer default null
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    c llm.collection := llm._find_collection(p_collection);
begin
    if p_model is null then
        raise exception 'a copy of collection % needs a model', c.name
            using errcode = 'invalid_parameter_value',
                  hint = 'Its vectors are to be those of another model than the collection''s.';
    end if;
    perform llm.create_collection(
        p_name, coalesce(p_dimensions, c.dimensions), c.distance, c.element, c.index_kind, c.m, c.ef_construction, c.lists, c.ef_search,
        c.full_scan_threshold, c.indexing_threshold, c.max_segment_size, c.deleted_threshold, c.payload_indexes, c.on_disk, p_model, c.language,
        c.text_indexed
    );
    insert into llm.collection_copies (copy, collection) values (p_name, c.name);
    perform llm._mirror_points(c.name, p_name);
    execute format(
        $copy$
        insert into llm.%I (tenant_id, id, user_id, content, content_hash, model, payload, words, created_at)
        select p.tenant_id, p.id, p.user_id, p.content, p.content_hash, $1, p.payload, p.words, p.created_at
        from llm.%I p
        where p.content is not null
        order by p.tenant_id, p.number
        $copy$,
        'points_' || p_name, 'points_' || c.name
    )
    using p_model;
    perform llm._mirror_points(p_name, c.name);
    return (
        select llm.set_embedding_model(p_name, p_model, q.max_attempts, q.base_delay, q.failure_threshold, q.open_for)
        from (select 8 as max_attempts, interval '1 second' as base_delay, 5 as failure_threshold, interval '30 seconds' as open_for) d
        left join llm.embedding_queues o on o.collection = c.name
        cross join lateral (
            select
                coalesce(o.max_attempts, d.max_attempts) as max_attempts, coalesce(o.base_delay, d.base_delay) as base_delay,
                coalesce(o.failure_threshold, d.failure_threshold) as failure_threshold, coalesce(o.open_for, d.open_for) as open_for
        ) q
    );
end
$$;

alter function llm.copy_for_model(text, text, text, integer) owner to llm_owner;

comment on function llm.copy_for_model(text, text, text, integer) is
'Makes a collection with the same settings and contents, of all tenants, for the vectors of another model, which workers find. From now on what is
written to the one is written to the other, but for vectors, until one is dropped: so both can be searched and compared, and an alias be switched
from one to the other and back. Writers of the collection wait until the transaction ends. p_name: of the copy; p_model: whose vectors;
p_dimensions: of these, by default as before. Points without content are not copied. Returns how many vectors are pending. Errors: as
llm.create_collection(); undefined_object.';


-- security definer: as llm.get_points().
create function llm.compare_collections(
    p_a      text,
    p_b      text,
    p_sample integer default 100,
    p_k      integer default 10,
    p_ids    text[] default null
)
    returns table (
        compared bigint, overlap double precision, same_first double precision, least_overlap double precision, least_alike text
    )
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_a       llm.collection := llm._find_collection(p_a);
    v_b       llm.collection := llm._find_collection(p_b);
    v_tenant  text := llm._point_tenant();
    v_user_id uuid := llm.current_user_id();
    v_claimed text := llm._claimed_tenant();
begin
    if p_sample is null or p_sample not between 1 and 10000 or p_k is null or p_k not between 1 and 1000 then
        raise exception 'collections cannot be compared by % points and their nearest %', coalesce(p_sample::text, 'null'),
            coalesce(p_k::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Take 1 to 10,000 points, and the nearest 1 to 1,000 of each.';
    end if;
    return query execute format(
        $compare$
        with sampled as (
            select a.id, a.embedding::@extschema:vector@.vector as in_a, b.embedding::@extschema:vector@.vector as in_b
            from llm.%1$I a
            join llm.%2$I b
                on b.tenant_id = a.tenant_id
                and b.id = a.id
                and b.content_hash = a.content_hash
            where a.tenant_id = $1
                and ($2 is null or a.user_id = $2)
                and ($3 is null or a.id = any ($3))
                and a.embedding is not null
                and b.embedding is not null
            order by case when $3 is null then random() end
            limit $4
        ),
        nearest as (
            select s.id, x.ids as in_a, y.ids as in_b
            from sampled s
            cross join lateral (
                select (array_agg(h.id) filter (where h.id <> s.id))[1:$5] as ids
                from unnest(
                    (select llm._vector_search($6, s.in_a, $5 + 1, null::jsonb, null::double precision, null::integer, false, false, $8, $2))
                ) h
            ) x
            cross join lateral (
                select (array_agg(h.id) filter (where h.id <> s.id))[1:$5] as ids
                from unnest(
                    (select llm._vector_search($7, s.in_b, $5 + 1, null::jsonb, null::double precision, null::integer, false, false, $8, $2))
                ) h
            ) y
        ),
        alike as (
            select n.id, n.in_a[1] = n.in_b[1] as is_same_first, o.common / cardinality(n.in_a)::double precision as overlap
            from nearest n
            cross join lateral (select count(*) as common from unnest(n.in_a) u (id) where u.id = any (n.in_b)) o
            where cardinality(n.in_a) > 0
        )
        select
            count(*), avg(l.overlap), avg(l.is_same_first::integer)::double precision, min(l.overlap),
            (array_agg(l.id order by l.overlap, l.id))[1]
        from alike l
        $compare$,
        'points_' || v_a.name, 'points_' || v_b.name
    )
    using v_tenant, v_user_id, p_ids, p_sample, p_k, v_a.name, v_b.name, v_claimed;
end
$$;

alter function llm.compare_collections(text, text, integer, integer, text[]) owner to llm_owner;

comment on function llm.compare_collections(text, text, integer, integer, text[]) is
'How alike two collections with the same contents find things, for the current tenant, and its user if one is set. For points that have a vector in
both the nearest others are looked for in each. p_sample: how many points, by chance; p_k: how many nearest; p_ids: these points instead. Returns how
many were compared; overlap: the share of the nearest that both found, on average; same_first: the share of points whose nearest is the same; the
least overlap, and the point that has it. Errors: undefined_object, invalid_parameter_value; object_not_in_prerequisite_state when no tenant is set.';


select llm._grant_execute(
    array['llm_owner'],
    '_mirror_point', '_mirror_points', '_part_copies'
);

select llm._grant_execute(
    array['llm_admin'],
    'copy_for_model'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'compare_collections'
);
