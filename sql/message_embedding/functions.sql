create function llm.create_message_embeddings(
    p_dimensions integer default 1536,
    p_model      text default null
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform llm._require_storage();
    if exists (select from llm.collections c where c.name = 'message_embeddings') then
        return false;
    end if;
    perform llm.create_collection(
        'message_embeddings'::text, p_dimensions, 'cosine'::text, 'vector'::text, 'hnsw'::text, 16, 100, null::integer, 40, 10000::bigint,
        20000::bigint, 200000::bigint, 0.2::double precision, '{"conversation_id": "uuid"}'::jsonb, false, null::text, 'simple'::text, false
    );
    if p_model is not null then
        perform llm.set_embedding_model(
            'message_embeddings'::text, p_model, 8, '1 second'::interval, 5, '30 seconds'::interval
        );
    end if;
    return true;
end
$$;

comment on function llm.create_message_embeddings(integer, text) is
'Makes the collection message_embeddings, by which llm.search_messages() finds messages by meaning, unless it is there. p_dimensions: of its vectors;
p_model: the model that workers embed messages with (llm.claim_embedding_jobs()), null when vectors are given. Returns whether it made it. For
llm_admin. Errors: as llm.create_collection(), llm.set_embedding_model().';


-- security definer: as llm.create_conversation(); it locks conversations, which nobody else may.
create function llm.embed_messages(
    p_message_ids uuid[],
    p_embeddings  @extschema:vector@.vector[] default null
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant   text := llm._conversation_tenant();
    v_missing  uuid;
    v_texts    text[];
    v_payloads jsonb[];
    v_users    uuid[];
begin
    if p_message_ids is null or cardinality(p_embeddings) <> cardinality(p_message_ids) then
        raise exception '% messages have % vectors', coalesce(cardinality(p_message_ids)::text, 'no'), coalesce(cardinality(p_embeddings), 0)
            using errcode = 'array_subscript_error',
                  hint = 'Give a vector for each id, in the same order; or leave p_embeddings out, for workers to find them.';
    end if;
    -- Who deletes any of them meanwhile waits, and then takes its vector along.
    perform from llm.conversations c
    where c.tenant_id = v_tenant
        and c.conversation_id in (
            select m.conversation_id from llm.messages m where m.tenant_id = v_tenant and m.message_id = any (p_message_ids)
        )
    order by c.conversation_id
    for share;

    select
        array_agg(left(llm._message_text(m.content), 100000) order by i.place),
        array_agg(jsonb_build_object('conversation_id', m.conversation_id) order by i.place),
        array_agg(m.user_id order by i.place),
        (array_agg(i.id order by i.place) filter (where m.message_id is null or m.status = 'streaming'))[1]
    into v_texts, v_payloads, v_users, v_missing
    from unnest(p_message_ids) with ordinality i (id, place)
    left join llm.messages m on m.tenant_id = v_tenant and m.message_id = i.id and m.deleted_at is null;
    if v_missing is not null or array_position(p_message_ids, null) is not null then
        raise exception 'message % cannot be embedded', coalesce(v_missing::text, 'null')
            using errcode = 'no_data_found',
                  hint = 'It does not exist, is deleted or another user''s, or is streaming: wait until it is complete.';
    end if;
    perform llm.upsert_points(
        'message_embeddings'::text, null::jsonb, p_message_ids::text[], p_embeddings, case when p_embeddings is null then v_texts end,
        v_payloads, v_users, null::text
    );
    return cardinality(p_message_ids);
end
$$;

alter function llm.embed_messages(uuid[], @extschema:vector@.vector[]) owner to llm_owner;

comment on function llm.embed_messages(uuid[], @extschema:vector@.vector[]) is
'Lets messages be found by their meaning. p_message_ids: which; p_embeddings: their vectors, in the same order; null makes each a job of the
collection''s model, of its first 100,000 characters. A message that is deleted loses its vector at once. Returns how many. Errors: no_data_found for
a message that does not exist or is streaming; array_subscript_error; undefined_object without llm.create_message_embeddings(); as
llm.upsert_points().';


-- security definer: whoever deletes a message need not be able to write points.
create function llm._drop_message_embedding()
    returns trigger
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if to_regclass('llm.points_message_embeddings') is not null then
        execute format('delete from llm.%I p where p.tenant_id = $1 and p.id = $2', 'points_message_embeddings')
        using old.tenant_id, old.message_id::text;
    end if;
    return null;
end
$$;

alter function llm._drop_message_embedding() owner to llm_owner;

comment on function llm._drop_message_embedding() is
'Trigger of llm.messages: what is deleted, softly too, is not found by its meaning any more.';


select llm._grant_execute(
    array['llm_admin'],
    'create_message_embeddings'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'embed_messages'
);
