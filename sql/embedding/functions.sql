create type llm.similar_embedding as (
    id            uuid,
    content_type  text,
    content_id    uuid,
    embedding     @extschema:vector@.vector,
    metadata      jsonb,
    similarity    double precision
);

comment on type llm.similar_embedding is
'An embedding that llm.search_similar() found. similarity: cosine similarity, or the score of the collection''s distance.';


create function llm.create_embeddings(
    p_collection text default 'embeddings',
    p_dimensions integer default 1536
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm._require_storage();
    if exists (select from llm.collections c where c.name = p_collection)
        or exists (select from llm.collection_aliases a where a.alias = p_collection)
    then
        return false;
    end if;
    perform llm.create_collection(
        p_collection, p_dimensions, 'cosine'::text, 'vector'::text, 'ivfflat'::text, 16, 100, 100, 40, 10000::bigint, 20000::bigint,
        200000::bigint, 0.2::double precision, '{"content_type": "keyword", "content_id": "uuid"}'::jsonb, false, null::text, 'english'::text, true
    );
    return true;
end
$$;

comment on function llm.create_embeddings(text, integer) is
'Makes the collection of llm.store_embedding(), unless it is there: cosine distance, ivfflat with 100 lists. p_dimensions: of its vectors. Returns
whether it made one. Errors: as llm.create_collection().';


create function llm.store_embedding(
    p_content_type text,
    p_content_id   uuid,
    p_embedding    @extschema:vector@.vector,
    p_metadata     jsonb default '{}',
    p_id           uuid default null,
    p_collection   text default 'embeddings'
)
    returns uuid
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid := coalesce(p_id, llm.uuid_v7());
begin
    if p_content_id is null or p_embedding is null or p_content_type is null or octet_length(p_content_type) not between 1 and 50 then
        raise exception 'an embedding has no content type, no content id or no vector'
            using errcode = 'invalid_parameter_value',
                  hint = 'Name the kind of content in 1 to 50 bytes, such as message, and which one it is by its UUID.';
    end if;
    perform llm.upsert_points(
        p_collection, null::jsonb, array[v_id::text], array[p_embedding], null::text[],
        array[jsonb_build_object('content_type', p_content_type, 'content_id', p_content_id, 'metadata', coalesce(p_metadata, '{}'))],
        null::uuid[], null::text
    );
    return v_id;
end
$$;

comment on function llm.store_embedding(text, uuid, @extschema:vector@.vector, jsonb, uuid, text) is
'Stores a vector of something, and returns its id. p_content_type, p_content_id: of what, such as a message and its UUID; p_metadata: what else there
is to say; p_id: its id, in place of one that has it, null for a new one; p_collection: see llm.create_embeddings(). Errors: as llm.upsert_points().';


create function llm.search_similar(
    p_query        @extschema:vector@.vector,
    p_limit        integer default 10,
    p_threshold    double precision default 0.7,
    p_content_type text default null,
    p_collection   text default 'embeddings'
)
    returns setof llm.similar_embedding
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select
            h.id::uuid, h.payload ->> 'content_type', (h.payload ->> 'content_id')::uuid, p.embedding,
            coalesce(h.payload -> 'metadata', '{}'), h.score
        from unnest((select llm._vector_search(
            p_collection, p_query, p_limit,
            case
                when p_content_type is not null
                    then jsonb_build_object('must', jsonb_build_array(
                        jsonb_build_object('key', 'content_type', 'match', jsonb_build_object('value', p_content_type))
                    ))
            end,
            p_threshold, null::integer, false, true, llm._claimed_tenant(), llm.current_user_id()
        ))) h
        cross join lateral llm.get_points(p_collection, array[h.id], true) p
        where p_threshold is null
            or h.score > p_threshold
        order by h.distance, h.id;
exception
    when invalid_text_representation then
        raise exception 'collection % has points that are no embeddings: %', p_collection, sqlerrm
            using errcode = 'invalid_parameter_value',
                  hint = 'Those of llm.store_embedding() have UUIDs as id and content_id; llm.vector_search() finds any points.';
end
$$;

comment on function llm.search_similar(@extschema:vector@.vector, integer, double precision, text, text) is
'The embeddings most similar to a vector, most similar first. p_limit: how many at most; p_threshold: only those that are more similar than this, null
for all; p_content_type: only of this kind; p_collection: see llm.create_embeddings(). Errors: as llm.vector_search().';


-- security definer: an index is over the vectors of all tenants, whose number alone is told.
create function llm.optimize_index(
    p_collection text default 'embeddings',
    p_rule       text default 'pgvector'
)
    returns table (vectors bigint, lists_before integer, lists_by_seed integer, lists_by_pgvector integer, lists integer)
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_collection llm.collection := llm._find_collection(p_collection);
    v_table      text := format('llm.%I', 'points_' || v_collection.name);
begin
    if p_rule is null or p_rule not in ('pgvector', 'seed') then
        raise exception 'there is no rule % for lists', coalesce(quote_literal(left(p_rule, 100)), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Rules are pgvector (rows / 1,000, above a million their root) and seed (the root of rows, 64 to 1,000).';
    end if;
    execute format('select count(embedding) from %s', v_table) into vectors;
    lists_before := v_collection.lists;
    lists_by_seed := least(greatest(floor(sqrt(vectors)), 64), 1000);
    lists_by_pgvector := least(greatest(case when vectors <= 1000000 then vectors / 1000 else floor(sqrt(vectors)) end, 1), 32768);
    lists := case p_rule when 'seed' then lists_by_seed else lists_by_pgvector end;
    if lists is distinct from v_collection.lists then
        perform llm.alter_collection(
            v_collection.name, null::text, null::integer, null::integer, lists, null::integer, null::bigint, null::bigint, null::bigint,
            null::double precision, null::jsonb, null::boolean, null::text
        );
    end if;
    execute format('analyze %s', v_table);
    return next;
end
$$;

alter function llm.optimize_index(text, text) owner to llm_owner;

comment on function llm.optimize_index(text, text) is
'Sets the number of lists of an ivfflat index by the number of vectors, and renews the planner''s statistics; llm.maintain() builds the index anew.
p_rule: pgvector (rows / 1,000, above a million their root), or seed (the root of rows, at least 64, at most 1,000). Returns the number of
vectors of all tenants, the lists before, by both rules, and now. Errors: undefined_object; invalid_parameter_value.';


-- security definer: as llm.get_points().
create function llm.analyze_vector_distribution(
    p_collection text default 'embeddings',
    p_sample     integer default 1000
)
    returns table (
        total_vectors bigint, sampled bigint, dimensions integer, min_norm double precision, avg_norm double precision, max_norm double precision,
        stddev_norm double precision, avg_similarity double precision, stddev_similarity double precision, duplicates bigint
    )
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_collection llm.collection := llm._find_collection(p_collection);
begin
    if p_sample is null or p_sample not between 2 and 100000 then
        raise exception 'a distribution cannot be told by % vectors', coalesce(p_sample::text, 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Sample 2 to 100,000.';
    end if;
    return query execute format(
        $analyze$
        with own as materialized (
            select p.id
            from llm.%1$I p
            where p.tenant_id = $1
                and ($2 is null or p.user_id = $2)
                and p.embedding is not null
        ),
        sample as materialized (
            select p.embedding::@extschema:vector@.vector as embedding, row_number() over () as place
            from (select o.id from own o order by random() limit $3) s
            join llm.%1$I p on p.tenant_id = $1 and p.id = s.id
        ),
        norms as (
            select
                count(*) as sampled, min(n.norm) as least, avg(n.norm) as mean, max(n.norm) as most, stddev_pop(n.norm) as deviation,
                count(*) - count(distinct n.embedding) as duplicates
            from (select s.embedding, @extschema:vector@.vector_norm(s.embedding) as norm from sample s) n
        ),
        -- Each with the next one: as many pairs as vectors, which are in no order.
        pairs as (
            select avg(1 - d.distance) as mean, stddev_pop(1 - d.distance) as deviation
            from (
                select a.embedding operator(@extschema:vector@.<=>) b.embedding as distance
                from sample a
                join sample b on b.place = a.place + 1
            ) d
            where d.distance <> 'NaN'
        )
        select (select count(*) from own), n.sampled, $4, n.least, n.mean, n.most, n.deviation, p.mean, p.deviation, n.duplicates
        from norms n
        cross join pairs p
        $analyze$,
        'points_' || v_collection.name
    )
    using llm._point_tenant(), llm.current_user_id(), p_sample, v_collection.dimensions;
end
$$;

alter function llm.analyze_vector_distribution(text, integer) owner to llm_owner;

comment on function llm.analyze_vector_distribution(text, integer) is
'How the vectors of the current tenant, and of its user if one is set, are spread: how many there are, and of a sample of them the norms (all 1: they
are normalized), the cosine similarity of pairs by chance (near 1: the model tells little apart), and how many are the same as another. p_sample:
how many vectors are looked at. Errors: undefined_object; invalid_parameter_value; object_not_in_prerequisite_state when no tenant is set.';


select llm._grant_execute(
    array['llm_admin'],
    'create_embeddings', 'optimize_index'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'store_embedding'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'search_similar', 'analyze_vector_distribution'
);
