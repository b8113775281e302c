create function llm._point_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm.current_tenant();
begin
    if v_tenant is null then
        raise exception 'points are a tenant''s, and no tenant is set'
            using errcode = 'object_not_in_prerequisite_state',
                  hint = 'Run: select llm.set_tenant(''…''); as the first statement of the transaction, or llm.bind_role() for the role.';
    end if;
    return v_tenant;
end
$$;

comment on function llm._point_tenant() is
'The tenant whose points this transaction reads and writes. Errors: object_not_in_prerequisite_state when none is set.';


create function llm._check_vectors(
    p_collection llm.collection,
    p_ids        text[],
    p_vectors    @extschema:vector@.vector[]
)
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_wrong record;
begin
    select i.id, i.position, @extschema:vector@.vector_dims(i.vector) as dimensions
    into v_wrong
    from unnest(p_ids, p_vectors) with ordinality i (id, vector, position)
    where @extschema:vector@.vector_dims(i.vector) <> p_collection.dimensions
        or p_collection.distance = 'cosine' and @extschema:vector@.vector_norm(i.vector) = 0
    limit 1;
    if not found then
        return;
    end if;
    if v_wrong.dimensions <> p_collection.dimensions then
        raise exception 'the vector of point % has % dimensions, those of collection % have %', coalesce(quote_literal(left(v_wrong.id, 100)), 'null'),
            v_wrong.dimensions, p_collection.name, p_collection.dimensions
            using errcode = 'invalid_parameter_value',
                  hint = 'Embed with the model that the collection was made for.';
    end if;
    raise exception 'the vector of point % is zero', coalesce(quote_literal(left(v_wrong.id, 100)), 'null')
        using errcode = 'invalid_parameter_value',
              hint = 'By cosine distance a vector without a direction is near to nothing. Leave the vector out until it is known.';
end
$$;

comment on function llm._check_vectors(llm.collection, text[], @extschema:vector@.vector[]) is
'Refuses vectors that do not fit a collection. Errors: invalid_parameter_value.';


create function llm._point_words(
    p_language regconfig,
    p_tenant   text,
    p_user_id  uuid,
    p_content  text
)
    returns tsvector
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- A tsvector holds 1 MB; so many characters make less, whatever they are.
    return to_tsvector(p_language, left(p_content, 100000)) || array_to_tsvector(array_remove(array[
        llm._search_mark('t'::text, p_tenant),
        llm._search_mark('u'::text, p_user_id::text)
    ], null));
end
$$;

comment on function llm._point_words(regconfig, text, uuid, text) is
'The words of a point, of its first 100,000 characters, and as further words whose it is: marks of its tenant and its user (llm._search_mark).';


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


-- security definer: points are written by functions alone, which keep their numbers and hashes; user_isolation holds here too.
create function llm.upsert_points(
    p_collection text,
    p_points     jsonb default null,
    p_ids        text[] default null,
    p_embeddings @extschema:vector@.vector[] default null,
    p_contents   text[] default null,
    p_payloads   jsonb[] default null,
    p_user_ids   uuid[] default null,
    p_model      text default null
)
    returns table (inserted bigint, updated bigint, unchanged bigint)
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_collection llm.collection := llm._collection(p_collection);
    v_tenant     text := llm._point_tenant();
    v_count      bigint;
begin
    if p_points is not null then
        select
            array_agg(r.id), array_agg(r.embedding::@extschema:vector@.vector), array_agg(r.content), array_agg(r.payload), array_agg(r.user_id)
        into p_ids, p_embeddings, p_contents, p_payloads, p_user_ids
        from jsonb_to_recordset(p_points) r (id text, embedding text, content text, payload jsonb, user_id uuid);
    end if;
    perform llm._check_vectors(v_collection, p_ids, p_embeddings);

    return query execute format(
        $upsert$
        with done as (
            insert into %1$s as p (tenant_id, id, user_id, content, content_hash, model, embedding, payload)
            select $1, g.id, g.user_id, g.content, g.content_hash, $8, g.embedding, g.payload
            from (
                select distinct on (i.id collate "C")
                    i.id collate "C" as id, i.embedding::%2$s as embedding, i.content, sha256(convert_to(i.content, 'UTF8')) as content_hash,
                    coalesce(i.payload, '{}') as payload, coalesce(i.user_id, $7) as user_id
                from unnest($2, $3, $4, $5, $6) with ordinality i (id, embedding, content, payload, user_id, position)
                order by i.id collate "C", i.position desc
            ) g
            -- A look-up for each, whatever the planner thinks of the tenant's size. What is unchanged is not even locked.
            left join lateral (
                select true as is_unchanged
                from %1$s p
                where p.tenant_id = $1
                    and p.id = g.id
                    and p.content_hash is not distinct from g.content_hash
                    and p.model is not distinct from $8
                    and p.user_id is not distinct from g.user_id
                    and p.payload = g.payload
                    and (g.embedding is null or g.embedding operator(@extschema:vector@.=) p.embedding)
                limit 1
            ) p on true
            where p.is_unchanged is null
            -- In the order of their keys, so that two batches wait for each other instead of deadlocking.
            order by g.id
            on conflict (tenant_id, id) do update
                set number = excluded.number,
                    user_id = excluded.user_id,
                    content = excluded.content,
                    content_hash = excluded.content_hash,
                    model = excluded.model,
                    embedding = case
                        when excluded.embedding is null
                            and p.content_hash is not distinct from excluded.content_hash
                            and p.model is not distinct from excluded.model
                            then p.embedding
                        else excluded.embedding
                    end,
                    payload = excluded.payload,
                    words = null,
                    updated_at = clock_timestamp()
            returning xmax = 0 as is_new
        )
        select d.inserted, d.updated, (select count(distinct i.id) from unnest($2) i (id)) - d.inserted - d.updated
        from (select count(*) filter (where is_new) as inserted, count(*) filter (where not is_new) as updated from done) d
        $upsert$,
        format('llm.%I', 'points_' || v_collection.name), llm._vector_type(v_collection)
    )
    using v_tenant, p_ids, p_embeddings, p_contents, p_payloads, p_user_ids, llm.current_user_id(), coalesce(p_model, v_collection.model);
end
$$;

alter function llm.upsert_points(
    text, jsonb, text[], @extschema:vector@.vector[], text[], jsonb[], uuid[], text
) owner to llm_owner;

comment on function llm.upsert_points(text, jsonb, text[], @extschema:vector@.vector[], text[], jsonb[], uuid[], text) is
'Writes points, new or in place of those with the same ids, all or none.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_point_tenant', '_check_vectors'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_auditor'],
    '_parallel_builds_are_safe'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'upsert_points'
);
