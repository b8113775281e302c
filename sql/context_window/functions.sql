create type llm.context_message as (
    seq           bigint,
    message_id    uuid,
    role          text,
    content       jsonb,
    token_count   bigint,
    is_estimated  boolean,
    reason        text
);

comment on type llm.context_message is
'A message of a context window: reason is why it is there: system, pinned, summary (which has no message_id), recalled or newest; is_estimated:
token_count was unknown, and is estimated by the length.';


create function llm._tokens(
    p_token_count integer,
    p_content     jsonb
)
    returns bigint
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    -- About four bytes of English are a token; of Chinese, whose characters have three, about one character.
    return coalesce(p_token_count, 4 + octet_length(p_content::text) / 4);
end
$$;

comment on function llm._tokens(integer, jsonb) is
'How many tokens a message has: as it is known, else estimated: a quarter of its bytes, and four for what is around it.';


-- security definer: as llm.create_conversation().
create function llm.save_summary(
    p_conversation_id uuid,
    p_upto            bigint,
    p_summary         text,
    p_token_count     integer default null,
    p_branch          bigint default null
)
    returns void
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := llm._conversation_tenant();
    v_branch  bigint := llm._branch(v_tenant, p_conversation_id, p_branch);
    v_message record;
begin
    if p_summary is null or p_token_count < 0 then
        raise exception 'a summary of % characters and % tokens', coalesce(length(p_summary)::text, 'no'), coalesce(p_token_count::text, 'unknown')
            using errcode = 'invalid_parameter_value',
                  hint = 'Give the words in p_summary; p_token_count is not negative, and null when unknown.';
    end if;
    select m.branch, m.user_id
    into v_message
    from llm._branch_path(v_tenant, p_conversation_id, v_branch) p
    join llm.messages m
        on m.tenant_id = v_tenant
        and m.conversation_id = p_conversation_id
        and m.branch = p.branch
        and m.seq = p_upto
        and m.seq <= p.upto;
    if not found then
        raise exception 'branch % of conversation % has no message % to sum up to', v_branch, p_conversation_id, p_upto
            using errcode = 'no_data_found',
                  hint = 'p_upto is the number of the last message that the summary covers.';
    end if;
    insert into llm.summaries as s (tenant_id, conversation_id, branch, upto, user_id, summary, token_count)
    values (v_tenant, p_conversation_id, v_message.branch, p_upto, v_message.user_id, p_summary, p_token_count)
    on conflict (tenant_id, conversation_id, branch, upto) do update
        set summary = excluded.summary,
            token_count = excluded.token_count,
            created_at = clock_timestamp();
end
$$;

alter function llm.save_summary(uuid, bigint, text, integer, bigint) owner to llm_owner;

comment on function llm.save_summary(uuid, bigint, text, integer, bigint) is
'Keeps a summary of a conversation up to a message, for llm.context_window(); another one for the same message replaces it. p_upto: the number of
the last message that it covers; p_summary; p_token_count: null when unknown; p_branch: by default that of the conversation.
Errors: no_data_found for an unknown conversation, branch or message.';


create function llm._newest_fitting(
    p_tenant          text,
    p_conversation_id uuid,
    p_branch          bigint,
    p_tokens          bigint,
    p_taken           uuid[]
)
    returns table (from_seq bigint, is_all boolean)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    -- Row by row from the index, since few of them are read.
    set enable_sort = off
as $$
declare
    v_left    bigint := p_tokens;
    v_message record;
begin
    is_all := true;
    for v_message in
        select m.seq, m.role, case when m.message_id = any (p_taken) then 0 else llm._tokens(m.token_count, m.content) end as tokens
        from llm._branch_path(p_tenant, p_conversation_id, p_branch) p
        cross join lateral (
            select m.seq, m.role, m.message_id, m.token_count, m.content
            from llm.messages m
            where m.tenant_id = p_tenant
                and m.conversation_id = p_conversation_id
                and m.branch = p.branch
                and m.seq <= p.upto
                and m.deleted_at is null
            order by m.seq desc
        ) m
    loop
        v_left := v_left - v_message.tokens;
        if v_left < 0 then
            is_all := false;
            exit;
        end if;
        -- What a tool answered says nothing without the call before it.
        if v_message.role <> 'tool' then
            from_seq := v_message.seq;
        end if;
    end loop;
    return next;
end
$$;

comment on function llm._newest_fitting(text, uuid, bigint, bigint, uuid[]) is
'From which number on the newest messages of a branch have so many tokens together, those in p_taken not counted; null when not even the newest has.
is_all: none is left.';


create function llm.context_window(
    p_conversation_id uuid,
    p_max_tokens      bigint,
    p_query           text default null,
    p_recalled        uuid[] default '{}',
    p_branch          bigint default null
)
    returns setof llm.context_message
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
as $$
declare
    v_tenant  text := llm._conversation_tenant();
    v_branch  bigint := llm._branch(v_tenant, p_conversation_id, p_branch);
    v_left    bigint := p_max_tokens;
    v_kept    uuid[];
    v_newest  record;
    v_upto    bigint;
    v_summary text;
    v_tokens  integer;
    v_found   record;
    v_quota   bigint;
    v_recalls uuid[] := '{}';
begin
    if (p_max_tokens >= 0) is not true then
        raise exception 'a context window of % tokens', coalesce(p_max_tokens::text, 'no')
            using errcode = 'invalid_parameter_value',
                  hint = 'Say in p_max_tokens how many the model takes.';
    end if;
    -- What always is in it.
    with kept as materialized (
        select m.message_id, m.branch, m.seq, m.token_count, m.content
        from llm.messages m
        where m.tenant_id = v_tenant
            and m.conversation_id = p_conversation_id
            and (m.is_pinned or m.role = 'system')
            and m.deleted_at is null
    )
    select coalesce(array_agg(k.message_id), '{}'), p_max_tokens - coalesce(sum(llm._tokens(k.token_count, k.content)), 0)
    into v_kept, v_left
    from kept k
    join llm._branch_path(v_tenant, p_conversation_id, v_branch) p on p.branch = k.branch and k.seq <= p.upto;

    select * into v_newest from llm._newest_fitting(v_tenant, p_conversation_id, v_branch, v_left, v_kept);
    if v_left < 0 or v_newest.from_seq is null and not v_newest.is_all then
        raise exception '% tokens are too few for conversation %', p_max_tokens, p_conversation_id
            using errcode = 'program_limit_exceeded',
                  detail = format('System and pinned messages take %s.', p_max_tokens - v_left),
                  hint = 'They and the newest message are always part of the window: unpin some, or give it more tokens.';
    end if;

    if not v_newest.is_all then
        -- The latest summary, if there is room for it beside the newest message.
        select s.upto, s.summary, s.token_count
        into v_upto, v_summary, v_tokens
        from llm._branch_path(v_tenant, p_conversation_id, v_branch) p
        join llm.summaries s
            on s.tenant_id = v_tenant
            and s.conversation_id = p_conversation_id
            and s.branch = p.branch
            and s.upto <= p.upto
        where llm._tokens(s.token_count, to_jsonb(s.summary)) <= v_left / 2
        order by s.upto desc
        limit 1;
        if found then
            v_quota := v_left - llm._tokens(v_tokens, to_jsonb(v_summary));
            select * into v_found from llm._newest_fitting(v_tenant, p_conversation_id, v_branch, v_quota, v_kept);
            if v_found.from_seq is not null then
                v_newest := v_found;
                v_left := v_quota;
            else
                v_upto := null;
            end if;
        end if;

        -- At most a quarter of the rest for what is recalled.
        v_quota := v_left / 4;
        select * into v_found from llm._newest_fitting(v_tenant, p_conversation_id, v_branch, v_left - v_quota, v_kept);
        if v_found.from_seq is not null and (cardinality(p_recalled) > 0 or p_query is not null) then
            v_newest := v_found;
            for v_found in
                select r.message_id, llm._tokens(m.token_count, m.content) as tokens
                from llm._recallable(p_conversation_id, p_recalled, p_query) r
                join llm.messages m on m.tenant_id = v_tenant and m.message_id = r.message_id
                join llm._branch_path(v_tenant, p_conversation_id, v_branch) p on p.branch = m.branch and m.seq <= p.upto
                where m.conversation_id = p_conversation_id
                    and m.seq < v_newest.from_seq
                    and m.role <> 'tool'
                    and m.deleted_at is null
                    and m.message_id <> all (v_kept)
                order by r.number
            loop
                if v_found.tokens <= v_quota and v_found.message_id <> all (v_recalls) then
                    v_quota := v_quota - v_found.tokens;
                    v_left := v_left - v_found.tokens;
                    v_recalls := v_recalls || v_found.message_id;
                end if;
            end loop;
            select * into v_newest from llm._newest_fitting(v_tenant, p_conversation_id, v_branch, v_left, v_kept || v_recalls);
        end if;
    end if;

    return query
        select w.seq, w.message_id, w.role, w.content, llm._tokens(w.token_count, w.content), w.token_count is null, w.reason
        from (
            select
                m.seq, m.message_id, m.role, m.content, m.token_count,
                case when m.message_id = any (v_recalls) then 'recalled' when m.is_pinned then 'pinned' else 'system' end as reason
            from unnest(v_kept || v_recalls) k (id)
            join llm.messages m on m.tenant_id = v_tenant and m.message_id = k.id
            union all
            select m.seq, m.message_id, m.role, m.content, m.token_count, 'newest'
            from llm._branch_path(v_tenant, p_conversation_id, v_branch) p
            cross join lateral (
                select m.seq, m.message_id, m.role, m.content, m.token_count
                from llm.messages m
                where m.tenant_id = v_tenant
                    and m.conversation_id = p_conversation_id
                    and m.branch = p.branch
                    and m.seq <= p.upto
                    and m.seq >= v_newest.from_seq
                    and m.deleted_at is null
                order by m.seq desc
            ) m
            where m.message_id <> all (v_kept || v_recalls)
            union all
            select v_upto, null, 'system', to_jsonb(v_summary), v_tokens, 'summary'
            where v_upto is not null
        ) w
        order by w.seq, w.message_id nulls last;
end
$$;

comment on function llm.context_window(uuid, bigint, text, uuid[], bigint) is
'What to send to a model: messages of at most p_max_tokens together, in order, each with the reason why it is there. Always system and pinned
messages and the newest one; as many of the newest as fit; when not all do, the latest summary, and from what is left out, for at most a quarter of
the tokens, p_recalled (ids, such as a vector search finds) and what has words of p_query. A result of a tool never comes without its call.
p_branch: by default that of the conversation. Errors: no_data_found for an unknown conversation or branch; program_limit_exceeded when what is
always in it does not fit.';


create function llm._recallable(
    p_conversation_id uuid,
    p_recalled        uuid[],
    p_query           text
)
    returns table (message_id uuid, number bigint)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- Any of the longer words: a question hardly occurs as a whole.
    v_query tsquery := (
        select string_agg(quote_literal(w.lexeme), ' | ')::tsquery
        from unnest(to_tsvector('simple'::regconfig, left(p_query, 10000))) w
        where length(w.lexeme) > 3
            and strpos(w.lexeme, '\') = 0
    );
begin
    return query select r.id, r.number from unnest(p_recalled) with ordinality r (id, number);
    if v_query is not null then
        return query
            select f.message_id, cardinality(p_recalled) + row_number() over (order by f.rank desc)
            from llm._find_messages(v_query, p_conversation_id, 50::bigint) f;
    end if;
end
$$;

comment on function llm._recallable(uuid, uuid[], text) is
'What might be recalled, in the order of its worth: first what the caller named, then what has words of the query.';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'context_window', '_newest_fitting', '_recallable', '_tokens'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'save_summary'
);
