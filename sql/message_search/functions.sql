create function llm._search_mark(
    p_kind text,
    p_what text
)
    returns text
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
    -- No word of a text begins with this character.
    select chr(1) || p_kind || md5(p_what)
$$;

comment on function llm._search_mark(text, text) is
'A word that stands for a tenant, a user or a conversation in llm.message_index.';


create function llm._search_words(
    p_content jsonb
)
    returns tsvector
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
as $$
begin
    -- A tsvector holds 1 MB; so many characters make less, whatever they are.
    return to_tsvector('simple'::regconfig, left(llm._message_text(p_content), 100000));
end
$$;

comment on function llm._search_words(jsonb) is
'The words of a message, as written but in lower case: of its first 100,000 characters.';


create function llm._search_row(
    p_tenant          text,
    p_user_id         uuid,
    p_conversation_id uuid,
    p_content         jsonb
)
    returns tsvector
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return llm._search_words(p_content) || array_to_tsvector(array_remove(array[
        llm._search_mark('t'::text, p_tenant),
        llm._search_mark('u'::text, p_user_id::text),
        llm._search_mark('c'::text, p_conversation_id::text)
    ], null));
end
$$;

comment on function llm._search_row(text, uuid, uuid, jsonb) is
'What llm.message_index holds of a message.';


-- security definer: nobody else may write the index.
create function llm.index_messages(
    p_limit bigint default 2000
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready     boolean := llm._require_storage();
    v_tenant       text := llm.current_tenant();
    v_queued       record;
    v_conversation record;
    v_upto         bigint;
    v_count        bigint := 0;
begin
    for v_queued in
        select q.tenant_id, q.conversation_id from llm.message_queue q where v_tenant is null or q.tenant_id = v_tenant
    loop
        exit when v_count >= p_limit;
        -- A conversation that somebody is writing to comes next time: waiting for several could be for one another.
        select c.user_id, c.indexed_seq, c.last_seq, c.last_branch
        into v_conversation
        from llm.conversations c
        where c.tenant_id = v_queued.tenant_id
            and c.conversation_id = v_queued.conversation_id
        for no key update skip locked;
        continue when not found;
        v_upto := least(v_conversation.last_seq, v_conversation.indexed_seq + p_limit - v_count);
        insert into llm.message_index (tenant_id, message_id, search)
        select m.tenant_id, m.message_id, llm._search_row(m.tenant_id, v_conversation.user_id, m.conversation_id, m.content)
        from generate_series(0, v_conversation.last_branch) b (branch)
        join llm.messages m
            on m.tenant_id = v_queued.tenant_id
            and m.conversation_id = v_queued.conversation_id
            and m.branch = b.branch
            and m.seq > v_conversation.indexed_seq
            and m.seq <= v_upto
        on conflict do nothing;
        update llm.conversations c
        set indexed_seq = v_upto
        where c.tenant_id = v_queued.tenant_id
            and c.conversation_id = v_queued.conversation_id;
        if v_upto = v_conversation.last_seq then
            delete from llm.message_queue q where q.tenant_id = v_queued.tenant_id and q.conversation_id = v_queued.conversation_id;
        end if;
        v_count := v_count + v_upto - v_conversation.indexed_seq;
    end loop;
    return v_count;
end
$$;

alter function llm.index_messages(bigint) owner to llm_owner;

comment on function llm.index_messages(bigint) is
'Puts messages that are not there yet into the index of llm.search_messages(), which finds them without it, but by reading them all. Of the current
tenant, or without one of all. p_limit: at most so many, whose conversations are locked until the end of the transaction. Returns how many.';


create procedure llm.index_new_messages()
    language plpgsql
as $$
begin
    while llm.index_messages(2000::pg_catalog.int8) operator(pg_catalog.=) 2000 loop
        commit;
    end loop;
end
$$;

comment on procedure llm.index_new_messages() is
'llm.index_messages() until all are there, a transaction for 2,000, so that who appends waits for tenths of seconds at most. Call it every minute,
without a tenant, and outside of a transaction: llm.schedule_maintenance() has it called.';


-- security definer: as llm.index_messages().
create function llm._index_message_again(
    p_tenant     text,
    p_message_id uuid
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    update llm.message_index i
    set search = llm._search_row(m.tenant_id, m.user_id, m.conversation_id, m.content)
    from llm.messages m
    where i.tenant_id = p_tenant
        and i.message_id = p_message_id
        and m.tenant_id = p_tenant
        and m.message_id = p_message_id;
end
$$;

alter function llm._index_message_again(text, uuid) owner to llm_owner;

comment on function llm._index_message_again(text, uuid) is
'Brings the index to what a message says now, if it is there at all.';


-- security definer: row-level security would keep the server from using the index; the tenant is asked for here, users' rows are still theirs alone.
create function llm._find_messages(
    p_query           tsquery,
    p_conversation_id uuid,
    p_limit           bigint
)
    returns table (message_id uuid, rank double precision)
    language plpgsql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
as $$
declare
    v_tenant text := llm._conversation_tenant();
    v_user   uuid := llm.current_user_id();
    v_scoped tsquery := p_query && quote_literal(llm._search_mark('t'::text, v_tenant))::tsquery;
begin
    if v_user is not null then
        v_scoped := v_scoped && quote_literal(llm._search_mark('u'::text, v_user::text))::tsquery;
    end if;
    if p_conversation_id is not null then
        v_scoped := v_scoped && quote_literal(llm._search_mark('c'::text, p_conversation_id::text))::tsquery;
    end if;
    return query
        with found as materialized (
            select i.message_id, ts_rank(i.search, p_query)::double precision as rank
            from llm.message_index i
            where i.search @@ v_scoped
            union all
            select t.message_id, ts_rank(t.words, p_query)::double precision
            from (
                select m.message_id, llm._search_words(m.content) as words
                from llm.message_queue q
                join llm.conversations c on c.tenant_id = q.tenant_id and c.conversation_id = q.conversation_id
                cross join generate_series(0, c.last_branch) b (branch)
                join llm.messages m
                    on m.tenant_id = q.tenant_id
                    and m.conversation_id = q.conversation_id
                    and m.branch = b.branch
                    and m.seq > c.indexed_seq
                where q.tenant_id = v_tenant
                    and (p_conversation_id is null or q.conversation_id = p_conversation_id)
                    and m.deleted_at is null
            ) t
            where t.words @@ p_query
        )
        select f.message_id, f.rank
        from found f
        join llm.messages m on m.tenant_id = v_tenant and m.message_id = f.message_id
        where m.deleted_at is null
        order by f.rank desc, m.created_at desc
        limit p_limit;
end
$$;

alter function llm._find_messages(tsquery, uuid, bigint) owner to llm_owner;

comment on function llm._find_messages(tsquery, uuid, bigint) is
'The messages of the tenant, and of the user if one is set, that a query matches, best first; in the index, and where that has not come to.
p_conversation_id: of this conversation, null for all.';


create function llm.search_messages(
    p_query           text,
    p_conversation_id uuid default null,
    p_limit           bigint default 20,
    p_offset          bigint default 0,
    p_embedding       @extschema:vector@.vector default null
)
    returns table (
        conversation_id uuid, message_id uuid, branch bigint, seq bigint, role text, headline text, rank double precision, created_at timestamptz
    )
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._conversation_tenant();
    v_query  tsquery := coalesce(websearch_to_tsquery('simple'::regconfig, p_query), '');
    v_count  bigint := least(p_limit, 1000000000) + least(coalesce(p_offset, 0), 1000000000);
begin
    perform llm._check_page(p_limit, p_offset);
    if numnode(v_query) = 0 and p_embedding is null then
        raise exception 'there is no word to search for in %', coalesce(quote_literal(left(p_query, 100)), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give words; "words in quotes" stand together, or means either, - means not. Or give p_embedding.';
    end if;
    return query
        with found as materialized (
            select f.message_id, f.rank, null::double precision as similarity
            from llm._find_messages(v_query, p_conversation_id, v_count) f
            where numnode(v_query) > 0
            union all
            select h.message_id, null, h.similarity
            from llm._messages_by_meaning(p_embedding, p_conversation_id, v_count) h
            where p_embedding is not null
        ),
        ranked as (
            -- Of two lists the sum of 1 / (60 + place) in each (Cormack, Clarke, Buettcher 2009).
            select
                p.message_id,
                case
                    when p_embedding is null then max(p.rank)
                    when numnode(v_query) = 0 then max(p.similarity)
                    else sum(1 / (60 + p.place)::double precision)
                end as rank
            from (
                select f.*, row_number() over (partition by f.rank is null order by f.rank desc, f.similarity desc, f.message_id) as place
                from found f
            ) p
            group by p.message_id
        )
        select
            m.conversation_id, m.message_id, m.branch, m.seq, m.role,
            ts_headline('simple'::regconfig, left(llm._message_text(m.content), 100000), v_query, 'MaxFragments=2, StartSel=«, StopSel=»'),
            r.rank, m.created_at
        from ranked r
        join llm.messages m on m.tenant_id = v_tenant and m.message_id = r.message_id
        order by r.rank desc, m.created_at desc
        limit p_limit
        offset p_offset;
end
$$;

comment on function llm.search_messages(text, uuid, bigint, bigint, @extschema:vector@.vector) is
'Messages with these words, best first, in all branches. p_query: words as in a web search: "together", or, -not; words are compared as they are
written, in any case; p_conversation_id: in this one only; p_limit, p_offset: the page; p_embedding: a vector, of what is meant: among those of
llm.embed_messages() the nearest are found; with p_query null by them alone, else by both, those first that are among the first of both.
headline shows the words in «» with what is around them; rank grows with how often they occur, by meaning alone it is the cosine. Only the first
100,000 characters of a message are searched. Errors: invalid_parameter_value when there is nothing to search for; undefined_object without
llm.create_message_embeddings(); as llm.vector_search().';


create function llm._messages_by_meaning(
    p_embedding       @extschema:vector@.vector,
    p_conversation_id uuid,
    p_limit           bigint
)
    returns table (message_id uuid, similarity double precision)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if p_embedding is null or p_limit < 1 then
        return;
    end if;
    if not exists (select from llm.collections c where c.name = 'message_embeddings') then
        raise exception 'no vectors of messages are kept here'
            using errcode = 'undefined_object',
                  hint = 'llm.create_message_embeddings() makes the collection that llm.embed_messages() fills.';
    end if;
    return query
        select h.id::uuid, h.score
        from llm.vector_search(
            'message_embeddings'::text, p_embedding, least(p_limit, 10000)::integer,
            case when p_conversation_id is not null then jsonb_build_object('must', jsonb_build_array(
                jsonb_build_object('key', 'conversation_id', 'match', jsonb_build_object('value', p_conversation_id))
            )) end,
            null::double precision, null::integer, false, false
        ) h;
end
$$;

comment on function llm._messages_by_meaning(@extschema:vector@.vector, uuid, bigint) is
'The messages whose vectors are nearest, of the tenant, and of the user if one is set. Errors: as llm.vector_search().';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    '_find_messages'
);

select llm._grant_execute(
    array['llm_owner'],
    '_search_mark', '_search_words', '_search_row', '_index_message_again'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'search_messages', '_messages_by_meaning'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'index_messages', 'index_new_messages'
);
