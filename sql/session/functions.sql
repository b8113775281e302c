create type llm.session_access as (
    session_id    uuid,
    user_id       uuid,
    created_at    timestamptz,
    last_active   timestamptz,
    metadata      jsonb,
    context       jsonb,
    device        text,
    expires_at    timestamptz,
    tenant_id     text,
    is_touch_due  boolean
);

comment on type llm.session_access is
'A live session: last_active is right to a minute, or a tenth of its idle time-out if that is less; is_touch_due: it would be wrong without
llm.touch_session().';


create function llm._check_session(
    p_metadata jsonb,
    p_context  jsonb,
    p_device   text
)
    returns void
    language plpgsql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if jsonb_typeof(p_metadata) <> 'object' or jsonb_typeof(p_context) <> 'object' then
        raise exception 'a session whose metadata are %, its context %', coalesce(jsonb_typeof(p_metadata), 'not given'),
            coalesce(jsonb_typeof(p_context), 'not given')
            using errcode = 'check_violation',
                  hint = 'Both are JSON objects, such as {}.';
    end if;
    if length(p_device) not between 1 and 500 then
        raise exception 'a device of % characters', length(p_device)
            using errcode = 'check_violation',
                  hint = 'Its fingerprint has 1 to 500; null for none.';
    end if;
end
$$;

comment on function llm._check_session(jsonb, jsonb, text) is
'Refuses what the constraints of llm.sessions would, in the user''s words. Errors: check_violation.';


-- Beginning

create function llm.create_session(
    p_user_id      uuid,
    p_metadata     jsonb default '{}',
    p_context      jsonb default '{}',
    p_device       text default null,
    p_ip_address   inet default null,
    p_lifetime     interval default null,
    p_idle_timeout interval default null
)
    returns uuid
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := llm._user_tenant();
    v_session uuid := llm.uuid_v7();
begin
    perform llm._require_user(p_user_id);
    perform llm._check_session(p_metadata, p_context, p_device);
    insert into llm.sessions (tenant_id, session_id, user_id, expires_at, idle_timeout, device, ip_address, metadata, context)
    values (
        v_tenant, v_session, p_user_id,
        now() + llm._in_hours(coalesce(p_lifetime, llm._identity_setting('session/lifetime'::text, '24 hours'::text)::interval)),
        llm._in_hours(coalesce(p_idle_timeout, llm._identity_setting('session/idle_timeout'::text, '1 hour'::text)::interval)),
        p_device, p_ip_address, coalesce(p_metadata, '{}'), coalesce(p_context, '{}')
    );
    return v_session;
end
$$;

comment on function llm.create_session(uuid, jsonb, jsonb, text, inet, interval, interval) is
'Begins a session of a user, without a token, and returns its id. p_metadata, p_context: objects; p_device: a fingerprint of the device, which
llm.verify_session() can ask for; p_lifetime: null for session/lifetime (24 hours); p_idle_timeout: null for session/idle_timeout (1 hour); infinity
for neither end. Errors: no_data_found for an unknown user; invalid_parameter_value, check_violation; object_not_in_prerequisite_state without a
tenant.';


create function llm.open_session(
    p_user_id      uuid,
    p_device       text default null,
    p_ip_address   inet default null,
    p_metadata     jsonb default '{}',
    p_context      jsonb default '{}',
    p_lifetime     interval default null,
    p_idle_timeout interval default null,
    out session_id uuid,
    out token      text
)
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    session_id := llm.create_session(p_user_id, p_metadata, p_context, p_device, p_ip_address, p_lifetime, p_idle_timeout);
    token := llm.issue_session_token(session_id);
end
$$;

comment on function llm.open_session(uuid, text, inet, jsonb, jsonb, interval, interval) is
'Logs a user in, after llm.authenticate(): as llm.create_session(), with a token, which is shown this once. Returns the session''s id, and the token.
Errors: as llm.create_session().';


create function llm.issue_session_token(
    p_session_id uuid
)
    returns text
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant  text := llm._user_tenant();
    v_token   record;
    v_session record;
begin
    select * into v_token from llm._new_token('llms'::text);
    select s.user_id, s.device, s.ip_address, s.token_hash is not null as is_refreshed
    into v_session
    from llm.sessions s
    where s.tenant_id = v_tenant
        and s.session_id = p_session_id
        and s.live_until > clock_timestamp()
    for update;
    if not found then
        raise exception 'session % is not live', coalesce(p_session_id::text, 'null')
            using errcode = 'no_data_found',
                  hint = 'It is unknown in this tenant, or ended, expired or idle for too long: the user logs in again.';
    end if;
    update llm.sessions s
    set token_prefix = v_token.prefix,
        token_salt = v_token.salt,
        token_hash = v_token.hash
    where s.tenant_id = v_tenant
        and s.session_id = p_session_id;
    perform llm.log_authentication_event(
        case when v_session.is_refreshed then 'token_refreshed' else 'token_issued' end::llm.authentication_event, v_session.user_id::text,
        jsonb_build_object('session', p_session_id),
        jsonb_strip_nulls(jsonb_build_object('device', v_session.device, 'ip_address', v_session.ip_address))
    );
    return v_token.token;
end
$$;

comment on function llm.issue_session_token(uuid) is
'A new token of a live session; the one it had is no longer valid. It is shown this once. Errors: no_data_found when the session is not live;
object_not_in_prerequisite_state without a tenant.';


-- Using

-- Not pinned: inlined into the caller's query, fully qualified.
create function llm.verify_session(
    p_token  text,
    p_device text default null
)
    returns setof llm.session_access
    language sql
    stable
as $$
    select s.session_id, s.user_id, s.created_at, s.last_active, s.metadata, s.context, s.device, s.expires_at, s.tenant_id,
        s.touch_due_at operator(pg_catalog.<) pg_catalog.statement_timestamp()
    from llm.sessions s
    where s.token_prefix operator(pg_catalog.=) pg_catalog.substr(p_token, 6, 16)
        and s.token_hash operator(pg_catalog.=) pg_catalog.sha256(
            s.token_salt operator(pg_catalog.||) pg_catalog.convert_to(p_token, 'UTF8'::pg_catalog.name)
        )
        and s.live_until operator(pg_catalog.>) pg_catalog.statement_timestamp()
        and (p_device is null or s.device operator(pg_catalog.=) p_device)
$$;

comment on function llm.verify_session(text, text) is
'The live session that a token is of, in the current tenant, and writes nothing; no row when the token is forged, or its session ended, expired or
idle for too long. p_device: the fingerprint that the session must have begun with, null for any. When is_touch_due, call llm.touch_session().
Errors: object_not_in_prerequisite_state when the tenant was not set by llm.set_tenant().';


-- security definer: which tenant it is, only the token tells.
create function llm.resume_session(
    p_token  text,
    p_device text default null
)
    returns llm.session_access
    language plpgsql
    volatile
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- Nor llm.set_tenant() below: see llm._owners_tenant().
    v_tenant  text := llm._owners_tenant();
    v_session llm.session_access;
begin
    perform set_config('llm.user_id', '', true);
    select * into v_session from llm.verify_session(p_token, p_device) s where coalesce(s.tenant_id = v_tenant, v_tenant is null);
    if not found then
        raise exception 'the session is not valid'
            using errcode = 'invalid_authorization_specification',
                  hint = 'Let the user log in again: llm.authenticate(), llm.open_session().';
    end if;
    perform
        set_config('llm.tenant', v_session.tenant_id, true),
        set_config('llm.tenant_set_at', date_part('epoch', now())::text, true),
        set_config('llm.user_id', v_session.user_id::text, true),
        set_config('llm.user_set_at', date_part('epoch', now())::text, true);
    if v_session.is_touch_due then
        perform llm._note_session_use(v_session.tenant_id, v_session.session_id);
    end if;
    return v_session;
end
$$;

alter function llm.resume_session(text, text) owner to llm_owner;

comment on function llm.resume_session(text, text) is
'All that a request with a token needs, in one call: as llm.verify_session(), of whatever tenant when none is set; then sets tenant and user for the
rest of this transaction, and touches the session. Errors: invalid_authorization_specification, the same for every reason;
object_not_in_prerequisite_state when the tenant was not set by llm.set_tenant().';


create function llm.touch_session(
    p_session_id uuid
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm.current_tenant();
    v_is_due boolean;
begin
    select s.touch_due_at < statement_timestamp()
    into v_is_due
    from llm.sessions s
    where s.tenant_id = v_tenant
        and s.session_id = p_session_id
        and s.live_until > statement_timestamp();
    if not found then
        return false;
    end if;
    if v_is_due then
        perform llm._note_session_use(v_tenant, p_session_id);
    end if;
    return true;
end
$$;

comment on function llm.touch_session(uuid) is
'Notes that a session is in use; writes only when the last note is a minute old, or a tenth of its idle time-out if that is less. Returns whether the
session is live.';


create function llm._note_session_use(
    p_tenant     text,
    p_session_id uuid
)
    returns void
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('transaction_read_only')::boolean then
        return;
    end if;
    -- One note is enough: who comes second does not wait for the first one's transaction.
    update llm.sessions s
    set last_active = statement_timestamp()
    where (s.tenant_id, s.session_id) in (
        select l.tenant_id, l.session_id
        from llm.sessions l
        where l.tenant_id = p_tenant
            and l.session_id = p_session_id
            and l.ended_at is null
        for no key update skip locked
    );
end
$$;

comment on function llm._note_session_use(text, uuid) is
'Writes that a session is in use, unless another transaction is writing it, or this one may not write.';


create function llm.get_session(
    p_session_id uuid
)
    returns setof llm.session_access
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
begin
    return query
        select
            s.session_id, s.user_id, s.created_at, s.last_active, s.metadata, s.context, s.device, s.expires_at, s.tenant_id,
            s.touch_due_at < statement_timestamp()
        from llm.sessions s
        where s.tenant_id = v_tenant
            and s.session_id = p_session_id
            and s.live_until > statement_timestamp();
end
$$;

comment on function llm.get_session(uuid) is
'A live session of the current tenant; no row when it is unknown, ended, expired or idle for too long.
Errors: object_not_in_prerequisite_state without a tenant.';


create function llm.update_session(
    p_session_id uuid,
    p_metadata   jsonb,
    p_context    jsonb default null
)
    returns boolean
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    v_tenant text := llm._user_tenant();
begin
    perform llm._check_session(p_metadata, p_context, null::text);
    update llm.sessions s
    set metadata = coalesce(p_metadata, s.metadata),
        context = coalesce(p_context, s.context),
        last_active = greatest(s.last_active, statement_timestamp())
    where s.tenant_id = v_tenant
        and s.session_id = p_session_id
        and s.live_until > statement_timestamp();
    return found;
end
$$;

comment on function llm.update_session(uuid, jsonb, jsonb) is
'Replaces metadata and context of a live session, each unless null, and touches it. Returns whether it is live.
Errors: check_violation for what is no object; object_not_in_prerequisite_state without a tenant.';


create function llm._end_sessions_of_user()
    returns trigger
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
begin
    update llm.sessions s
    set ended_at = clock_timestamp(),
        end_reason = 'user_deleted'
    where s.tenant_id = new.tenant_id
        and s.user_id = new.user_id
        and s.ended_at is null;
    return null;
end
$$;

comment on function llm._end_sessions_of_user() is
'Trigger of llm.users: the sessions of who is deleted end.';


select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app', 'llm_reader'],
    'verify_session', 'get_session'
);

select llm._grant_execute(
    array['llm_owner', 'llm_admin', 'llm_app'],
    '_check_session', 'touch_session', '_note_session_use', '_end_sessions_of_user'
);

select llm._grant_execute(
    array['llm_admin', 'llm_app'],
    'create_session', 'open_session', 'issue_session_token', 'resume_session', 'update_session'
);
