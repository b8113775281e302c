create function llm.end_session(
    p_session_id uuid,
    p_reason     text default 'logout'
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
    v_user   uuid;
begin
    if p_reason is null or p_reason not in ('logout', 'revoked') then
        raise exception 'a session cannot be ended as %', coalesce(quote_literal(p_reason), 'null')
            using errcode = 'invalid_parameter_value',
                  hint = 'Reasons are logout and revoked.';
    end if;
    update llm.sessions s
    set ended_at = clock_timestamp(),
        end_reason = p_reason
    where s.tenant_id = v_tenant
        and s.session_id = p_session_id
        and s.ended_at is null
    returning s.user_id into v_user;
    if not found then
        return false;
    end if;
    perform llm.log_authentication_event(
        case p_reason when 'logout' then 'logout' else 'session_revoked' end::llm.authentication_event, v_user::text,
        jsonb_build_object('session', p_session_id), null::jsonb
    );
    return true;
end
$$;

comment on function llm.end_session(uuid, text) is
'Ends a session: its token is no longer valid. p_reason: logout, by the user, or revoked. Returns whether it had not ended yet.
Errors: invalid_parameter_value for another reason; object_not_in_prerequisite_state without a tenant.';


create function llm.end_sessions(
    p_user_id uuid,
    p_but     uuid default null
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
    v_count  bigint := 0;
    v_each   record;
begin
    for v_each in
        select s.session_id
        from llm.sessions s
        where s.tenant_id = v_tenant
            and s.user_id = p_user_id
            and s.session_id is distinct from p_but
            and s.ended_at is null
        order by s.session_id
    loop
        v_count := v_count + llm.end_session(v_each.session_id, 'revoked'::text)::integer;
    end loop;
    return v_count;
end
$$;

comment on function llm.end_sessions(uuid, uuid) is
'Ends all sessions of a user, say after a change of the password. p_but: a session that goes on, null for none. Returns how many were ended.
Errors: object_not_in_prerequisite_state without a tenant.';


-- security definer: without a tenant it works for all of them, and says nothing of any.
create function llm.expire_sessions(
    p_limit integer default 1000
)
    returns bigint
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm.current_tenant();
    v_events jsonb;
begin
    perform llm._check_page(p_limit::bigint, 0::bigint);
    with due as (
        select s.tenant_id, s.session_id
        from llm.sessions s
        where s.ended_at is null
            and s.live_until <= statement_timestamp()
            and coalesce(s.tenant_id = v_tenant, v_tenant is null)
        order by s.tenant_id, s.session_id
        limit p_limit
        for no key update skip locked
    ),
    ended as (
        update llm.sessions s
        set ended_at = statement_timestamp(),
            end_reason = case when s.expires_at <= statement_timestamp() then 'expired' else 'idle' end
        from due d
        where s.tenant_id = d.tenant_id
            and s.session_id = d.session_id
        returning s.tenant_id, s.session_id, s.user_id, s.end_reason
    )
    select jsonb_agg(jsonb_build_object(
        'action', 'session_expired', 'object_type', 'authentication', 'object_id', e.user_id, 'user_id', e.user_id,
        'details', jsonb_build_object('session', e.session_id, 'tenant', e.tenant_id, 'reason', e.end_reason)
    ))
    into v_events
    from ended e;
    if v_events is null then
        return 0;
    end if;
    return llm.log_audit_events(v_events);
end
$$;

alter function llm.expire_sessions(integer) owner to llm_owner;

comment on function llm.expire_sessions(integer) is
'Ends sessions that have expired or were idle for too long, at most p_limit, and returns how many: call it again while it returns p_limit. Their
tokens are refused in any case. Several callers do not wait for each other. Of the current tenant; when none is set, of all.';


create function llm.delete_session(
    p_session_id uuid
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
begin
    delete from llm.sessions s
    where s.tenant_id = v_tenant
        and s.session_id = p_session_id;
    return found;
end
$$;

comment on function llm.delete_session(uuid) is
'Removes a session, live or not. Returns whether there was one. Errors: object_not_in_prerequisite_state without a tenant.';


create function llm.purge_sessions(
    p_ended_before timestamptz,
    p_limit        integer default 1000
)
    returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
    v_count  bigint;
begin
    perform llm._check_page(p_limit::bigint, 0::bigint);
    delete from llm.sessions s
    where s.tenant_id = v_tenant
        and s.session_id in (
            select e.session_id
            from llm.sessions e
            where e.tenant_id = v_tenant
                and e.ended_at < p_ended_before
            order by e.session_id
            limit p_limit
            for update skip locked
        );
    get diagnostics v_count = row_count;
    return v_count;
end
$$;

comment on function llm.purge_sessions(timestamptz, integer) is
'Removes sessions of the current tenant that ended before, at most p_limit. Returns how many. Errors: object_not_in_prerequisite_state without a
tenant.';


select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'end_session', 'end_sessions', 'expire_sessions', 'delete_session', 'purge_sessions'
);
