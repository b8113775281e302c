create type llm.session_message as (
    id          uuid,
    message     text,
    role        text,
    created_at  timestamptz
);

comment on type llm.session_message is
'A message in the history of a session, as text.';


create function llm.get_cached_history(
    p_session_id uuid,
    p_limit      bigint default 50
)
    returns setof llm.session_message
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
begin
    perform llm._check_page(p_limit, 0::bigint);
    return query
        select h.id, h.message, h.role, h.created_at
        from (
            select m.message_id as id, llm._message_text(m.content) as message, m.role, m.created_at, m.conversation_id, m.seq
            from llm.conversations c
            cross join lateral llm.get_messages(c.conversation_id, null::bigint, null::bigint, p_limit, null::bigint) m
            where c.tenant_id = v_tenant
                and c.session_id = p_session_id
                and c.deleted_at is null
            order by m.created_at desc, m.conversation_id desc, m.seq desc
            limit p_limit
        ) h
        order by h.created_at, h.conversation_id, h.seq;
end
$$;

comment on function llm.get_cached_history(uuid, bigint) is
'The newest messages of the conversations of a session, oldest first, each conversation as its present branch has it; also after the session has
ended. p_limit: at most so many. What is cached is the server''s: blocks in shared memory, which are never older than the table. Errors:
object_not_in_prerequisite_state without a tenant.';


create function llm.cache_session(
    p_session_id uuid,
    p_limit      bigint default 50
)
    returns bigint
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select count(h.message) from llm.get_cached_history(p_session_id, p_limit) h);
end
$$;

comment on function llm.cache_session(uuid, bigint) is
'Reads the history of a session, so that the server has it in memory when llm.get_cached_history() asks. Returns how many messages that are.
Errors: as llm.get_cached_history().';


create function llm.invalidate_session_cache(
    p_session_id uuid
)
    returns boolean
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
begin
    return exists (select from llm.sessions s where s.tenant_id = v_tenant and s.session_id = p_session_id);
end
$$;

comment on function llm.invalidate_session_cache(uuid) is
'For callers written for a cache that can be stale: here no copy is kept that could be, so nothing is to be done. Returns whether there is such a
session. Errors: object_not_in_prerequisite_state without a tenant.';


select llm._grant_execute(
    array['llm_admin', 'llm_app', 'llm_reader'],
    'get_cached_history', 'cache_session', 'invalidate_session_cache'
);
