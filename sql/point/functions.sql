create type llm.point as (
    id          text,
    user_id     uuid,
    content     text,
    model       text,
    embedding   @extschema:vector@.vector,
    payload     jsonb,
    created_at  timestamptz,
    updated_at  timestamptz
);

comment on type llm.point is
'A point of a collection: user_id: whose it is, null for nobody''s in particular; model: whose vector it has; embedding: null when it is pending or
was not asked for.';


create function llm._point_tenant()
    returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._owners_tenant();
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


create function llm._check_points(
    p_collection llm.collection,
    p_ids        text[],
    p_vectors    @extschema:vector@.vector[],
    p_contents   text[],
    p_payloads   jsonb[],
    p_user_ids   uuid[]
)
    returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_count   integer := coalesce(cardinality(p_ids), 0);
    v_user_id uuid := llm.current_user_id();
    -- Shorter ones are zero as halfvec, and longer ones infinite when pgvector squares them: by cosine such are near to nothing, or to no number.
    v_least   double precision := case p_collection.element when 'halfvec' then 1e-3 else 1e-15 end;
    v_point   record;
    v_wrong   text;
    v_hint    text;
begin
    if cardinality(p_vectors) <> v_count or cardinality(p_contents) <> v_count or cardinality(p_payloads) <> v_count
        or cardinality(p_user_ids) <> v_count
    then
        raise exception 'there are % ids, and another number of vectors, contents, payloads or users', v_count
            using errcode = 'array_subscript_error',
                  hint = 'Arrays are of the same length, null for what a point has not; or left out.';
    end if;

    select i.id, i.vector is null and i.content is null as is_empty, i.payload, i.user_id, @extschema:vector@.vector_dims(i.vector) as dimensions,
        @extschema:vector@.vector_norm(i.vector) as length
    into v_point
    from unnest(p_ids, p_vectors, p_contents, p_payloads, p_user_ids) i (id, vector, content, payload, user_id)
    where i.id is null
        or octet_length(i.id) not between 1 and 500
        or i.vector is null and i.content is null
        or jsonb_typeof(i.payload) <> 'object'
        or i.user_id <> v_user_id
        or @extschema:vector@.vector_dims(i.vector) <> p_collection.dimensions
        or p_collection.distance = 'cosine' and @extschema:vector@.vector_norm(i.vector) not between v_least and 1e15
    limit 1;
    if not found then
        return;
    end if;
    if v_point.id is null or octet_length(v_point.id) not between 1 and 500 then
        v_wrong := format('the id of a point has %s bytes', coalesce(octet_length(v_point.id)::text, 'no'));
        v_hint := 'Ids have 1 to 500 bytes.';
    elsif v_point.is_empty then
        v_wrong := format('point %L has neither content nor a vector', v_point.id);
        v_hint := 'Give one, or both. llm.set_payload() changes the payload alone.';
    elsif jsonb_typeof(v_point.payload) <> 'object' then
        v_wrong := format('the payload of point %L is of type %s', v_point.id, jsonb_typeof(v_point.payload));
        v_hint := 'A payload is a JSON object.';
    elsif v_point.user_id <> v_user_id then
        raise exception 'point % cannot be written for user %', quote_literal(v_point.id), v_point.user_id
            using errcode = 'insufficient_privilege',
                  hint = 'This transaction works for one user, by llm.set_user(). Leave users out, or set none.';
    elsif v_point.dimensions <> p_collection.dimensions then
        v_wrong := format('the vector of point %L has %s dimensions, those of collection %s have %s', v_point.id, v_point.dimensions,
                          p_collection.name, p_collection.dimensions);
        v_hint := 'Embed with the model that the collection was made for.';
    elsif v_point.length > 0 then
        v_wrong := format('the vector of point %L is %s long', v_point.id, v_point.length);
        v_hint := format('By cosine distance a vector of %s is from %s to 1e+15 long. Normalize it.', p_collection.element, v_least);
    else
        v_wrong := format('the vector of point %L is zero', v_point.id);
        v_hint := 'By cosine distance, what has no direction is near to nothing. Leave the vector out until it is known.';
    end if;
    raise exception '%', v_wrong using errcode = 'invalid_parameter_value', hint = v_hint;
end
$$;

comment on function llm._check_points(llm.collection, text[], @extschema:vector@.vector[], text[], jsonb[], uuid[]) is
'Refuses points that a collection cannot hold. Errors: invalid_parameter_value; array_subscript_error; insufficient_privilege for another user''s.';


create function llm._owner_of_point(
    p_id      text,
    p_owner   uuid,
    p_user_id uuid,
    p_new     uuid
)
    returns uuid
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_owner is distinct from p_user_id and p_user_id is not null then
        raise exception 'point % is not of this user', quote_literal(p_id)
            using errcode = 'insufficient_privilege',
                  hint = 'Choose another id; or work for its user, or for none: llm.set_user().';
    end if;
    return p_new;
end
$$;

comment on function llm._owner_of_point(text, uuid, uuid, uuid) is
'p_new, unless the point that is there is not of the user that is set. Errors: insufficient_privilege.';


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
    v_collection llm.collection := llm._find_collection(p_collection);
    v_tenant     text := llm._point_tenant();
    v_table      text := format('llm.%I', 'points_' || v_collection.name);
    v_type       text := llm._vector_type(v_collection);
    v_user       uuid := llm.current_user_id();
    v_model      text := coalesce(p_model, v_collection.model);
    v_given      record;
    v_is_new     boolean;
    v_is_same    boolean;
    v_merge      constant text := $merge$
            on conflict (tenant_id, id) do update
                set number = excluded.number,
                    user_id = llm._owner_of_point(p.id, p.user_id, $7, excluded.user_id),
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
                    words = case
                        when p.content_hash is not distinct from excluded.content_hash and p.user_id is not distinct from excluded.user_id
                            then p.words
                    end,
                    updated_at = clock_timestamp()
            returning xmax = 0 as is_new
    $merge$;
begin
    if (p_points is null) = (p_ids is null) then
        raise exception 'points are given neither as objects nor as arrays, or as both'
            using errcode = 'invalid_parameter_value',
                  hint = 'Give p_points alone; or p_ids with p_embeddings, p_contents, p_payloads and p_user_ids as far as there are any.';
    end if;
    if p_model <> v_collection.model then
        raise exception 'points of model % cannot be written to collection %, whose model is %', quote_literal(left(p_model, 100)),
            v_collection.name, quote_literal(v_collection.model)
            using errcode = 'invalid_parameter_value',
                  hint = 'Vectors of two models cannot be compared. Make a collection for the other one: llm.copy_for_model().';
    end if;
    if p_points is not null then
        if jsonb_typeof(p_points) = 'object' then
            p_points := jsonb_build_array(p_points);
        end if;
        if jsonb_typeof(p_points) <> 'array' or p_points @? 'strict $[*] ? (@.type() != "object")' then
            raise exception 'these are not points: %', left(p_points::text, 100)
                using errcode = 'invalid_parameter_value',
                      hint = 'Give an object, or an array of objects, with id, and embedding, content, payload, user_id as far as there are any.';
        end if;
        begin
            select
                coalesce(array_agg(r.id), '{}') as ids, array_agg(r.embedding::@extschema:vector@.vector) as embeddings,
                array_agg(r.content) as contents, array_agg(r.payload) as payloads, array_agg(r.user_id) as user_ids
            into v_given
            from jsonb_to_recordset(p_points) r (id text, embedding text, content text, payload jsonb, user_id uuid);
        exception
            when data_exception or invalid_text_representation or numeric_value_out_of_range then
                raise exception 'a point cannot be read: %', sqlerrm
                    using errcode = 'invalid_parameter_value',
                          hint = 'An embedding is an array of numbers, or a text such as [1,2,3]; user_id is a UUID.';
        end;
        p_ids := v_given.ids;
        p_embeddings := v_given.embeddings;
        p_contents := v_given.contents;
        p_payloads := v_given.payloads;
        p_user_ids := v_given.user_ids;
    end if;
    perform llm._check_points(v_collection, p_ids, p_embeddings, p_contents, p_payloads, p_user_ids);

    -- One point is written by small statements, which are planned several times as fast as that for many.
    if cardinality(p_ids) = 1 then
        execute format(
            $new$
            insert into %1$s as p (tenant_id, id, user_id, content, content_hash, model, embedding, payload)
            values ($1, $2, coalesce($6, $7), $4, sha256(convert_to($4, 'UTF8')), $8, $3::%2$s, coalesce($5, '{}'))
            on conflict (tenant_id, id) do nothing
            returning true
            $new$,
            v_table, v_type
        )
        into v_is_new
        using v_tenant, p_ids[1], p_embeddings[1], p_contents[1], p_payloads[1], p_user_ids[1], v_user, v_model;
        if v_is_new then
            return query values (1::bigint, 0::bigint, 0::bigint);
            return;
        end if;
        execute format(
            $same$
            -- Compared here and not under WHERE, where the planner would estimate how many vectors are equal.
            select
                p.content_hash is not distinct from sha256(convert_to($4, 'UTF8'))
                and p.model is not distinct from $8
                and p.user_id is not distinct from coalesce($6, $7)
                and p.payload = coalesce($5, '{}')
                and ($3 is null or p.embedding is not null and p.embedding operator(@extschema:vector@.=) $3::%2$s)
            from %1$s p
            where p.tenant_id = $1
                and p.id = $2
            $same$,
            v_table, v_type
        )
        into v_is_same
        using v_tenant, p_ids[1], p_embeddings[1], p_contents[1], p_payloads[1], p_user_ids[1], v_user, v_model;
        if v_is_same then
            return query values (0::bigint, 0::bigint, 1::bigint);
            return;
        end if;
        execute format(
            $one$
            insert into %1$s as p (tenant_id, id, user_id, content, content_hash, model, embedding, payload)
            values ($1, $2, coalesce($6, $7), $4, sha256(convert_to($4, 'UTF8')), $8, $3::%2$s, coalesce($5, '{}'))
            %3$s
            $one$,
            v_table, v_type, v_merge
        )
        into v_is_new
        using v_tenant, p_ids[1], p_embeddings[1], p_contents[1], p_payloads[1], p_user_ids[1], v_user, v_model;
        return query values (v_is_new::integer::bigint, (not v_is_new)::integer::bigint, 0::bigint);
        return;
    end if;

    return query execute format(
        $many$
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
                select
                    p.content_hash is not distinct from g.content_hash
                    and p.model is not distinct from $8
                    and p.user_id is not distinct from g.user_id
                    and p.payload = g.payload
                    and (g.embedding is null or p.embedding is not null and g.embedding operator(@extschema:vector@.=) p.embedding) as is_unchanged
                from %1$s p
                where p.tenant_id = $1
                    and p.id = g.id
                limit 1
            ) p on true
            where p.is_unchanged is not true
            -- In the order of their keys, so that two batches wait for each other instead of deadlocking.
            order by g.id
            %3$s
        )
        select d.inserted, d.updated, (select count(distinct i.id collate "C") from unnest($2) i (id)) - d.inserted - d.updated
        from (select count(*) filter (where is_new) as inserted, count(*) filter (where not is_new) as updated from done) d
        $many$,
        v_table, v_type, v_merge
    )
    using v_tenant, p_ids, p_embeddings, p_contents, p_payloads, p_user_ids, v_user, v_model;
end
$$;

alter function llm.upsert_points(
    text, jsonb, text[], @extschema:vector@.vector[], text[], jsonb[], uuid[], text
) owner to llm_owner;

comment on function llm.upsert_points(text, jsonb, text[], @extschema:vector@.vector[], text[], jsonb[], uuid[], text) is
'Writes points, new ones or in place of those with the same ids, all or none. Either p_points: an object, or an array of objects, with id, and
embedding, content, payload, user_id as far as there are any; or, several times as fast, arrays of the same length: p_ids, p_embeddings, p_contents,
p_payloads, p_user_ids. A point has content, a vector, or both; without a vector it keeps the one that it has for this content and model, else the
vector is pending. user_id: whose it is, by default that of llm.set_user(); p_model: whose vectors these are, the collection''s model, or any if it
has none. Of points with the same id the last one counts. Returns how many were new, how many changed, and how many are as they were: those were not
touched. Errors: invalid_parameter_value, array_subscript_error; insufficient_privilege for another user''s; undefined_object when there is no
such collection; object_not_in_prerequisite_state when no tenant is set.';


select llm._grant_execute(
    array['llm_owner'],
    '_point_tenant', '_check_points', '_owner_of_point', '_point_words'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'upsert_points'
);
