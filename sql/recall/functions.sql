create function llm.get_memory(
    p_memory_id uuid
)
    returns llm.memory
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_tenant   text := llm.current_tenant();
    v_fact     llm.memory;
begin
    select f.* into v_fact from llm.memory_facts f where f.tenant_id = v_tenant and f.memory_id = p_memory_id;
    return v_fact;
end
$$;

comment on function llm.get_memory(uuid) is
'A fact by its id, also one of the past: known_to and valid_to tell. All null when there is none.';


create function llm.get_memories(
    p_memory_ids uuid[]
)
    returns setof llm.memory
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_tenant   text := llm.current_tenant();
begin
    return query
        select f.*
        from unnest(p_memory_ids) with ordinality i (memory_id, position)
        join llm.memory_facts f on f.tenant_id = v_tenant and f.memory_id = i.memory_id
        order by i.position;
end
$$;

comment on function llm.get_memories(uuid[]) is
'Facts by their ids, in the order of these; without those that do not exist.';


create function llm.memory_exists(
    p_memory_id uuid
)
    returns boolean
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_tenant   text := llm.current_tenant();
begin
    return exists (
        select from llm.memories m
        where m.tenant_id = v_tenant
            and m.memory_id = p_memory_id
            and upper(m.known) is null
    );
end
$$;

comment on function llm.memory_exists(uuid) is
'Whether a fact is there and was not taken back or replaced.';


create function llm.list_memories(
    p_scope     text default null,
    p_owner     text default null,
    p_subject   text default null,
    p_predicate text default null,
    p_user_id   uuid default null,
    p_limit     integer default 100,
    p_after     uuid default null
)
    returns setof llm.memory
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_tenant   text := llm.current_tenant();
    v_now      timestamptz := clock_timestamp();
begin
    perform llm._check_page(p_limit::bigint, 0::bigint);
    return query
        select f.*
        from llm.memory_facts f
        where f.tenant_id = v_tenant
            and (p_scope is null or f.scope = p_scope)
            and (p_owner is null or f.owner = p_owner)
            and (p_subject is null or f.subject = p_subject)
            and (p_predicate is null or f.predicate = p_predicate)
            and (p_user_id is null or f.user_id = p_user_id)
            and (p_after is null or f.memory_id > p_after)
            and f.known_to is null
            and (f.valid_from is null or f.valid_from <= v_now)
            and (f.valid_to is null or f.valid_to > v_now)
        order by f.memory_id
        limit p_limit;
end
$$;

comment on function llm.list_memories(text, text, text, text, uuid, integer, uuid) is
'What is known now to hold now, oldest first. p_scope, p_owner, p_subject, p_predicate, p_user_id: null for any; p_limit: at most so many; p_after:
those after this one, the last of the page before.';


create function llm.count_memories(
    p_scope     text default null,
    p_owner     text default null,
    p_subject   text default null,
    p_predicate text default null,
    p_user_id   uuid default null
)
    returns bigint
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select count(*) from llm.list_memories(p_scope, p_owner, p_subject, p_predicate, p_user_id, null::integer, null::uuid));
end
$$;

comment on function llm.count_memories(text, text, text, text, uuid) is
'How many facts llm.list_memories() has to list. Arguments: as there.';


create function llm.memory_as_of(
    p_at        timestamptz,
    p_scope     text,
    p_owner     text,
    p_subject   text default null,
    p_predicate text default null,
    p_known_at  timestamptz default null
)
    returns setof llm.memory
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_tenant   text := llm.current_tenant();
    v_known_at timestamptz := coalesce(p_known_at, p_at);
begin
    -- By the whole index, which a plan for any arguments would not use so.
    if p_subject is not null and p_predicate is not null then
        return query
            select f.*
            from llm.memory_facts f
            where f.tenant_id = v_tenant
                and f.scope = p_scope
                and f.owner = p_owner
                and f.subject = p_subject
                and f.predicate = p_predicate
                and f.known_from <= v_known_at
                and (f.known_to is null or f.known_to > v_known_at)
                and (f.valid_from is null or f.valid_from <= p_at)
                and (f.valid_to is null or f.valid_to > p_at)
            order by f.memory_id;
        return;
    end if;
    return query
        select f.*
        from llm.memory_facts f
        where f.tenant_id = v_tenant
            and f.scope = p_scope
            and f.owner = p_owner
            and (p_subject is null or f.subject = p_subject)
            and (p_predicate is null or f.predicate = p_predicate)
            and f.known_from <= v_known_at
            and (f.known_to is null or f.known_to > v_known_at)
            and (f.valid_from is null or f.valid_from <= p_at)
            and (f.valid_to is null or f.valid_to > p_at)
        order by f.subject, f.predicate, f.memory_id;
end
$$;

comment on function llm.memory_as_of(timestamptz, text, text, text, text, timestamptz) is
'What was known at a time to hold at that time. p_at: when; p_scope, p_owner: whose facts; p_subject, p_predicate: null for any; p_known_at: by the
knowledge of another time, such as now(). A fact counts from the moment it was written, not from its commit.';


create function llm.memory_history(
    p_memory_id uuid
)
    returns setof llm.memory
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_fact llm.memory := llm.get_memory(p_memory_id);
begin
    return query
        select f.*
        from llm.memory_facts f
        where f.tenant_id = v_fact.tenant_id
            and f.scope = v_fact.scope
            and f.owner = v_fact.owner
            and f.subject = v_fact.subject
            and f.predicate = v_fact.predicate
        order by f.known_from, f.valid_from nulls first, f.memory_id;
end
$$;

comment on function llm.memory_history(uuid) is
'All that was ever known of the predicate of a fact, in the order in which it became known. p_memory_id: any fact of it.';


create function llm.search_memories(
    p_query   text,
    p_scope   text default null,
    p_owner   text default null,
    p_user_id uuid default null,
    p_limit   integer default 10
)
    returns table (score double precision, memory llm.memory)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_is_ready boolean := llm._require_storage();
    v_tenant   text := llm.current_tenant();
    v_now      timestamptz := clock_timestamp();
    v_words    tsquery := replace(plainto_tsquery('simple'::regconfig, p_query)::text, ' & ', ' | ')::tsquery;
begin
    perform llm._check_page(p_limit::bigint, 0::bigint);
    return query
        with scored as (
            select
                m.memory_id,
                ts_rank(m.words, v_words)::double precision + @extschema:pg_trgm@.word_similarity(p_query, m.content)::double precision as score
            from llm.memories m
            where m.tenant_id = v_tenant
                and (p_scope is null or m.scope = p_scope)
                and (p_owner is null or m.owner = p_owner)
                and (p_user_id is null or m.user_id = p_user_id)
                and upper(m.known) is null
                and m.valid @> v_now
                and (m.words @@ v_words or @extschema:pg_trgm@.word_similarity(p_query, m.content) >= 0.3)
            order by score desc, m.memory_id desc
            limit p_limit
        )
        select
            s.score,
            row(f.tenant_id, f.memory_id, f.scope, f.owner, f.user_id, f.subject, f.predicate, f.value, f.content, f.many, f.metadata, f.source,
                f.valid_from, f.valid_to, f.known_from, f.known_to)::llm.memory
        from scored s
        join llm.memory_facts f on f.tenant_id = v_tenant and f.memory_id = s.memory_id
        order by s.score desc, f.memory_id desc;
end
$$;

comment on function llm.search_memories(text, text, text, uuid, integer) is
'What is known now to hold now and has a word of p_query, or words that resemble it, best first: score is the rank of the words plus the similarity of
the best extent (pg_trgm). p_scope, p_owner, p_user_id: null for any; p_limit: at most so many.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    'get_memory', 'get_memories', 'memory_exists', 'list_memories', 'count_memories', 'memory_as_of', 'memory_history', 'search_memories'
);
