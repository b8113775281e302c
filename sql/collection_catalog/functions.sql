create function llm.list_collections()
    returns setof llm.collection
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
begin
    return query
        select l.*
        from llm.collections c
        cross join llm._find_collection(c.name) l
        order by c.name;
end
$$;

comment on function llm.list_collections() is
'All collections with their settings.';


-- security definer: as llm.create_collection().
create function llm.collection_info(
    p_name text
)
    returns table (
        points bigint, pending bigint, tail bigint, without_words bigint, segments bigint, building bigint, table_bytes bigint, index_bytes bigint
    )
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_collection llm.collection := llm._find_collection(p_name);
    v_tenant     text := llm._point_tenant();
    v_table      regclass := format('llm.%I', 'points_' || v_collection.name)::regclass;
    v_tail       bigint;
begin
    select coalesce(max(s.to_number), 0) into v_tail from llm.segments s where s.collection = v_collection.name and s.state = 'ready';
    execute format(
        'select count(*), count(*) filter (where embedding is null), count(*) filter (where number >= $3), '
        'count(*) filter (where words is null and content is not null) '
        'from %s where tenant_id = $1 and ($2 is null or user_id = $2)',
        v_table
    )
    into points, pending, tail, without_words
    using v_tenant, llm.current_user_id(), v_tail;
    select count(*) filter (where s.state = 'ready'), count(*) filter (where s.state = 'building')
    into segments, building
    from llm.segments s
    where s.collection = v_collection.name;
    table_bytes := pg_table_size(v_table);
    index_bytes := pg_indexes_size(v_table);
    return next;
end
$$;

alter function llm.collection_info(text) owner to llm_owner;

comment on function llm.collection_info(text) is
'How large a collection is. Of the current tenant, and of the user if one is set: points, those whose vector is pending, those in the tail that has no
index yet, those whose words are not found yet. Of all tenants: segments that are searched, those that wait for their index, bytes of points and of
indexes. Errors: undefined_object when there is no such collection; object_not_in_prerequisite_state when no tenant is set.';


create function llm.create_default_collections()
    returns setof text
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_default record;
begin
    for v_default in
        select *
        from (
            values
                (1, 'code_embeddings', false,
                 '{"file_path": "keyword", "function_name": "keyword", "language": "keyword", "project_id": "keyword"}'),
                (2, 'documentation_embeddings', false,
                 '{"title": "text", "section": "keyword", "url": "keyword", "indexed_at": "datetime"}'),
                (3, 'conversation_embeddings', true,
                 '{"conversation_id": "uuid", "message_id": "uuid", "user_id": "uuid", "timestamp": "datetime"}'),
                (4, 'incident_knowledge', false,
                 '{"incident_id": "keyword", "severity": "keyword", "services": "keyword", "resolution": "text"}')
        ) d (number, name, on_disk, fields)
        where not exists (select from llm.collections c where c.name = d.name)
            and not exists (select from llm.collection_aliases a where a.alias = d.name)
        order by d.number
    loop
        perform llm.create_collection(
            v_default.name, 1536, 'cosine'::text, 'vector'::text, 'hnsw'::text, 16, 100, null::integer, 40, 10000::bigint, 20000::bigint,
            200000::bigint, 0.2::double precision, v_default.fields::jsonb, v_default.on_disk, null::text, 'english'::text, true
        );
        return next v_default.name;
    end loop;
end
$$;

comment on function llm.create_default_collections() is
'Makes the collections that a copilot starts with: code_embeddings, documentation_embeddings, conversation_embeddings and incident_knowledge, of 1,536
dimensions by cosine distance, each with the fields of its payload. Returns the names of those that were not there, nor an alias of that name.';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader', 'llm_auditor'],
    'list_collections'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'collection_info'
);

select llm._grant_execute(
    array['llm_admin'],
    'create_default_collections'
);
