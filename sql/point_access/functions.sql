-- Reading

-- security definer: tables of points are open to functions of llm_owner; each names tenant and user.
create function llm.get_points(
    p_collection   text,
    p_ids          text[],
    p_with_vectors boolean default false
)
    returns setof llm.point
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_collection llm.collection := llm._find_collection(p_collection);
begin
    return query execute format(
        $get$
        select
            p.id, p.user_id, p.content, p.model, case when $4 then p.embedding::@extschema:vector@.vector end, p.payload, p.created_at, p.updated_at
        from unnest($3) with ordinality i (id, position)
        cross join lateral (
            select * from llm.%I p where p.tenant_id = $1 and p.id = i.id and ($2 is null or p.user_id = $2) limit 1
        ) p
        order by i.position
        $get$,
        'points_' || v_collection.name
    )
    using llm._point_tenant(), llm.current_user_id(), p_ids, coalesce(p_with_vectors, false);
end
$$;

alter function llm.get_points(text, text[], boolean) owner to llm_owner;

comment on function llm.get_points(text, text[], boolean) is
'These points, in this order; those that do not exist are left out. p_with_vectors: their vectors, too. Errors: undefined_object when there is no such
collection; object_not_in_prerequisite_state when no tenant is set.';


-- security definer: as llm.get_points().
create function llm.scroll_points(
    p_collection   text,
    p_after        text default null,
    p_limit        bigint default 100,
    p_with_vectors boolean default false,
    p_filter       jsonb default null
)
    returns setof llm.point
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_collection llm.collection := llm._find_collection(p_collection);
begin
    if p_limit < 0 then
        raise exception 'a page cannot have % points', p_limit
            using errcode = 'invalid_parameter_value',
                  hint = 'Give 0 or more, or null for all.';
    end if;
    if p_filter is not null then
        return query
            select p.*
            from llm.get_points(
                p_collection,
                llm._matching_points(p_collection, p_filter, p_after, p_limit, llm._point_tenant(), llm.current_user_id()),
                p_with_vectors
            ) p;
        return;
    end if;
    return query execute format(
        $scroll$
        select
            p.id, p.user_id, p.content, p.model, case when $5 then p.embedding::@extschema:vector@.vector end, p.payload, p.created_at, p.updated_at
        from llm.%I p
        where p.tenant_id = $1
            and ($2 is null or p.user_id = $2)
            and p.id > $3
        order by p.tenant_id, p.id
        limit $4
        $scroll$,
        'points_' || v_collection.name
    )
    using llm._point_tenant(), llm.current_user_id(), coalesce(p_after, ''), p_limit, coalesce(p_with_vectors, false);
end
$$;

alter function llm.scroll_points(text, text, bigint, boolean, jsonb) owner to llm_owner;

comment on function llm.scroll_points(text, text, bigint, boolean, jsonb) is
'A page of a collection''s points in order of their ids (by bytes). p_after: the last id of the page before, null for the first page; p_limit: at
most so many, null for all; p_with_vectors: their vectors, too; p_filter: those that match, see llm.matches_filter(). Errors: as llm.get_points();
invalid_parameter_value for a filter that is none or a negative limit.';


-- security definer: as llm.get_points().
create function llm.count_points(
    p_collection text,
    p_filter     jsonb default null
)
    returns bigint
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_collection llm.collection := llm._find_collection(p_collection);
    v_count      bigint;
begin
    if p_filter is not null then
        return llm._count_matching(p_collection, p_filter, llm._point_tenant(), llm.current_user_id());
    end if;
    execute format(
        'select count(*) from llm.%I where tenant_id = $1 and ($2 is null or user_id = $2)', 'points_' || v_collection.name
    )
    into v_count
    using llm._point_tenant(), llm.current_user_id();
    return v_count;
end
$$;

alter function llm.count_points(text, jsonb) owner to llm_owner;

comment on function llm.count_points(text, jsonb) is
'How many points of a collection are the tenant''s, or the user''s if one is set. p_filter: of those that match. Errors: as
llm.scroll_points().';


-- Changing

-- security definer: as llm.upsert_points().
create function llm.set_payload(
    p_collection text,
    p_ids        text[],
    p_payload    jsonb default '{}',
    p_remove     text[] default '{}'
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_collection llm.collection := llm._find_collection(p_collection);
    v_count      bigint;
begin
    if jsonb_typeof(p_payload) is distinct from 'object' then
        raise exception 'this is not a payload: %', left(coalesce(p_payload::text, 'null'), 100)
            using errcode = 'invalid_parameter_value',
                  hint = 'Give a JSON object; p_remove names the fields that are to go.';
    end if;
    execute format(
        $set$
        with due as (
            select p.id
            from llm.%1$I p
            where p.tenant_id = $1
                and ($2 is null or p.user_id = $2)
                and p.id = any ($3)
                and p.payload <> (p.payload - $5) || $4
            order by p.id
            for no key update
        )
        update llm.%1$I p
        -- Under another number, so that no segment''s index must take it in again.
        set number = default,
            payload = (p.payload - $5) || $4,
            updated_at = clock_timestamp()
        from due d
        where p.tenant_id = $1
            and p.id = d.id
        $set$,
        'points_' || v_collection.name
    )
    using llm._point_tenant(), llm.current_user_id(), p_ids, p_payload, coalesce(p_remove, '{}');
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

alter function llm.set_payload(text, text[], jsonb, text[]) owner to llm_owner;

comment on function llm.set_payload(text, text[], jsonb, text[]) is
'Changes fields of the payloads of points. p_payload: fields with their new values; p_remove: fields that are to go, before that; others stay. Returns
how many points changed. Errors: invalid_parameter_value; as llm.get_points().';


-- security definer: as llm.upsert_points().
create function llm.delete_points(
    p_collection text,
    p_ids        text[] default null,
    p_filter     jsonb default null
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_collection llm.collection := llm._find_collection(p_collection);
    v_count      bigint;
begin
    if (p_ids is null) = (p_filter is null) then
        raise exception 'it is not clear which points are to be deleted'
            using errcode = 'invalid_parameter_value',
                  hint = 'Give either p_ids or p_filter; the filter {} matches all.';
    end if;
    if p_filter is not null then
        p_ids := llm._matching_points(p_collection, p_filter, null::text, null::bigint, llm._point_tenant(), llm.current_user_id());
    end if;
    execute format(
        $delete$
        with due as (
            select p.id
            from llm.%1$I p
            where p.tenant_id = $1
                and ($2 is null or p.user_id = $2)
                and p.id = any ($3)
                -- Asked again of a point that another transaction changed meanwhile.
                and ($4 is null or llm.matches_filter(p.payload, $4, p.id, p.embedding is not null))
            order by p.id
            for update
        )
        delete from llm.%1$I p
        using due d
        where p.tenant_id = $1
            and p.id = d.id
        $delete$,
        'points_' || v_collection.name
    )
    using llm._point_tenant(), llm.current_user_id(), p_ids, p_filter;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

alter function llm.delete_points(text, text[], jsonb) owner to llm_owner;

comment on function llm.delete_points(text, text[], jsonb) is
'Deletes points for good. p_ids: these; p_filter: instead, those that match. Returns how many there were. Errors: as llm.scroll_points().';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'get_points', 'scroll_points', 'count_points'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'set_payload', 'delete_points'
);
